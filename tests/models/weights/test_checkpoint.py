"""Checkpoints: weights and metadata are read as written; errors for files that cannot be read."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import stat
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import iformer
from iformer.config.metadata import Metadata
from iformer.config.network import NetworkConfig
from iformer.config.preprocessing import Preprocessing
from iformer.errors import ConfigError, OutputError, UserError, WeightsError
from iformer.models.backbone import Backbone
from iformer.models.classifier import Classifier
from iformer.models.factory import build
from iformer.models.weights.checkpoint import save
from iformer.models.weights.read import read_weights
from iformer.models.weights.resolve import load
from tiny.networks import randomize, tiny_config

NAMES = ("ant", "bee", "cat", "dog", "elk")


@pytest.fixture
def model() -> Classifier:
    network = build(tiny_config())
    randomize(network)
    network.train()
    network(torch.randn(2, 3, 64, 64))  # counters other than 0
    assert isinstance(network, Classifier)
    return network


@pytest.fixture
def checkpoint(model: Classifier, tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    save(model, path, class_names=NAMES)
    return path


def same_tensors(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return list(left) == list(right) and all(torch.equal(left[key], right[key]) for key in left)


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def rewrite_header(path: Path, **strings: str) -> None:
    with safe_open(path, framework="pt") as file:
        header = dict(file.metadata()) | strings
    save_file(load_file(path), path, header)


def test_round_trip_keeps_every_bit_and_all_metadata(model: Classifier, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    model.metadata = Metadata(provenance={"command": "train"})
    preprocessing = Preprocessing(size=(64, 96))
    save(model, path, class_names=NAMES, preprocessing=preprocessing, metrics={"top1": 91.25})
    loaded = load(path)
    assert isinstance(loaded, Classifier)
    assert same_tensors(model, loaded)
    assert loaded.config == model.config
    assert loaded.metadata == Metadata(
        class_names=NAMES,
        preprocessing=preprocessing,
        metrics={"top1": 91.25},
        provenance={"command": "train"},
    )
    read = read_weights(path)
    assert (read.config, read.metadata) == (loaded.config, loaded.metadata)
    assert loaded.state_dict()["stem.conv1.norm.num_batches_tracked"].dtype == torch.int64
    assert loaded.state_dict()["stem.conv1.norm.num_batches_tracked"] == 1


def test_a_loaded_network_is_in_eval_mode_and_can_be_trained(checkpoint: Path) -> None:
    loaded = load(checkpoint)
    assert not any(module.training for module in loaded.modules())
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in loaded.parameters())
    loaded.train()(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())


def test_the_header_is_as_documented(model: Classifier, checkpoint: Path) -> None:
    with safe_open(checkpoint, framework="pt") as file:
        header = file.metadata()
    assert set(header) == {"format", "network", "metadata"}
    assert header["format"] == "iformer-1"
    assert NetworkConfig.from_plain(json.loads(header["network"])) == model.config
    assert json.loads(header["metadata"])["class_names"] == list(NAMES)


def test_a_loaded_network_does_not_change_when_its_file_does(checkpoint: Path) -> None:
    loaded = load(checkpoint)
    before = {key: value.clone() for key, value in loaded.state_dict().items()}
    checkpoint.write_bytes(b"\xff" * checkpoint.stat().st_size)
    assert all(torch.equal(before[key], value) for key, value in loaded.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_for_kernels_and_loads_as_fp32(
    model: Classifier, tmp_path: Path, dtype: torch.dtype
) -> None:
    full, half = tmp_path / "full.safetensors", tmp_path / "half.safetensors"
    save(model, full)
    save(model, half, dtype=dtype)
    stored = load_file(half)
    assert stored["stem.conv1.conv.weight"].dtype == dtype
    assert stored["head.classifier.linear.weight"].dtype == dtype
    assert stored["stem.conv1.norm.running_var"].dtype == torch.float32
    loaded = load(half).state_dict()
    assert {value.dtype for value in loaded.values()} == {torch.float32, torch.int64}
    kernel = model.state_dict()["stem.conv1.conv.weight"]
    assert torch.equal(loaded["stem.conv1.conv.weight"], kernel.to(dtype).float())
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(load(half)(x), load(full)(x), atol=0.2, rtol=0.1)


def test_a_value_that_half_precision_cannot_hold_is_an_error(model: Classifier, tmp_path: Path) -> None:
    with torch.no_grad():
        model.stem.conv1.conv.weight[0, 0, 0, 0] = 1e6
    with pytest.raises(WeightsError, match=r"stem\.conv1\.conv\.weight"):
        save(model, tmp_path / "net.safetensors", dtype=torch.float16)
    assert left_behind(tmp_path) == []


def test_channels_last_networks_are_saved_as_any_other(model: Classifier, tmp_path: Path) -> None:
    save(model.to(memory_format=torch.channels_last), tmp_path / "net.safetensors")  # type: ignore[call-overload]
    assert same_tensors(load(tmp_path / "net.safetensors"), model)


def test_features_only_leaves_the_head_out_and_nothing_else(model: Classifier, checkpoint: Path) -> None:
    backbone = load(checkpoint, features_only=True)
    save(backbone, checkpoint.with_name("backbone.safetensors"))  # its metadata speaks of no classes any more
    assert backbone.metadata.class_names == ()
    assert type(backbone) is Backbone
    assert set(backbone.state_dict()) == {key for key in model.state_dict() if not key.startswith("head.")}
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(backbone(x)[-1], model.eval().forward_features(x))


def test_a_backbone_can_be_saved_and_loaded(tmp_path: Path) -> None:
    backbone = build(tiny_config(), features_only=True)
    save(backbone, tmp_path / "net.safetensors")
    assert same_tensors(load(tmp_path / "net.safetensors", features_only=True), backbone)
    pooled = load(tmp_path / "net.safetensors")(torch.randn(1, 3, 32, 32))
    assert pooled.shape == (1, 32)


def test_what_cannot_be_saved(model: Classifier, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    with pytest.raises(UserError, match="folded"):
        save(iformer.fold(model), path)
    with pytest.raises(UserError, match="Sequential"):
        save(nn.Sequential(model), path)  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match="4 class names for 5 classes"):
        save(model, path, class_names=NAMES[:4])
    with pytest.raises(ConfigError, match="no field classes"):
        save(model, path, classes=NAMES)
    with pytest.raises(ConfigError, match="class_names"):
        save(model, path, class_names=("a", "a", "b", "c", "d"))
    with pytest.raises(WeightsError, match="JSON"):
        save(model, path, metrics={"top1": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"\.safetensors"):
        save(model, tmp_path / "net.pth")
    assert left_behind(tmp_path) == []


# ------------------------------------------------------------------------------------- writing


def test_a_folder_that_is_not_there_or_not_a_folder(model: Classifier, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write .*the folder .*none does not exist"):
        save(model, tmp_path / "none" / "net.safetensors")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is not a folder"):
        save(model, tmp_path / "file" / "net.safetensors")
    (tmp_path / "net.safetensors").mkdir()
    with pytest.raises(OutputError, match="not a plain file"):
        save(model, tmp_path / "net.safetensors")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder(model: Classifier, tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(OutputError, match="Permission denied"):
            save(model, tmp_path / "net.safetensors")
    finally:
        tmp_path.chmod(0o755)


def test_a_write_that_fails_half_way_loses_nothing(model: Classifier, checkpoint: Path) -> None:
    before = checkpoint.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))  # writing past it fails
    try:
        with pytest.raises(OutputError, match=r"cannot write .*File too large"):
            save(model, checkpoint)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint.read_bytes() == before
    assert left_behind(checkpoint.parent) == [checkpoint.name]


def test_a_full_disk_loses_nothing(model: Classifier, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = checkpoint.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device"):
        save(model, checkpoint)
    assert checkpoint.read_bytes() == before
    assert left_behind(checkpoint.parent) == [checkpoint.name]


def test_a_new_file_has_the_usual_permissions_and_a_link_stays_one(model: Classifier, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    link, target = tmp_path / "link.safetensors", tmp_path / "target.safetensors"
    link.symlink_to(target)
    save(model, link)
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert same_tensors(load(link), model)


# ------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04 and so on", "truncated or damaged"),
        (b"\x80\x02}q\x00.", r"before PyTorch 1\.6"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"not weights at all", "not a weight file"),
        (b"\xff" * 100, "not a weight file"),
    ],
)
def test_files_that_are_no_safetensors(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(content)
    for read in (load, read_weights):
        with pytest.raises(WeightsError, match=message) as caught:
            read(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="does not exist"):
        load(tmp_path / "none.safetensors")
    with pytest.raises(WeightsError, match="is a folder"):
        load(tmp_path)


def test_a_truncated_file_at_any_length(checkpoint: Path) -> None:
    whole = checkpoint.read_bytes()
    for length in (1, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        checkpoint.write_bytes(whole[:length])
        with pytest.raises(WeightsError):
            load(checkpoint)
    with pytest.raises(WeightsError, match="truncated or damaged"):
        load(checkpoint)


def test_a_safetensors_file_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(WeightsError, match=r"no iFormer weights.*its 1 keys are a"):
        load(path)


def test_a_header_that_lies(checkpoint: Path) -> None:
    whole = checkpoint.read_bytes()

    def message_with(**strings: str) -> str:
        checkpoint.write_bytes(whole)
        rewrite_header(checkpoint, **strings)
        with pytest.raises(WeightsError) as caught:
            load(checkpoint)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    plain = tiny_config().to_plain()
    assert "upgrade iformer" in message_with(format="iformer-2")
    assert "header is invalid" in message_with(network="{not json")
    assert "header is invalid" in message_with(network="[]")
    assert "header is invalid" in message_with(network="[" * 100_000)
    assert "no field 'colour'" in message_with(network=json.dumps(plain | {"colour": "red"}))
    assert "num_classes" in message_with(network=json.dumps(plain | {"num_classes": "5"}))
    assert "NetworkConfig.in_chans" in message_with(network=json.dumps(plain | {"in_chans": 10**30}))
    assert "7 classes" in message_with(network=json.dumps(plain | {"num_classes": 7}))
    assert "no field 'mood'" in message_with(metadata=json.dumps({"mood": "good"}))
    huge = json.loads(json.dumps(plain))
    huge["stages"][0]["pattern"] = [["conv", 10**12]]
    assert "pattern" in message_with(network=json.dumps(huge))
    for stage in huge["stages"]:
        stage["pattern"] = [["conv", 256]]
    assert "describes 1,024 blocks, but it holds" in message_with(network=json.dumps(huge))
    for field, value in (("size", [200_000, 200_000]), ("crop_pct", 1e-9), ("mean", [float("nan")] * 3)):
        assert f"preprocessing.{field}" in message_with(metadata=json.dumps({"preprocessing": {field: value}}))
    two = {"preprocessing": {"mean": [0.5, 0.5], "std": [0.5, 0.5]}}
    assert "preprocessing is for 2 channels, its network for 3" in message_with(metadata=json.dumps(two))
    deep = json.loads("[" * 100 + "]" * 100)
    assert "nested more than 32 levels" in message_with(metadata=json.dumps({"metrics": {"a": deep}}))
    assert "characters; expected at most" in message_with(
        metadata=json.dumps({"metrics": {"a": "x" * 16_000_000}})
    )
    huge["stages"][0]["pattern"] = [["conv", 0]] * 100_000
    assert "characters; expected at most 200,000" in message_with(network=json.dumps(huge))
    assert "describes a detector (metadata.task), but has no 'task_network'" in message_with(
        metadata=json.dumps({"task": "detect"})
    )


def test_a_header_of_an_unknown_task(checkpoint: Path) -> None:
    rewrite_header(checkpoint, metadata=json.dumps({"task": "classification"}))
    expected = "task is 'classification'; expected one of 'classify', 'detect', 'segment'"
    with pytest.raises(WeightsError, match=expected):
        load(checkpoint)


def test_weights_of_another_network_are_one_error_that_lists_the_keys(checkpoint: Path) -> None:
    tensors = load_file(checkpoint)
    with safe_open(checkpoint, framework="pt") as file:
        header = file.metadata()
    del tensors["stem.conv1.conv.weight"]
    tensors["surprise"] = torch.zeros(1)
    tensors["stem.conv2.conv.weight"] = torch.zeros(1, 2, 3, 3)
    save_file(tensors, checkpoint, header)
    with pytest.raises(WeightsError) as caught:
        load(checkpoint)
    message = str(caught.value)
    assert "1 missing: stem.conv1.conv.weight" in message
    assert "1 unexpected: surprise" in message
    assert "1 of another shape: stem.conv2.conv.weight 1x2x3x3 instead of 16x4x5x5" in message
    assert "\n" not in message

    plain = tiny_config(distillation=True, layer_scale_init=1e-6).to_plain()
    rewrite_header(checkpoint, network=json.dumps(plain))
    with pytest.raises(WeightsError, match=r"missing: (\S+, ){10}and \d+ more") as caught:
        load(checkpoint)
    assert len(str(caught.value)) < 2000


def test_weights_that_are_not_finite(checkpoint: Path) -> None:
    tensors = load_file(checkpoint)
    key = next(key for key, value in tensors.items() if value.is_floating_point())
    tensors[key].view(-1)[0] = float("nan")
    with safe_open(checkpoint, framework="pt") as file:
        header = file.metadata()
    save_file(tensors, checkpoint, header)
    with pytest.raises(
        WeightsError, match=r"has weights that are not finite numbers \(.*diverged, or the file is damaged"
    ):
        load(checkpoint)


def test_wrong_kinds_of_numbers(checkpoint: Path) -> None:
    tensors = load_file(checkpoint)
    with safe_open(checkpoint, framework="pt") as file:
        header = file.metadata()
    tensors["stem.conv1.conv.weight"] = tensors["stem.conv1.conv.weight"].to(torch.int32)
    save_file(tensors, checkpoint, header)
    with pytest.raises(WeightsError, match=r"stem\.conv1\.conv\.weight \(torch\.int32\)"):
        load(checkpoint)


def test_counters_that_were_averaged_with_the_weights(checkpoint: Path) -> None:
    expected = load(checkpoint).state_dict()
    tensors = load_file(checkpoint)
    with safe_open(checkpoint, framework="pt") as file:
        header = file.metadata()
    counters = [name for name in tensors if name.endswith("num_batches_tracked")]
    assert counters
    save_file(tensors | {name: tensors[name].float() + 0.3 for name in counters}, checkpoint, header)
    found = load(checkpoint).state_dict()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    save_file(tensors | {name: tensors[name].float() + torch.nan for name in counters}, checkpoint, header)
    with pytest.raises(WeightsError, match="not finite"):
        load(checkpoint)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32))
def test_a_damaged_file_loads_or_is_a_weights_error(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    path = folder / "net.safetensors"
    save_file({"a": torch.zeros(3)}, path, {"format": "iformer-1", "network": "{}", "metadata": "{}"})
    chance = random.Random(seed)
    content = bytearray(path.read_bytes())
    for _ in range(chance.randint(1, 4)):
        content[chance.randrange(len(content))] = chance.randrange(256)
    path.write_bytes(content[: chance.randint(0, len(content))])
    with pytest.raises(WeightsError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    path.unlink()
