"""Networks in other precisions and in wrappers of torch; numbers of NumPy; paths in sections of a recipe."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel

import iformer
from iformer.config.preprocessing import Preprocessing
from iformer.config.variants import VARIANTS
from iformer.errors import UserError, WeightsError
from iformer.models.backbone import Backbone
from iformer.models.classifier import Classifier
from tiny.dense import light_detector, light_segmenter, rcnn, semantic_fpn
from tiny.networks import labelled_classifier, randomize, tiny_config, tiny_variant

NETWORKS: dict[str, Callable[[], Any]] = {
    "classifier": labelled_classifier,
    "light detector": light_detector,
    "Mask R-CNN": rcnn,
    "light segmenter": light_segmenter,
    "Semantic FPN": semantic_fpn,
}


def known() -> Classifier:
    """Return a classifier of the classes of `images`."""
    network = labelled_classifier()
    network.reset_classifier(3)
    torch.manual_seed(0)
    randomize(network)
    network.metadata = replace(network.metadata, class_names=("blue", "green", "red"))
    return network.eval()


def compiled(network: nn.Module) -> Any:
    return torch.compile(network, backend="eager")


def compiled_in_place(network: nn.Module) -> nn.Module:
    network.compile(backend="eager")
    return network


def distributed(network: nn.Module) -> nn.Module:
    """Return the network in DDP, without a process group, as an unpickled one is."""
    wrapper = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapper)
    wrapper.module = network
    return wrapper


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "compile": compiled,
    "compile in place": compiled_in_place,
    "DataParallel": nn.DataParallel,
    "DDP": distributed,
    "compile in DDP": lambda network: distributed(compiled(network)),
    "average": AveragedModel,
}


def answers(network: Any, images: list[Path]) -> list[Any]:
    return [answer.answers for answer in iformer.predict(network, images, device="cpu")]


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_answer_like_fp32(kind: str, dtype: torch.dtype, photographs: list[Path]) -> None:
    network = NETWORKS[kind]().to(dtype)
    expected = answers(NETWORKS[kind]().to(dtype).float(), photographs[:2])
    with pytest.warns(
        UserWarning, match=f"weights in {str(dtype).removeprefix('torch.')}; a copy in fp32 is used"
    ):
        found = answers(network, photographs[:2])
    assert found == expected
    assert {parameter.dtype for parameter in network.parameters()} == {dtype}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_evaluated_saved_and_folded(dtype: torch.dtype, images: Path, tmp_path: Path) -> None:
    network, expected = known().to(dtype), known().to(dtype).float()
    with pytest.warns(UserWarning, match="a copy in fp32 is used"):
        found = iformer.evaluate(network, images, workers=0, device="cpu")
    assert found.metrics["loss"] == iformer.evaluate(expected, images, workers=0, device="cpu").metrics["loss"]
    iformer.save(network, tmp_path / "net.safetensors")
    again = iformer.load(tmp_path / "net.safetensors")
    assert same(again.state_dict(), expected.state_dict())
    x = torch.rand(1, 3, 64, 64, dtype=dtype)
    with torch.no_grad():
        folded = iformer.fold(network)(x)
        assert folded.dtype == dtype
        torch.testing.assert_close(folded.float(), expected(x.float()), atol=0.05, rtol=0.05)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_pruned_network_in_training_answers(photographs: list[Path]) -> None:
    network = labelled_classifier()
    prune.l1_unstructured(network.stem.conv1.conv, "weight", amount=0.5)
    expected = answers(network, photographs[:2])
    network = labelled_classifier()
    prune.l1_unstructured(network.stem.conv1.conv, "weight", amount=0.5)
    assert answers(network.train(), photographs[:2]) == expected


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_wrappers_are_removed(wrap: str, images: Path, photographs: list[Path], tmp_path: Path) -> None:
    plain, wrapped = known(), WRAPPERS[wrap](known())
    assert answers(wrapped, photographs[:2]) == answers(plain, photographs[:2])
    top1 = iformer.evaluate(plain, images, workers=0, device="cpu").metrics
    assert iformer.evaluate(wrapped, images, workers=0, device="cpu").metrics["top1"] == top1["top1"]
    iformer.save(wrapped, tmp_path / "net.safetensors")
    assert same(iformer.load(tmp_path / "net.safetensors").state_dict(), plain.state_dict())
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(iformer.fold(wrapped)(x), plain(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param("half", marks=pytest.mark.sweep),
        *(pytest.param(name, marks=pytest.mark.full) for name in WRAPPERS),
    ],
)
def test_every_form_is_exported(change: str, photographs: list[Path], tmp_path: Path) -> None:
    network = labelled_classifier()
    network = network.half() if change == "half" else WRAPPERS[change](network)
    lines: list[str] = []
    artifact = iformer.export(network, out=tmp_path / "net.onnx", images=photographs[:2], report=lines.append)
    assert artifact.parity is not None
    assert artifact.parity["top1_agreement"] == 1
    assert any("float16" in line for line in lines) == (change == "half")


def test_networks_that_cannot_be_used_are_one_line(photographs: list[Path], tmp_path: Path) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = labelled_classifier()  # it may compute anything, so it is not removed

    pruned = labelled_classifier()
    prune.l1_unstructured(pruned.stem.conv1.conv, "weight", amount=0.5)
    with torch.device("meta"):
        empty = Classifier(labelled_classifier().config)
    quantized = torch.ao.quantization.quantize_dynamic(labelled_classifier(), {nn.Linear})
    file = tmp_path / "net.safetensors"
    for network, message in (
        (quantized, "the network has quantized layers"),
        (Own(), "Own is not a network of this package"),
        (torch.jit.trace(labelled_classifier(), torch.rand(1, 3, 64, 64)), "is not a network of this package"),
        (empty, "the network is on the meta device and has no weights"),
    ):
        with pytest.raises(UserError, match=message):
            iformer.predict(network, photographs[0])
        with pytest.raises(UserError, match=message):
            iformer.export(network, out=tmp_path / "net.onnx")
    with pytest.raises(UserError, match="the network has quantized layers"):
        iformer.fold(quantized)
    for network, message in (
        (quantized, "the network has quantized layers"),
        (Own(), "save takes an iFormer network; got Own; pass the network inside it"),
        (empty, "the network is on the meta device and has no weights"),
    ):
        with pytest.raises(UserError, match=message):
            iformer.save(network, file)
    given: Any
    for given, message in (
        ({"path": None}, "path is None; expected a text or a path"),
        ({"path": file, "dtype": "float16"}, "dtype is 'float16'; expected one of None, torch.float16"),
        ({"path": file, "dtype": torch.int8}, r"dtype is torch\.int8; expected one of None, torch\.float16"),
    ):
        with pytest.raises(UserError, match=message):
            iformer.save(labelled_classifier(), **given)
    with pytest.raises(UserError, match=r"entry is for names; give it to iformer\.load"):
        iformer.predict(labelled_classifier(), photographs[0], entry="model_ema")
    for network in (Classifier(tiny_config(num_classes=0)), Backbone(tiny_config())):
        with pytest.raises(
            UserError, match=f"the {type(network).__name__} tiny has no classes; give a classifier"
        ):
            iformer.predict(network, photographs[0])
    for indices in ("12", [0.5], np.array([0.5])):
        with pytest.raises(UserError, match=r"out_indices is .*; expected whole numbers, some of 0 to 3"):
            iformer.create_model("iformer_t", features_only=True, out_indices=indices)  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match=r"do not fit tiny: 1 missing: stem\.conv1\.conv\.weight; 2 unexpected"):
        iformer.save(pruned, file)
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_numpy_and_paths_in_a_recipe(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VARIANTS, "iformer_tiny", tiny_variant())
    weights = tmp_path / "net.safetensors"
    teacher = iformer.create_model("iformer_tiny", num_classes=np.int64(3), drop_path_rate=np.float32(0.0))
    names: Any = tuple(np.unique(["red", "green", "blue"]))
    preprocessing = Preprocessing(size=(np.int64(64), 64), mean=tuple(np.full(3, 0.5, np.float32)))  # type: ignore[arg-type]
    iformer.save(
        teacher, weights, class_names=names, preprocessing=preprocessing, metrics={"top1": np.float32(50.0)}
    )
    metadata = iformer.load(weights).metadata
    iformer.save(
        teacher, weights, class_names=list(names), preprocessing=preprocessing.to_plain(), metrics={"top1": 50}
    )
    assert replace(iformer.load(weights).metadata, metrics=metadata.metrics) == metadata
    maps = iformer.load(weights, features_only=True, out_indices=np.array([1, -1]))
    assert maps.out_indices == (1, 3)
    assert metadata.class_names == ("blue", "green", "red")
    assert metadata.metrics == {"top1": 50.0}
    assert metadata.preprocessing == replace(Preprocessing(size=(64, 64)), mean=(0.5, 0.5, 0.5))
    data = tmp_path / "flat"
    data.symlink_to(images / "train")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few images
        run = iformer.train(
            np.str_(data),
            out=tmp_path / "run",
            model="iformer_tiny",
            weights="none",
            epochs=np.int64(1),
            lr=np.float32(0.125),
            size=torch.tensor(64),
            batch_size=np.uint8(8),
            workers=np.int16(0),
            val_split=np.float32(0.25),
            classes=list(names),
            device="cpu",
            tensorboard=np.bool_(False),
            augment={"hflip": np.float64(0.0)},
            distillation={"teacher": weights, "loss": "hard"},
        )
    stored = yaml.safe_load(run.paths.config.read_text())
    assert stored["val_split"] == 0.25
    assert stored["recipe"]["epochs"] == 1
    assert stored["recipe"]["lr"] == 0.125
    assert stored["recipe"]["augment"]["hflip"] == 0.0
    assert stored["recipe"]["distillation"]["teacher"] == str(weights)
    assert iformer.evaluate(run, data, batch_size=np.int64(4), workers=np.int64(0)).metrics["images"] == 12
