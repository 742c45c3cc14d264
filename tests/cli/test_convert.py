"""`iformer convert` on the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from timm.models.iformer import checkpoint_filter_fn

from iformer import create_model, load, save
from iformer.cli.main import main
from iformer.config.preprocessing import Preprocessing
from iformer.errors import WeightsError
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
    assert said.count("\n") == 2
    assert "iformer_t, 2 classes" in said
    assert "with class names" in said
    assert load(ours).metadata.class_names == ("functional", "defect")
    assert main(["convert", str(ours), str(back), "--to", "authors", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["format"] == "authors"
    assert done["source_format"] == "iformer"
    assert done["class_names_written"] is True
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


PREPROCESSING = Preprocessing(
    size=(96, 80), crop_pct=1.0, interpolation="bilinear", mean=(0.5, 0.25, 0.125), std=(0.3, 0.2, 0.1)
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose metadata differ from the defaults in every field."""
    path = tmp_path_factory.mktemp("trained") / "t.safetensors"
    model = create_model("iformer_t", num_classes=2, drop_path_rate=0.1)
    save(
        model,
        path,
        class_names=("functional", "defect"),
        multi_label=True,
        preprocessing=PREPROCESSING,
        metrics={"map": 71.5, "threshold": 0.4},
    )
    return path


@pytest.mark.parametrize(("to", "file"), [("timm", "b.safetensors"), ("timm", "b.pth"), ("authors", "b.pth")])
def test_every_format_keeps_the_whole_network(
    to: str, file: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there, back = tmp_path / file, tmp_path / "back.safetensors"
    assert main(["convert", str(trained), str(there), "--to", to]) == 0
    said = capsys.readouterr()
    whose = {"timm": "timm's", "authors": "the authors'"}[to]
    assert f"images: {PREPROCESSING.describe()}; iformer reads this in the file, {whose} code does not" in said.out
    assert said.err == ""
    assert main(["convert", str(there), str(back), "--to", "iformer", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["preprocessing"] == PREPROCESSING.to_plain()
    assert done["preprocessing_assumed"] is False
    first, last = load(trained), load(back)
    assert last.config == first.config
    assert replace(last.metadata, provenance={}) == replace(first.metadata, provenance={})
    for key, value in first.state_dict().items():
        assert torch.equal(last.state_dict()[key], value)


@pytest.mark.parametrize("to", ["timm", "authors"])
def test_other_code_loads_the_files_as_before(to: str, trained: Path, tmp_path: Path) -> None:
    assert main(["convert", str(trained), str(tmp_path / "b.pth"), "--to", to]) == 0
    for weights_only in (True, False):
        content = torch.load(tmp_path / "b.pth", weights_only=weights_only)
        tensors = content if to == "timm" else content["model"]
        assert all(isinstance(value, torch.Tensor) for value in tensors.values())
    network = timm.create_model("iformer_t", num_classes=2).eval()
    network.load_state_dict(checkpoint_filter_fn(dict(tensors), network))
    if to == "timm":
        network = timm.create_model("iformer_t", num_classes=2, checkpoint_path=str(tmp_path / "b.pth")).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network(x), load(trained)(x), atol=1e-5, rtol=1e-4)


def test_a_description_of_another_network_is_refused(trained: Path, tmp_path: Path) -> None:
    assert main(["convert", str(trained), str(tmp_path / "b.pth"), "--to", "authors"]) == 0
    content = torch.load(tmp_path / "b.pth")
    description = content["model"].iformer
    network = description["network"]
    for wrong, message in (
        ({**description, "network": "{}"}, "description in its header is invalid"),
        ({**description, "network": network.replace('"num_classes": 2', '"num_classes": 3')}, "names"),
        ({**description, "network": network.replace('"in_chans": 3', '"in_chans": 4')}, "another"),
    ):
        content["model"].iformer = wrong
        torch.save(content, tmp_path / "c.pth")
        with pytest.raises(WeightsError, match=message):
            read_weights(tmp_path / "c.pth")
    for ignored in ({"network": 5, "metadata": 5}, "text", None):
        content["model"].iformer = ignored
        torch.save(content, tmp_path / "c.pth")
        assert not read_weights(tmp_path / "c.pth").described


def test_preprocessing_that_a_file_does_not_tell(
    authors_file: Path, tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is assumed with a note, and can be given."""
    out = tmp_path / "t.safetensors"
    arguments = ["convert", str(authors_file), str(out), "--to", "iformer", "--overwrite"]
    assert main(arguments) == 0
    assert "does not say how images are prepared; the defaults are assumed" in capsys.readouterr().err
    assert main(["info", str(authors_file)]) == 0
    assert "(assumed: the file does not say it)" in capsys.readouterr().out
    image = next((images / "val" / "red").iterdir())
    assert main(["predict", str(image), "--weights", str(authors_file), "--device", "cpu"]) == 0
    assert f"assumed: {Preprocessing().describe()}" in capsys.readouterr().err
    given = "{size: [96, 80], crop_pct: 1, interpolation: bilinear}"
    assert main([*arguments, "--preprocessing", given]) == 0
    assert capsys.readouterr().err == ""
    expected = replace(PREPROCESSING, mean=Preprocessing().mean, std=Preprocessing().std)
    assert load(out).metadata.preprocessing == expected
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["preprocessing_assumed"] is True
    for wrong, message in (
        ("{side: 5}", "Preprocessing has no field 'side'"),
        ("{size: 5}", "Preprocessing.size is 5; expected 2 values"),
        ("{mean: [0.5], std: [0.2]}", "its preprocessing is for 1 channel, its network for 3"),
        ("5", "--preprocessing is '5'; expected fields"),
        ("{", "--preprocessing is not YAML"),
    ):
        assert main([*arguments, "--preprocessing", wrong]) == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert message in err
