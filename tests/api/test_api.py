"""`iformer.train`, `evaluate`, `predict` and `export`: one flow for each task, and every kind of input."""

from __future__ import annotations

import http.server
import io
import pickle
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import iformer
from iformer.cli.main import main
from iformer.config.network import NetworkConfig
from iformer.config.variants import VARIANTS
from iformer.errors import ConfigError, DataError, OutputError, UserError
from iformer.models.classifier import Classifier
from iformer.models.factory import create_model
from iformer.models.segmenter import Segmenter
from iformer.tasks.classification.evaluate import ClassificationEvaluation
from iformer.training.records.run_folder import RunFolder
from tiny.networks import CLASS_NAMES, labelled_classifier, tiny_variant

SMALL: dict[str, Any] = {
    "model": "iformer_tiny",
    "weights": "none",
    "epochs": 1,
    "size": 64,
    "workers": 0,
    "device": "cpu",
    "tensorboard": False,
}


@pytest.fixture
def model() -> Classifier:
    return labelled_classifier()


@pytest.fixture
def tiny_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "iformer_tiny", tiny_variant())


def test_every_public_name_is_listed_and_exists() -> None:
    names = {"train", "evaluate", "predict", "export", "load", "save", "create_model", "fold", "list_models"}
    assert names <= set(dir(iformer))
    assert set(iformer.__all__) <= set(dir(iformer))
    for name in iformer.__all__:
        assert getattr(iformer, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trainer'"):
        iformer.trainer  # noqa: B018


def test_warnings_point_at_the_caller() -> None:
    from iformer.api.train import python_warnings

    with pytest.warns(UserWarning, match="two images") as caught:
        python_warnings(["two images were skipped"])
    assert caught[0].filename == __file__


def test_train_evaluate_and_predict(images: Path, tmp_path: Path, tiny_size: None) -> None:
    run = iformer.train(images, out=tmp_path / "run", batch_size=16, augment={"hflip": 0.0}, **SMALL)
    assert run.recipe.augment.hflip == 0.0  # type: ignore[attr-defined]
    assert run.metrics["images"] == 12
    assert [record["epoch"] for record in run.history] == [1]
    assert isinstance(run.paths, RunFolder)
    for path in (run.paths.last, run.paths.best, run.paths.report, run.paths.metrics, run.paths.log):
        assert path.is_file()
    assert f"{run.metrics['top1']:.2f} %" in repr(run)
    network = iformer.load(run)  # the result stands for its folder
    measured = iformer.evaluate(network, str(images), workers=0)
    assert isinstance(measured, ClassificationEvaluation)
    assert measured.top1 == run.metrics["top1"]
    assert measured.top5 is None
    answers = list(iformer.predict(run, images / "val" / "red"))
    assert [answer.path for answer in answers] == [images / "val" / "red" / f"{n}.png" for n in range(4)]


@pytest.mark.sweep
def test_export_gives_a_checked_artifact_that_answers_alike(
    model: Classifier, images: Path, tmp_path: Path
) -> None:
    artifact = iformer.export(model, to="onnx", out=tmp_path, images=[images / "val" / "red"])
    assert artifact.path == tmp_path / "tiny.onnx"
    assert artifact.parity is not None
    assert artifact.parity["top1_agreement"] == 1
    assert artifact.record.is_file()
    names = [answer.name for answer in iformer.predict(model, images / "val" / "red")]
    assert [answer.name for answer in iformer.predict(artifact, images / "val" / "red")] == names
    several = iformer.export(model, to=["onnx"], out=tmp_path / "several")
    assert [each.path for each in several] == [tmp_path / "several/tiny.onnx"]
    assert isinstance(several[0].info.to_plain(), dict)


def as_is(image: Image.Image, path: Path) -> Any:
    image.save(path)
    return path


KINDS = {
    "path": as_is,
    "text": lambda image, path: str(as_is(image, path)),
    "pil": lambda image, path: image,
    "array": lambda image, path: np.asarray(image),
    "float array": lambda image, path: np.asarray(image) / 255,
    "tensor": lambda image, path: torch.from_numpy(np.array(image)).permute(2, 0, 1),
    "float tensor": lambda image, path: torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255,
    "batch of arrays": lambda image, path: np.asarray(image)[None],
    "generator": lambda image, path: (each for each in [image]),
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_of_image_gives_the_same_answer(kind: str, model: Classifier, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (80, 90, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    model.train()
    (expected,) = iformer.predict(model, as_is(image, tmp_path / "expected.png"))
    (answer,) = iformer.predict(model, KINDS[kind](image, tmp_path / "given.png"))
    assert answer.answers == expected.answers
    assert answer.name in CLASS_NAMES
    assert answer.score == answer.answers[0].score == max(each.score for each in answer.answers)
    assert model.training  # as it was given
    in_memory = kind not in ("path", "text")
    assert (answer.path is None) == in_memory
    assert answer.source == ("image 1" if in_memory else str(tmp_path / "given.png"))


@pytest.mark.parametrize(("batch_size", "ahead"), [(None, 8), (1, 1)])
def test_a_generator_without_end_is_answered_as_it_goes(
    batch_size: int | None, ahead: int, model: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    drawn = 0

    def frames() -> Iterator[Any]:
        nonlocal drawn
        while True:
            drawn += 1
            yield f"missing{drawn}.png" if drawn in range(9, 17) else np.full((64, 64, 3), drawn, np.uint8)

    with closing(iformer.predict(model, frames(), batch_size=batch_size, workers=1)) as answers:
        for number in range(1, 20):
            answer = next(answers)
            assert drawn <= -(-number // ahead) * ahead
            assert len([*tmp_path.rglob("*.png")]) <= 2 * ahead
            if number in range(9, 17):
                assert (answer.source, answer.path) == (f"missing{number}.png", None)
                assert answer.error
            else:
                assert answer.source == f"image {number if number < 9 else number - 8}"
                (alone,) = iformer.predict(model, np.full((64, 64, 3), number, np.uint8))
                assert answer.answers == alone.answers
    assert not any(tmp_path.iterdir())


def test_a_new_head_has_no_old_names_and_metrics(tmp_path: Path) -> None:
    network = iformer.load("elpv")
    assert network.metadata.class_names
    before = network.metadata
    network.reset_classifier(2)
    iformer.save(network, tmp_path / "new.safetensors")
    metadata = iformer.load(tmp_path / "new.safetensors").metadata
    assert (metadata.class_names, metadata.metrics) == ((), {})
    assert (metadata.preprocessing, metadata.provenance) == (before.preprocessing, before.provenance)


def test_parts_of_a_file_that_are_not_used_are_named(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    state = create_model("iformer_t", num_classes=3).state_dict()
    networks = {f"{name}.{key}": value for name in ("student", "teacher") for key, value in state.items()}
    torch.save({"state_dict": networks}, tmp_path / "two.pth")
    list(iformer.predict(tmp_path / "two.pth", np.zeros((64, 64, 3), np.uint8)))
    (note,) = (str(warning.message) for warning in recwarn if "left out" in str(warning.message))
    assert note.startswith(f"{tmp_path / 'two.pth'}: left out teacher.stem")
    assert note.endswith("not part of the network")


def test_a_head_that_was_replaced_by_hand(model: Classifier) -> None:
    model.head.classifier.linear = torch.nn.Linear(model.num_features, 7)
    with pytest.raises(UserError, match=r"has 7 outputs and the names of 5 classes; .* reset_classifier"):
        list(iformer.predict(model, np.zeros((64, 64, 3), np.uint8)))


def test_images_of_an_export_are_files(model: Classifier, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ndarray"):
        iformer.export(model, to="onnx", out=tmp_path / "a.onnx", images=np.zeros((64, 64, 3), np.uint8))


def test_a_working_folder_that_was_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["info", "a.safetensors"]) == 1
    assert capsys.readouterr().err == "error: the working folder was removed; change to another one\n"


def test_a_generator_without_images(model: Classifier) -> None:
    with pytest.raises(DataError, match="no image was given"):
        iformer.predict(model, iter(()))
    (answer,) = iformer.predict(model, (name for name in ["missing.png"]))
    assert "no such file" in str(answer.error)
    with pytest.raises(DataError, match="a camera or stream must be the only source"):
        iformer.predict(model, iter(["rtsp://127.0.0.1/camera"]))


def test_a_folder_for_images_in_memory_that_cannot_be_made(
    model: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(OutputError, match=r"no temporary folder can be made .* set TMPDIR"):
        iformer.predict(model, np.zeros((64, 64, 3), np.uint8))


def test_gray_images_and_images_that_are_none(model: Classifier) -> None:
    gray = np.full((64, 64), 100, np.uint8)
    first, second = iformer.predict(model, [gray, np.repeat(gray[..., None], 3, axis=2)])
    assert first.answers == second.answers
    ones = torch.ones(3, 64, 64)
    whole, half = iformer.predict(model, [ones, ones.bfloat16()])
    assert half.answers == whole.answers
    for wrong, message in (
        (np.zeros((3, 64, 64), np.uint8), r"shape \(3, 64, 64\); expected H x W, or H x W x C"),
        (torch.zeros(64, 64, 3), "expected H x W, or C x H x W"),
        (np.full((8, 8), 2.0), "outside 0 to 1"),
        (np.zeros((8, 8), np.int64), "values of type int64"),
        (3, "int is no image"),
        (b"\x89PNG", r"bytes is no image; .*; PIL\.Image\.open reads an encoded image"),
        (io.BytesIO(b"\x89PNG"), "BytesIO is no image"),
        ([], "no image was given"),
    ):
        with pytest.raises(DataError, match=message):
            iformer.predict(model, wrong)


def test_classifiers_take_no_videos(model: Classifier, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    with pytest.raises(DataError) as caught:
        iformer.predict(model, tmp_path)
    assert str(caught.value) == f"{tmp_path / 'a.mp4'}: only videos were found; classifiers take images"


def test_an_image_in_memory_is_turned_upright_like_its_file(model: Classifier, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 90, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    path = tmp_path / "phone.png"
    Image.fromarray(pixels).save(path, exif=exif)
    from_file, from_memory = iformer.predict(model, [path, Image.open(path)], device="cpu")
    assert from_memory.score == from_file.score


def test_an_image_in_memory_that_is_none_does_not_stop_the_others(model: Classifier) -> None:
    sound = Image.new("RGB", (64, 64), "red")
    closed = Image.new("RGB", (64, 64))
    closed.close()
    meta = torch.empty(3, 64, 64, dtype=torch.uint8, device="meta")
    answers = list(iformer.predict(model, [sound, sound.convert("HSV"), closed, meta, sound], device="cpu"))
    assert {answer.source for answer in answers if answer.error} == {"image 3", "image 4"}
    assert {answer.source for answer in answers if not answer.error} == {"image 1", "image 2", "image 5"}
    nested: list[Any] = []
    nested.append(nested)
    with pytest.raises(DataError, match="nested too deeply"):
        list(iformer.predict(model, nested))
    with pytest.raises(UserError, match="top_k is 0; expected 1 or more"):
        list(iformer.predict(model, sound, top_k=0))


def test_a_missing_file_does_not_stop_the_others(
    model: Classifier, photographs: list[Path], tmp_path: Path
) -> None:
    missing = tmp_path / "missing.png"
    predictions = iformer.predict(model, [missing, photographs[0]], out=tmp_path / "out")
    lost, found = predictions
    assert (lost.error, lost.name, lost.score) == ("no such file or folder", None, None)
    assert repr(lost) == f"Prediction(source={str(missing)!r}, error='no such file or folder')"
    assert "error" not in repr(found)
    assert "box" not in repr(found.answers[0])
    assert found.name is not None
    assert (tmp_path / "out/predictions.jsonl").read_text().count("\n") == 2
    assert any("predict.png" in line for line in predictions.written)
    with pytest.raises(DataError, match=r"missing.png: no such file or folder"):
        iformer.predict(model, missing)
    between = [missing, photographs[0], tmp_path / "gone.png", photographs[1], tmp_path / "lost.png"]
    assert [answer.source for answer in iformer.predict(model, between, device="cpu")] == list(map(str, between))


@pytest.fixture
def server(photographs: list[Path]) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path.startswith("/photo")
            self.send_response(200 if found else 404)
            self.end_headers()
            if found:
                self.wfile.write(photographs[0].read_bytes())

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def test_urls_and_standard_input(
    model: Classifier, photographs: list[Path], server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = io.BytesIO(photographs[0].read_bytes())
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=contents))
    sources = [photographs[0], f"{server}/photo.jpg?size=1", f"{server}/none.jpg", "-"]
    answers = {answer.source: answer for answer in iformer.predict(model, sources, out=tmp_path / "out")}
    assert list(answers) == [str(source) for source in sources]
    assert "cannot be fetched" in str(answers[f"{server}/none.jpg"].error)
    first = answers[str(photographs[0])].answers
    assert answers["-"].answers == answers[f"{server}/photo.jpg?size=1"].answers == first
    assert answers[f"{server}/photo.jpg?size=1"].path == tmp_path / "out/inputs/photo.jpg"


def test_mistakes_are_one_line(model: Classifier, images: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean epochs"):
        iformer.train(images, out=tmp_path / "run", epochss=3)
    with pytest.raises(UserError, match="Linear is not a network of this package"):
        iformer.evaluate(torch.nn.Linear(2, 2), images)
    with pytest.raises(UserError, match=r"--precision int8 needs --calibration"):
        iformer.export(model, to="onnx", precision="int8")
    with pytest.raises(UserError, match=r"give them to iformer\.load"):
        iformer.export(model, to="onnx", attention="hybrid")
    with pytest.raises(UserError, match="--min-score is not for classifiers"):
        iformer.predict(model, np.zeros((64, 64, 3), np.uint8), min_score=0.5)
    assert not (tmp_path / "run").exists()


def test_arguments_that_are_none(model: Classifier, images: Path, tmp_path: Path) -> None:
    calls: list[tuple[Any, str]] = [
        (lambda: iformer.evaluate(model, images, split="x"), "split is 'x'; expected val, train, all"),
        (lambda: iformer.evaluate(model, images, batch_size=0), "batch_size is 0; expected 1 or more"),
        (lambda: iformer.evaluate(model, images, precision="x"), "precision is 'x'; expected fp32, bf16"),
        (lambda: iformer.export(model, to=[]), "no runtime is given"),
        (lambda: iformer.export(model, batch=True), "batch is True; expected a whole number"),
        (lambda: iformer.export(model, calibration_images=-1), "calibration_images is -1"),
        (lambda: iformer.export(torch.nn.Linear(1, 1)), "Linear is not a network of this package"),
        (lambda: iformer.train(images, out=tmp_path / "run", classes="red"), "classes is 'red'; expected a list"),
    ]
    for call, message in calls:
        with pytest.raises(UserError, match=message):
            call()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_detection_and_segmentation(shapes_data: Path, tmp_path: Path, tiny_size: None, task: str) -> None:
    fields = {
        "max_size": 96,
        "fpn_channels": 16,
        "batch_size": 4,
        **({"proposals": 16} if task == "detect" else {}),
    }
    recipe = {"detect": "detection", "segment": "segmentation"}[task]
    run = iformer.train(shapes_data, out=tmp_path / "run", recipe=recipe, settings=fields, **SMALL)
    measured: Any = iformer.evaluate(run, shapes_data, workers=0)
    name = {"detect": "box_ap", "segment": "miou"}[task]
    assert getattr(measured, name) == measured.metrics[name]
    files = sorted((shapes_data / "images/val").iterdir())[:2]
    options = {"min_score": 0.001} if task == "detect" else {}
    for answer in iformer.predict(run, files, **options):  # type: ignore[arg-type]
        with Image.open(str(answer.path)) as image:
            side = (image.height, image.width)
        if task == "segment":
            assert answer.masks is not None
            assert answer.masks.shape == side
            assert sum(each.score for each in answer.answers) == pytest.approx(1, abs=1e-3)
        else:
            assert all(each.box is not None for each in answer.answers)
            assert (answer.masks is None) == (not answer.answers)
            assert answer.masks is None or answer.masks.shape == (len(answer.answers), *side)
    network = iformer.load(run)
    assert isinstance(network, Segmenter) == (task == "segment")
    if task == "detect":
        with pytest.raises(UserError, match="cannot be exported to OpenVINO: the number of regions"):
            iformer.export(run, to="openvino", out=tmp_path)


def test_masks_belong_to_their_image(tiny_backbone_config: NetworkConfig, tmp_path: Path) -> None:
    """A picture in two halves: the class map of a segmenter is that of `answer`."""
    from iformer.config.segmenter import SegmenterConfig
    from iformer.tasks.segmentation.predict import SegmentationPredictor

    torch.manual_seed(0)
    config = SegmenterConfig(
        backbone=tiny_backbone_config, num_classes=3, size=64, max_size=96, fpn_channels=16, head_channels=32
    )
    network = Segmenter(config).eval()
    images = [
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (64, 80, 3), dtype=np.uint8))
        for seed in range(2)
    ]
    expected = [SegmentationPredictor(network).answer(image) for image in images]
    for answer, classes in zip(iformer.predict(network, images), expected, strict=True):
        assert np.array_equal(answer.masks, classes)  # type: ignore[arg-type]
        copied = pickle.loads(pickle.dumps(answer))  # as a worker process returns it
        assert copied == answer
        assert np.array_equal(copied.masks, classes)


def test_answers_can_be_pickled(model: Classifier) -> None:
    from tiny.dense import rcnn

    image = np.zeros((64, 80, 3), np.uint8)
    for network, masks in ((model, False), (rcnn(), True)):
        (answer,) = iformer.predict(network, image, **({"min_score": 0.0} if masks else {}))
        copied = pickle.loads(pickle.dumps(answer))
        assert copied == answer
        assert (copied.masks is not None) == masks
        assert not masks or np.array_equal(copied.masks, answer.masks)
