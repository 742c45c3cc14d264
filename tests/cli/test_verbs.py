"""The command line: help, exit codes, errors of one line, and the verbs that need no training."""

from __future__ import annotations

import errno
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from iformer import save
from iformer.cli import doctor as doctor_verb
from iformer.cli import output
from iformer.cli.main import VERBS, build_app, main
from iformer.config.metadata import Metadata
from iformer.config.preprocessing import Preprocessing
from iformer.config.variants import list_models, listed_counts
from iformer.errors import UserError, WeightsError
from iformer.models.classifier import Classifier
from iformer.models.weights import resolve as shipped
from tiny.networks import randomize, tiny_config


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    model = Classifier(tiny_config())
    randomize(model)
    path = tmp_path / "tiny.safetensors"
    metadata = Metadata(
        class_names=("ant", "bee", "cat", "dog", "elk"), preprocessing=Preprocessing(size=(64, 64))
    )
    model.metadata = metadata
    save(model, path, metrics={"top1": 91.25}, provenance={"command": "iformer train"})
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three photographs, an empty file and a text, all named .png."""
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(3):
        Image.fromarray(generator.integers(0, 255, (70, 80, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("not an image")
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line."""
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def only_line(text: str) -> str:
    """The one line that was said."""
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    return lines[0]


# ------------------------------------------------------------------------------- the command line itself


def test_help_and_info_list_without_importing_torch() -> None:
    code = (
        "import sys; from iformer.cli.main import main; main(['--help']); main(['info']); "
        "print([m for m in ('torch', 'timm', 'matplotlib', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]"), done.stdout
    assert all(verb in done.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_json_and_debug(verb: str) -> None:
    result = CliRunner().invoke(build_app(), [verb, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0
    assert "--json" in result.output
    assert "--debug" in result.output


@pytest.mark.parametrize(
    ("words", "completed"), [("iformer pre", ["pretrain", "predict"]), ("iformer train --ep", ["--epochs"])]
)
def test_the_shell_completes_verbs_and_options(
    words: str, completed: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_IFORMER_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    with pytest.raises(SystemExit):
        main([])
    assert capsys.readouterr().out.split() == completed


def test_completion_installs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shellingham.detect_shell", lambda: ("bash", "/bin/bash"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SystemExit) as stop:
        main(["--install-completion"])
    assert not stop.value.code
    assert str(tmp_path / ".bash_completions" / "iformer.sh") in (tmp_path / ".bashrc").read_text()
    assert "complete" in (tmp_path / ".bash_completions" / "iformer.sh").read_text()
    monkeypatch.setenv("HOME", str(tmp_path / ".bashrc" / "none"))
    capsys.readouterr()
    assert main(["--install-completion"]) == 1
    assert only_line(capsys.readouterr().err).startswith("error: ")


@pytest.mark.parametrize(
    ("verb", "common", "rare"), [("train", "--epochs", "--seed"), ("export", "--to", "--opset")]
)
def test_help_all_shows_the_rare_options_too(verb: str, common: str, rare: str) -> None:
    app, wide = build_app(), {"COLUMNS": "100", "TERM": "dumb"}
    short, whole, again = (
        CliRunner().invoke(app, [verb, flag], env=wide).output for flag in ("--help", "--help-all", "--help")
    )
    assert common in short
    assert rare not in short
    assert "--help-all shows" in short
    assert len(short.splitlines()) <= 66
    assert common in whole
    assert rare in whole
    assert again == short


def test_python_m_iformer() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "iformer", "info", "iformer_q"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "did you mean" in only_line(done.stderr)


def test_version_and_no_verb(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--version")
    assert code == 0
    assert out.startswith("iformer ")
    code, out, _ = run(capsys)
    assert code == 0
    assert "predict" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["predct"], "predict"),
        (["info", "--sise", "3"], "--sise"),
        (["predict"], "IMAGES"),
        (["predict", "x.png", "--top-k", "0"], "--top-k"),
        (["predict", "x.png", "--top-k", "many"], "--top-k"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert said in only_line(err)
    assert "--help" in err


@pytest.mark.parametrize("spelling", [["--part", "all"], ["--part=all"]])
def test_an_old_spelling_of_an_option_is_taken_with_a_note(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, spelling: list[str]
) -> None:
    code, _, err = run(capsys, "eval", checkpoint, "--data", "nowhere", *spelling)
    assert code == 1
    note, error = err.splitlines()
    assert note == "note: --part is now --split"
    assert "nowhere" in error
    code, _, err = run(capsys, "info", *spelling)
    assert code == 2, "a verb without --split has no --part either"
    assert "--part" in only_line(err)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("two\nlines"), "error: two lines"),
        (OSError(errno.ENOSPC, "No space left on device", "out/x"), "error: No space left on device: out/x"),
        (MemoryError(), "error: out of memory"),
        (
            RuntimeError("what"),
            "internal error: RuntimeError: what; run again with --debug for the traceback",
        ),
    ],
)
def test_errors_are_one_line(capsys: pytest.CaptureFixture[str], error: Exception, line: str) -> None:
    assert output.report_error(error) == 1
    assert only_line(capsys.readouterr().err) == line


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"batch_size": None, "size": None}, "; a smaller --batch-size or --size needs less"),
        ({"batch": None, "json": False}, "; a smaller --batch needs less"),
        ({"half": False}, ""),
    ],
)
def test_a_lack_of_memory_names_options_that_the_verb_has(
    capsys: pytest.CaptureFixture[str], options: dict[str, Any], hint: str
) -> None:
    def verb(**options: Any) -> None:
        raise MemoryError

    with pytest.raises(typer.Exit):
        output.with_clear_errors(verb)(**options)
    assert only_line(capsys.readouterr().err) == f"error: out of memory{hint}"


def test_debug_shows_the_traceback_and_ctrl_c_is_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = run(capsys, "info", "nothing", "--debug")
    assert code == 1
    assert "Traceback" in err
    assert err.strip().splitlines()[-1].startswith("error: unknown model 'nothing'")

    def interrupted() -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor_verb, "_machine", interrupted)
    code, _, err = run(capsys, "doctor")
    assert code == 130
    assert only_line(err) == "interrupted"


# ------------------------------------------------------------------------------------------------- info


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


# ----------------------------------------------------------------------------------------------- doctor


def test_doctor_names_what_is_missing_and_how_to_get_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "onnxruntime" else find(name, *rest)
    )
    code, out, _ = run(capsys, "doctor", "--json")
    assert code == 0
    findings = json.loads(out)
    onnx = next(part for part in findings["parts"] if part["name"] == "onnx")
    assert onnx["missing"] == ["onnxruntime"]
    assert onnx["install"] == "pip install 'iformer[onnx]'"
    assert findings["hub"] is None, "the network is asked only with --online"
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    assert "pip install 'iformer[onnx]'" in " ".join(out.split())


def test_doctor_online_says_when_the_hub_does_not_answer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    code, out, _ = run(capsys, "doctor", "--online", "--json")
    assert code == 0
    hub = json.loads(out)["hub"]
    assert hub["reachable"] is False
    assert hub["reason"]


# ---------------------------------------------------------------------------------------------- predict


def test_predict_names_what_is_broken_and_predicts_the_rest(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, images: Path, tmp_path: Path
) -> None:
    out_folder = tmp_path / "out"
    code, out, err = run(
        capsys,
        "predict",
        images,
        "--weights",
        checkpoint,
        "--json",
        "--top-k",
        "2",
        "--out",
        out_folder,
        "--explain",
    )
    assert code == 1, "two files could not be read"
    records = [json.loads(line) for line in out.splitlines()]
    assert [Path(record["file"]).name for record in records] == [
        "0.png",
        "1.png",
        "2.png",
        "empty.png",
        "text.png",
    ]
    for record in records[:3]:
        assert len(record["classes"]) == 2
        assert record["classes"][0]["probability"] >= record["classes"][1]["probability"]
    assert all("error" in record for record in records[3:])
    assert sum(line.startswith("error: ") for line in err.splitlines()) == 2
    assert {path.name for path in out_folder.iterdir()} == {"predict.png", "explain.png", "predictions.jsonl"}
    written = [json.loads(line) for line in (out_folder / "predictions.jsonl").read_text().splitlines()]
    assert written == records


def test_predict_prints_lines_and_succeeds_on_good_images(
    capsys: pytest.CaptureFixture[str],
    checkpoint: Path,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, "predict", f"{images}/[0-9].png", "--weights", "tiny.safetensors")
    assert code == 0
    assert len(out.splitlines()) == 3
    assert (tmp_path / "predictions" / "predict.png").exists()
    # once more on the folder above: the pictures of the first run are not its photographs
    code, out, _ = run(capsys, "predict", "predictions", str(images / "0.png"), "--weights", "tiny.safetensors")
    assert code == 0
    assert len(out.splitlines()) == 1


def test_predict_with_json_writes_nothing_unasked(
    capsys: pytest.CaptureFixture[str],
    checkpoint: Path,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    code, _, _ = run(capsys, "predict", images / "0.png", "--weights", checkpoint, "--json")
    assert code == 0
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nofolder"], "no such file or folder"),
        (["{images}/*.tiff"], "no image or video matches"),
        (["{images}/0.png", "--weights", "iformer_tt"], "did you mean iformer_t"),
        (["{images}/0.png", "--weights", "{images}/none.safetensors"], "none.safetensors does not exist"),
        (["{images}/0.png", "--weights", "{images}/text.png"], "text.png"),
        (["{images}/0.png", "--out", "{images}/text.png/below"], "text.png"),
        (["{images}/0.png", "--device", "toaster"], "device is 'toaster'; this machine has cpu"),
    ],
)
def test_predict_errors_are_one_line(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, images: Path, arguments: list[str], said: str
) -> None:
    given = [argument.format(images=images) for argument in arguments]
    if "--weights" not in given:
        given += ["--weights", str(checkpoint)]
    code, out, err = run(capsys, "predict", *given, "--json")
    assert code == 1
    assert said in only_line(err)
    assert not out


def test_predict_without_weights_and_hub_names_the_shipped_network(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(name: str, revision: str | None = None) -> Path:
        raise WeightsError(f"cannot fetch timm/{name}.in1k")

    monkeypatch.setattr("iformer.models.weights.hub.fetch_released", unreachable)
    monkeypatch.setattr(shipped, "shipped_checkpoints", lambda: {"elpv": checkpoint})
    code, _, err = run(capsys, "predict", images / "0.png", "--json")
    assert code == 1
    line = only_line(err)
    assert "cannot fetch timm/iformer_m.in1k" in line
    assert "--weights elpv" in line
    code, out, _ = run(capsys, "predict", images / "0.png", "--json", "--weights", "elpv")
    assert code == 0
    assert len(json.loads(out)["classes"]) == 5


def test_a_backbone_without_classes_cannot_predict(
    capsys: pytest.CaptureFixture[str],
    images: Path,
    tmp_path: Path,
) -> None:
    path = tmp_path / "backbone.safetensors"
    save(Classifier(tiny_config(num_classes=0)), path)
    code, _, err = run(capsys, "predict", images / "0.png", "--weights", path, "--json")
    assert code == 1
    assert "a classifier is needed" in only_line(err)


# ----------------------------------------------------------------------------------- export, quickstart


def test_export_writes_an_artifact_and_says_how_it_was_checked(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, images: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "exported" / "net.onnx"
    code, out, _ = run(
        capsys, "export", checkpoint, "--to", "onnx", "--out", path, "--images", f"{images}/[0-9].png", "--json"
    )
    assert code == 0
    said = json.loads(out)
    assert said["parity"]["images"] - said["parity"]["generated_images"] == 3
    assert said["class_names"] == ["ant", "bee", "cat", "dog", "elk"]
    assert sorted(file.name for file in path.parent.iterdir()) == ["net.onnx", "net.onnx.json"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "onxx"], "did you mean onnx"),
        (["--batch", "some"], "--batch is 'some'"),
        (["--size", "8"], "32 pixels or more"),
        (["--images", "nowhere"], "no such file or folder"),
        (["--precision", "int2"], "ONNX Runtime supports fp32"),
        (["--to", "litert", "--batch", "dynamic"], "LiteRT takes a fixed number of images"),
        (["--to", "openvino"], "artifacts of OpenVINO end with .openvino"),
    ],
)
def test_export_errors_are_one_line_and_leave_nothing(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    folder = tmp_path / "exported"
    code, _, err = run(capsys, "export", checkpoint, "--out", folder / "net.onnx", *arguments)
    assert code == 1
    assert said in only_line(err)
    assert not folder.exists()


def test_export_to_several_runtimes_and_back_by_the_other_verbs(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, images: Path, tmp_path: Path
) -> None:
    """Artifacts answer as their checkpoint does, in prediction and by the same metric."""
    for module in ("onnxruntime", "ncnn", "pnnx", "torchmetrics"):
        pytest.importorskip(module)
    folder = tmp_path / "exported"
    code, out, _ = run(capsys, "export", checkpoint, "--to", "onnx,ncnn", "--out", folder, "--json")
    assert code == 0
    said = [json.loads(line) for line in out.splitlines()]
    assert [(Path(one["artifact"]).name, one["status"]) for one in said] == [
        ("tiny.onnx", "run here"),
        ("tiny.ncnn", "run here"),
    ]
    data = tmp_path / "data"
    generator = np.random.default_rng(1)
    for name in ("ant", "bee", "cat", "dog", "elk"):
        (data / name).mkdir(parents=True)
        for index in range(2):
            pixels = generator.integers(0, 255, (70, 80, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(data / name / f"{index}.png")
    answers, metrics = [], []
    for network in (checkpoint, folder / "tiny.onnx", folder / "tiny.ncnn"):
        code, out, err = run(capsys, "predict", images / "0.png", "--weights", network, "--json")
        assert code == 0, err
        answers.append({entry["name"]: entry["probability"] for entry in json.loads(out)["classes"]})
        code, out, err = run(capsys, "eval", network, "--data", data, "--split", "all", "--workers", "0", "--json")
        assert code == 0, err
        metrics.append(json.loads(out)["metrics"])
    for answer, metric in zip(answers[1:], metrics[1:], strict=True):
        assert answer == pytest.approx(answers[0], abs=1e-4)
        assert metric["images"] == 10
        assert metric["top1"] == metrics[0]["top1"]
        assert metric["loss"] == pytest.approx(metrics[0]["loss"], abs=1e-4)
    code, _, err = run(capsys, "predict", images / "0.png", "--weights", folder / "tiny.onnx", "--explain")
    assert code == 1
    assert "give the checkpoint it was made from" in only_line(err)
    code, _, err = run(capsys, "eval", folder / "tiny.onnx", "--data", data, "--precision", "bf16")
    assert code == 1
    assert "an artifact runs as it was exported" in only_line(err)
    (folder / "tiny.onnx").write_bytes(b"changed")
    code, _, err = run(capsys, "eval", folder / "tiny.onnx", "--data", data)
    assert code == 1
    assert "was changed after its export" in only_line(err)


def test_one_failing_export_of_several_does_not_stop_the_others(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("onnxruntime", "openvino"):
        pytest.importorskip(module)
    from iformer.deploy.runtimes import onnx as onnx_module

    def broken(*_: object) -> None:
        raise RuntimeError("a converter's own kind of error\nwith more lines")

    monkeypatch.setattr(onnx_module, "write", broken)
    code, out, err = run(
        capsys, "export", checkpoint, "--to", "onnx,openvino", "--out", tmp_path / "new", "--batch", "2", "--json"
    )
    assert code == 1
    assert json.loads(out)["runtime"] == "openvino"
    assert "error: the conversion for ONNX Runtime failed: a converter's own kind of error" in err.splitlines()
    assert "1 of 2 exports failed" in err
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["tiny.openvino", "tiny.openvino.json"]


def test_quickstart_says_up_front_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "elpv_dataset" else find(name, *rest)
    )
    code, _, err = run(capsys, "quickstart", "--out", tmp_path / "q")
    assert code == 1
    assert only_line(err) == "error: quickstart needs elpv_dataset; run: pip install 'iformer[train,elpv,onnx]'"
    assert not (tmp_path / "q").exists()


def test_quickstart_leaves_an_earlier_one_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "q" / "run").mkdir(parents=True)
    (tmp_path / "q" / "run" / "config.yaml").write_text("recipe: {}")
    code, _, err = run(capsys, "quickstart", "--out", tmp_path / "q")
    assert code == 1
    assert "give --overwrite to replace it" in only_line(err)


@pytest.mark.sweep
def test_quickstart_from_photographs_to_report(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for module in ("elpv_dataset", "onnxruntime", "accelerate"):
        pytest.importorskip(module)
    threads = torch.get_num_threads()
    folder = tmp_path / "q"
    code, out, _ = run(capsys, "quickstart", "--out", folder, "--epochs", "1", "--limit", "16", "--json")
    assert torch.get_num_threads() == threads
    assert code == 0
    said = json.loads(out)
    assert said["metrics"]["images"] == 16
    assert said["parity"]["max_relative_error"] < 1e-3
    assert set(said["timings"]) == {"PyTorch", "PyTorch, folded", "ONNX Runtime"}
    report = (folder / "report.md").read_text()
    for picture in ("predict.png", "explain.png", "run/curves.png", "run/confusion.png"):
        assert f"]({picture})" in report
        assert (folder / picture).exists()


def test_info_of_a_folder_of_annotations_says_what_reads_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "annotations.json").write_text('{"images": [], "annotations": [], "categories": []}')
    assert main(["info", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "holds no tar shards: it is a data set in the format of COCO. iformer train --task detect" in error


def test_resume_in_a_folder_without_a_run_names_near_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    assert main(["train", "--resume", "--out", str(tmp_path / "mime")]) == 1
    error = capsys.readouterr().err
    assert "mime holds no run to resume; check --out, or give --data to start one there; did you mean" in error
