"""`iformer convert` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from iformer import create_model, load, save
from iformer.cli.main import main
from iformer.models.weights.dialects import to_authors
from iformer.models.weights.read import read_weights


@pytest.fixture(scope="module")
def authors_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("authors") / "iFormer_t.pth"
    model = create_model("iformer_t", num_classes=2)
    torch.save({"model": to_authors(model.state_dict(), model.config)}, path)
    return path


def test_there_and_back(authors_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours, back = tmp_path / "t.safetensors", tmp_path / "t.pth"
    names = tmp_path / "names.txt"
    names.write_text("functional\ndefect\n")
    arguments = ["convert", str(authors_file), str(ours), "--to", "iformer", "--model", "iformer_t"]
    assert main([*arguments, "--class-names", str(names)]) == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "iformer_t, 2 classes" in said
    assert "with class names" in said
    assert load(ours).metadata.class_names == ("functional", "defect")
    assert main(["convert", str(ours), str(back), "--to", "authors", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["format"] == "authors"
    assert done["source_format"] == "iformer"
    assert done["class_names_written"] is False
    before, after = read_weights(authors_file).state_dict, read_weights(back).state_dict
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_half(authors_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.safetensors"
    assert main(["convert", str(authors_file), str(out), "--to", "iformer", "--half"]) == 0
    assert out.stat().st_size < 0.6 * authors_file.stat().st_size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{source}", "{out}", "--to", "iformer", "--model", "iformer_s"], "holds iformer_t, not iformer_s"),
        (
            ["{source}", "{out}", "--to", "iformer", "--model", "iformer_x"],
            "unknown model 'iformer_x'; did you mean",
        ),
        (["{source}", "{out}", "--to", "iformer", "--class-names", "{source}"], "UTF-8"),
        (["{source}", "{out}", "--to", "iformer", "--entry", "ema"], "no state dict 'ema'"),
        (["{source}", "{source}", "--to", "authors"], "--overwrite"),
        (["{source}.none", "{out}", "--to", "iformer"], "does not exist"),
        (["{source}", "{out}/in/none.safetensors", "--to", "iformer"], "does not exist"),
    ],
)
def test_one_line_and_exit_code_1(
    arguments: list[str],
    message: str,
    authors_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = authors_file.read_bytes()
    filled = [text.format(source=authors_file, out=tmp_path / "t.safetensors") for text in arguments]
    assert main(["convert", *filled]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert message in said.err
    assert authors_file.read_bytes() == before
    assert list(tmp_path.iterdir()) == []


def test_a_missing_option_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "a.safetensors", "b.safetensors"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: Missing option '--to'. Choose from: iformer, timm,")


def test_an_unknown_format_is_a_usage_error(
    authors_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(authors_file), str(tmp_path / "t.onnx"), "--to", "onnx"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_older_file_is_replaced_only_when_asked(tmp_path: Path) -> None:
    model = create_model("iformer_t", num_classes=2)
    source, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save(model, source)
    out.write_text("precious")
    arguments = ["convert", str(source), str(out), "--to", "timm"]
    assert main(arguments) == 1
    assert out.read_text() == "precious"
    assert main([*arguments, "--overwrite"]) == 0
    assert read_weights(out).format == "timm"
