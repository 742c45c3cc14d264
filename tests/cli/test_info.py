"""`iformer info` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from iformer.cli.main import main
from iformer.config.variants import list_models, listed_counts
from tiny.command_line import only_line, run


def test_info_lists_the_published_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "info", "--json")
    assert code == 0
    networks = {network["name"]: network for network in json.loads(out)["networks"]}
    assert set(networks) == set(list_models())
    medium = networks["iformer_m"]
    assert round(medium["parameters_folded"] / 1e6, 3) == 8.879
    assert round(medium["macs"] / 1e9, 4) == 1.6399
    assert medium["imagenet"] == {"top1": 80.43, "top5": 95.34}
    assert medium["weights"] == "timm/iformer_m.in1k"
    assert networks["iformer_l2"]["weights"] is None
    for name, network in networks.items():  # the table is printed from the rows of the sizes
        assert listed_counts(name) == {key: network[key] for key in ("parameters_folded", "macs")}


def test_info_counts_at_other_sizes_and_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "info", "iformer_t", "--size", "448", "--json")
    assert code == 0
    larger = json.loads(out)["macs"]
    code, out, _ = run(capsys, "info", "iformer_t", "--json")
    assert larger > 4 * json.loads(out)["macs"]
    code, out, _ = run(capsys, "info")
    assert code == 0
    assert "8.879" in out


def test_info_of_a_checkpoint(capsys: pytest.CaptureFixture[str], checkpoint: Path) -> None:
    code, out, _ = run(capsys, "info", checkpoint)
    assert code == 0
    assert "ant, bee, cat, dog, elk" in out
    assert "91.25" in out
    assert "iformer train" in out
    code, out, _ = run(capsys, "info", checkpoint, "--json")
    assert json.loads(out)["metadata"]["preprocessing"]["size"] == [64, 64]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["iformer_mm"], "did you mean iformer_m"),
        (["missing.safetensors"], "missing.safetensors does not exist"),
        (["--size", "12"], "32 pixels or more"),
        (["--size", "wide"], "expected pixels"),
    ],
)
def test_info_errors(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    code, _, err = run(capsys, "info", *arguments)
    assert code == 1
    assert said in only_line(err)


def test_info_of_a_folder_of_annotations_says_what_reads_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "annotations.json").write_text('{"images": [], "annotations": [], "categories": []}')
    assert main(["info", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "holds no tar shards: it is a data set in the format of COCO. iformer train --task detect" in error


def test_info_of_a_folder_of_runs_names_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "best.safetensors").touch()
    assert main(["info", str(tmp_path)]) == 1
    assert "holds the folders of runs: one, two; give one of them" in capsys.readouterr().err
