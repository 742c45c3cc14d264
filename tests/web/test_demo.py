"""What the demo serves, and what it says before it serves anything."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from iformer.cli.main import main
from iformer.deploy.artifact import artifact_hash, read_record, write_record
from iformer.errors import UserError
from iformer.web import assets, demo, manifest
from iformer.web.assets import PACKAGES, Package, install_command, load_assets
from iformer.web.demo import open_demo
from iformer.web.headers import CONTENT_SECURITY_POLICY
from iformer.web.manifest import page_files, read_page_artifact, reference_pictures

FILE = b'import { x } from "@litertjs/wasm-utils";'


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An npm installation of a stand-in for both runtimes."""
    package = Package(
        name="stand-in", version="1.0", licence="MIT", files={"dist/index.js": hashlib.sha256(FILE).hexdigest()}
    )
    for runtime in ("onnx", "litert"):
        monkeypatch.setitem(PACKAGES, runtime, (package,))
    file = tmp_path / "node_modules/stand-in/dist/index.js"
    file.parent.mkdir(parents=True)
    file.write_bytes(FILE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_assets_are_the_files_that_were_tested(npm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {"index.js": b'import { x } from "./bundle.js";'}
    assert load_assets("litert", str(npm)) == load_assets("litert", str(npm / "node_modules")) == expected
    with pytest.raises(UserError, match=r"run: npm install stand-in@1\.0"):
        load_assets("onnx", None)
    downloaded: list[str] = []

    def download(url: str) -> bytes:
        downloaded.append(url)
        return FILE

    monkeypatch.setattr(assets, "_download", download)
    assert load_assets("onnx", "cdn") == load_assets("onnx", "cdn") == load_assets("onnx", None) == expected
    assert downloaded == ["https://cdn.jsdelivr.net/npm/stand-in@1.0/dist/index.js"]  # once
    (npm / "node_modules/stand-in/dist/index.js").write_bytes(FILE + b" ")
    with pytest.raises(UserError, match="is not the file that was tested"):
        load_assets("onnx", str(npm))
    (npm / "cache/iformer/web" / hashlib.sha256(FILE).hexdigest()).write_bytes(b"changed")
    with pytest.raises(UserError, match="stand-in is missing"):
        load_assets("onnx", None)
    monkeypatch.setattr(assets, "_download", lambda url: b"changed")
    with pytest.raises(UserError, match="is not the file that was tested"):
        load_assets("onnx", "cdn")


def test_a_user_without_a_home_folder_can_download(
    npm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The users of `docker run --user 12345` and OpenShift have neither HOME nor an entry in /etc/passwd."""

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(assets, "_download", lambda url: FILE)
    with pytest.raises(UserError, match="stand-in is missing"):
        load_assets("onnx", None)
    assert load_assets("onnx", "cdn") == load_assets("onnx", None) == load_assets("onnx", str(npm))
    assert (tmp_path / "temporary/iformer/web" / hashlib.sha256(FILE).hexdigest()).read_bytes() == FILE


def test_every_package_has_a_version_and_hashes() -> None:
    packages = [package for packages in PACKAGES.values() for package in packages]
    assert {package.licence for package in packages} == {"MIT", "Apache-2.0"}
    for package in packages:
        assert f"{package.name}@{package.version}" in install_command()
        assert all(len(sha256) == 64 for sha256 in package.files.values())


def test_the_page_is_told_what_the_record_says(tiny_onnx: Path, npm: Path, photographs: list[Path]) -> None:
    info = read_record(tiny_onnx)
    pictures = reference_pictures(photographs, info.preprocessing)
    artifact = read_page_artifact(tiny_onnx, pictures)
    files = page_files([artifact], pictures, title="\x1b[2J<b>", licence="MIT", assets=str(npm))
    private = {name for name, resource in files.items() if not resource.public}
    assert private == {"networks.json", "networks/0.onnx", *(f"pictures/{index}.png" for index in range(3))}
    told = json.loads(files["networks.json"].content)  # type: ignore[arg-type]
    assert told["title"] == "\\x1b[2J<b>"
    (row,) = told["artifacts"]
    assert row["class_names"] == list(info.class_names)
    assert row["preprocessing"]["size"] == [32, 32]
    assert row["input"] == {"name": "image", "dtype": "uint8", "layout": "NHWC", "normalized_by": "graph"}
    assert row["check"]["tolerance"] == 1e-4
    for told_outputs, outputs in zip(row["check"]["outputs"], artifact.outputs, strict=True):
        assert torch.equal(torch.tensor(told_outputs["logits"]), outputs["logits"].flatten())
    index = files[""].content
    assert isinstance(index, bytes)
    assert f'content="{CONTENT_SECURITY_POLICY}"'.encode() in index
    # the policy allows no inline script and no inline style
    assert b"<script>" not in index
    assert b"style=" not in index
    assert b" onclick" not in index


def test_generated_pictures_are_always_the_same(tiny_onnx: Path) -> None:
    preprocessing = read_record(tiny_onnx).preprocessing
    assert reference_pictures([], preprocessing) == reference_pictures([], preprocessing)


def test_what_the_demo_refuses(
    tiny_onnx: Path, npm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*arguments: object) -> str:
        assert main(["demo", *map(str, arguments)]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        return captured.err.strip().splitlines()[-1]

    other = tmp_path / "other.xml"
    other.write_bytes(b"x")
    write_record(
        replace(read_record(tiny_onnx), runtime="openvino", file=other.name, sha256=artifact_hash(other)), other
    )
    for arguments, expected in (
        (("elpv", "--on", "openvino"), "unknown runtime of browsers 'openvino'"),
        (("elpv", "--assets", tmp_path / "nowhere"), "is missing; --assets takes a folder where this was run"),
        ((other, "--assets", npm), "is for OpenVINO; browsers run artifacts of ONNX Runtime and LiteRT"),
        ((tiny_onnx, "--assets", npm, "--address", "192.168.1.2"), "--address is for --lan"),
        ((tiny_onnx, "--assets", npm, "--lan", "--address", "localhost"), "expected numbers such as 192.168.1.20"),
        (
            (tiny_onnx, "--assets", npm, "--lan", "--address", "0.0.0.0"),
            "expected the IPv4 address",
        ),
        (("nothing.onnx", "--assets", npm), "nothing.onnx"),
    ):
        assert expected in said(*arguments), arguments


def test_a_checkpoint_is_exported_for_the_page(
    tiny_onnx: Path, npm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported: list[str] = []

    def export(network: object, path: Path, runtime: str) -> None:
        exported.append(runtime)
        path.write_bytes(tiny_onnx.read_bytes())
        write_record(replace(read_record(tiny_onnx), file=path.name), path)

    monkeypatch.setattr(manifest, "export_artifact", export)
    server = open_demo("elpv", on="onnx", folder=tmp_path, assets=str(npm), port=0)
    assert exported == ["onnx"]
    told = json.loads(server.resources["/networks.json"].content)  # type: ignore[arg-type]
    assert (told["title"], told["bench"]) == ("elpv", None)
    assert server.resources["/networks/0.onnx"].content == tmp_path / "network.onnx"
    with server:
        assert server.host == "127.0.0.1"


def test_the_code_for_the_phone_is_drawn_with_blocks() -> None:
    drawn = demo.qr_code("https://192.168.1.20:8765/#token")
    assert set(drawn) <= set("█▀▄ \xa0\n")
    assert len(drawn.splitlines()) > 10


def test_the_page_as_a_folder(
    tiny_onnx: Path, npm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "site/page"
    command = ["export", str(tiny_onnx), "--to", "web", "--out", str(out), "--assets", str(npm), "--json"]
    assert main([*command, "--licence", "CC0"]) == 0
    assert json.loads(capsys.readouterr().out) == {"page": str(out)}
    first = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert {"index.html", "main.js", "networks.json", "licences.txt"} <= first.keys()
    (version,) = (out / "runtimes").iterdir()
    assert (version / "index.js").read_bytes() == b'import { x } from "./bundle.js";'
    assert read_record(out / "networks/0.onnx").class_names == read_record(tiny_onnx).class_names
    licences = first["licences.txt"].decode()
    assert "The network: CC0\nstand-in 1.0: MIT\n" in licences
    assert "Microsoft Corporation" in licences
    assert "Apache License" in licences
    assert main(command) == 0  # a page is replaced
    assert "The network: not stated" in (out / "licences.txt").read_text()
    capsys.readouterr()
    (out / ".git").mkdir()
    (out / ".git/config").write_text("mine")
    (out / "networks/notes.txt").write_text("mine")
    assert main(command) == 1
    message = capsys.readouterr().err
    assert "holds files beside a page: .git/config, networks/notes.txt; they would be removed" in message
    (out / "networks/notes.txt").unlink()
    (out / "networks.json").write_bytes(json.dumps({"format": manifest.PAGE_FORMAT}).encode())  # of early versions
    assert main(command) == 1
    assert "holds files beside a page: .git/config; they" in capsys.readouterr().err
    shutil.rmtree(out / ".git")
    (tmp_path / "link").symlink_to(out)
    assert main([*command, "--out", str(tmp_path / "link")]) == 0
    assert (tmp_path / "link").is_symlink()
    assert json.loads((out / "networks.json").read_bytes())["artifacts"]
    capsys.readouterr()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.tex").write_text("work")
    for extra, expected in (
        (["--out", str(tmp_path / "other")], "is not a page of iformer"),
        (["--out", str(tiny_onnx)], "is not a page of iformer"),
        (["--out", str(tmp_path / "new"), "--size", "64"], "takes no options of a conversion"),
        (["--out", str(tmp_path / "new"), "--raw"], "takes no options of a conversion"),
    ):
        assert main([*command, *extra]) == 1
        assert expected in capsys.readouterr().err
    assert main(["export", "elpv", "--to", "web"]) == 1
    assert "--to web needs --out FOLDER" in capsys.readouterr().err
    assert (tmp_path / "other/thesis.tex").read_text() == "work"
    assert not list(tmp_path.rglob(".iformer-*"))
    assert not (tmp_path / "new").exists()
