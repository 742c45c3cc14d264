"""Conversion between the three key formats; pickles never run code."""

from __future__ import annotations

import argparse
import builtins
import collections
import io
import os
import pickle
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.iformer import IFormer, checkpoint_filter_fn
from torch import Tensor, nn

import iformer
from iformer.config.network import NetworkConfig
from iformer.config.variants import VARIANTS, list_models, network_config
from iformer.errors import UnknownNameError, UserError, WeightsError
from iformer.models.factory import build
from iformer.models.weights.checkpoint import save
from iformer.models.weights.convert import convert_file, read_class_names
from iformer.models.weights.dialects import from_authors, from_timm, key_map, to_authors, to_timm
from iformer.models.weights.read import read_weights
from iformer.models.weights.recognition import recognise, recognise_network, variant_name
from iformer.models.weights.resolve import load
from tiny.networks import randomize, tiny_config, tiny_variant


def meta_state(name: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        return build(network_config(name)).state_dict()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return set(a) == set(b) and all(a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def tiny_t() -> NetworkConfig:
    """iFormer-T with few classes: the smallest network that is recognised."""
    return network_config("iformer_t").with_options(num_classes=6)


@pytest.fixture(scope="module")
def state(tiny_t: NetworkConfig) -> dict[str, Tensor]:
    """No two tensors alike, and none as it is initialised."""
    torch.manual_seed(0)
    tensors = build(tiny_t).state_dict()
    for key, value in tensors.items():
        if not value.is_floating_point():
            value.fill_(len(key))
        elif key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        else:
            value.normal_(std=0.1)
    return tensors


# ------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize("name", [name for name in list_models() if name in timm.list_models("iformer*")])
def test_names_and_shapes_are_those_of_timm(name: str) -> None:
    theirs = to_timm(meta_state(name), network_config(name))
    with torch.device("meta"):
        oracle = timm.create_model(name).state_dict()
    assert {key: value.shape for key, value in theirs.items()} == {
        key: value.shape for key, value in oracle.items()
    }


@pytest.mark.parametrize("name", list_models())
def test_authors_names_are_those_that_timm_reads(name: str) -> None:
    config = network_config(name)
    authors = to_authors(meta_state(name), config)
    as_timm = checkpoint_filter_fn(dict(authors), nn.Identity())
    expected = to_timm(meta_state(name), config)
    assert {key: value.shape for key, value in as_timm.items()} == {
        key: value.shape for key, value in expected.items()
    }
    # the same tensor under each name, not only the same set of names
    names = {id(value): key for key, value in authors.items()}
    authors_of = key_map(config, "authors")
    expected_names = {authors_of[ours]: theirs for ours, theirs in key_map(config, "timm").items()}
    assert {names[id(value)]: key for key, value in as_timm.items()} == expected_names


def test_some_authors_names_as_they_are_published() -> None:
    authors = key_map(network_config("iformer_h").with_options(distillation=True), "authors")
    assert authors["stem.conv2.conv.weight"] == "downsample_layers.0.2.conv_exp_bn1.c.weight"
    assert authors["stages.3.downsample.norm.bias"] == "downsample_layers.3.0.bn.bias"
    assert authors["stages.0.blocks.4.project.conv.weight"] == "stages.0.4.block.token_channel_mixer.m.3.c.weight"
    assert authors["stages.2.blocks.15.position.depthwise.conv.weight"] == "stages.2.17.block.cpe.m.c.weight"
    assert authors["stages.2.blocks.15.attention.q.conv.weight"] == (
        "stages.2.18.block.token_channel_mixer.m.q.c.weight"
    )
    assert authors["stages.2.blocks.15.ffn.project.norm.running_var"] == (
        "stages.2.19.block.channel_mixer.m.2.bn.running_var"
    )
    assert authors["stages.2.blocks.15.ffn.residual.gamma"] == "stages.2.19.block.channel_mixer.gamma"
    assert authors["head.distilled.linear.bias"] == "classifier.classifier_dist.l.bias"


@pytest.mark.parametrize("name", list_models())
def test_every_size_is_recognised_in_every_format(name: str) -> None:
    config = network_config(name).with_options(num_classes=7, in_chans=4)
    with torch.device("meta"):
        ours = build(config).state_dict()
    for format_, theirs in (
        ("iformer", ours),
        ("timm", to_timm(ours, config)),
        ("authors", to_authors(ours, config)),
    ):
        assert recognise(theirs) == format_
        assert recognise_network(theirs) == config
    assert variant_name(config) == name


def test_a_backbone_without_a_head_is_recognised() -> None:
    with torch.device("meta"):
        theirs = timm.create_model("iformer_s", num_classes=0).state_dict()
    assert recognise_network(theirs) == network_config("iformer_s").with_options(num_classes=0)


@pytest.mark.parametrize("options", [{}, {"distillation": True}, {"layer_scale_init": 1e-6}, {"num_classes": 0}])
def test_any_config_round_trips_bit_for_bit(
    options: dict[str, Any],
) -> None:
    config = tiny_config(**options)
    model = build(config)
    randomize(model)
    ours = model.state_dict()
    assert same(from_timm(to_timm(ours, config), config), ours)
    assert same(from_authors(to_authors(ours, config), config), ours)
    gammas = [value for key, value in to_timm(ours, config).items() if key.endswith("gamma")]
    assert all(value.shape == (1, value.shape[1], 1, 1) for value in gammas)
    assert len(gammas) == (10 if "layer_scale_init" in options else 0)


@pytest.mark.parametrize("name", ["iformer_t", "iformer_m_distilled"])
@pytest.mark.parametrize("in_chans", [3, 1])
def test_converted_weights_compute_what_timm_computes(name: str, in_chans: int) -> None:
    oracle = timm.create_model(name, num_classes=11, in_chans=in_chans).eval()
    randomize(oracle)
    config = network_config(name).with_options(num_classes=11, in_chans=in_chans)
    ours = build(config).eval()
    ours.load_state_dict(from_timm(oracle.state_dict(), config))
    x = torch.randn(2, in_chans, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), oracle(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("distillation", [False, True])
def test_layer_scale_computes_what_timm_computes(distillation: bool) -> None:
    oracle = IFormer(
        num_classes=5,
        dims=(8, 16, 24, 32),
        depths=(1, 1, 8, 3),
        attn_groups=(0, 0, 2, 1),
        attn_head_dim_reduction=(0, 0, 2, 2),
        conv_ratio=2,
        ffn_ratio=2,
        layer_scale_init_value=1e-6,
        distillation=distillation,
    ).eval()
    randomize(oracle)
    config = tiny_config(layer_scale_init=1e-6, distillation=distillation)
    ours = build(config).eval()
    ours.load_state_dict(from_timm(oracle.state_dict(), config))
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), oracle(x), atol=1e-5, rtol=1e-4)


def test_keys_that_do_not_fit_are_listed_by_their_own_names(
    state: dict[str, Tensor], tiny_t: NetworkConfig
) -> None:
    theirs = to_timm(state, tiny_t)
    theirs["extra.weight"] = torch.zeros(1)
    del theirs["stages.0.blocks.0.mixer.module.0.bn.weight"]
    theirs["head.head.l.bias"] = torch.zeros(9)
    with pytest.raises(WeightsError) as caught:
        from_timm(theirs, tiny_t)
    message = str(caught.value)
    assert "1 missing: stages.0.blocks.0.mixer.module.0.bn.weight" in message
    assert "1 unexpected: extra.weight" in message
    assert "head.head.l.bias 9 instead of 6" in message
    with pytest.raises(WeightsError, match=r"any size; the nearest is iformer_t.*extra\.weight"):
        recognise_network(theirs)


def test_the_equations_form_does_not_go_into_others_files() -> None:
    with torch.device("meta"):
        model = iformer.create_model("iformer_t", modulation="output")
        with pytest.raises(WeightsError, match="modulation 'output'"):
            to_timm(model.state_dict(), model.config)


def test_an_ablation_stays_in_our_format(make_ablated_config, tmp_path: Path) -> None:
    """Its checkpoint comes back as it was; other codes could not compute it, and are not given its weights."""
    config = make_ablated_config()
    model = build(config)
    iformer.save(model, tmp_path / "network.safetensors")
    loaded = iformer.load(tmp_path / "network.safetensors")
    assert loaded.config == config
    assert all(map(torch.equal, model.state_dict().values(), loaded.state_dict().values()))
    if config.name not in ("released", "no position encoding", "conv only"):
        with pytest.raises(WeightsError, match="cannot compute; keep it in our format"):
            to_timm(model.state_dict(), config)


def test_what_is_not_an_iformer_is_said(tmp_path: Path) -> None:
    save_file(nn.Linear(2, 2).state_dict(), tmp_path / "linear.safetensors")
    with pytest.raises(WeightsError, match=r"no iFormer weights.*bias, weight"):
        read_weights(tmp_path / "linear.safetensors")
    with torch.device("meta"):
        folded = iformer.fold(build(network_config("iformer_t")).to_empty(device="cpu")).state_dict()
    with pytest.raises(WeightsError, match="folded"):
        recognise(folded)


# ------------------------------------------------------------------------------------------ files


def test_a_file_goes_through_all_formats_and_back_bit_for_bit(
    state: dict[str, Tensor], tiny_t: NetworkConfig, tmp_path: Path
) -> None:
    model = build(tiny_t)
    model.load_state_dict(state)
    names = tuple("abcdef")
    save(model, tmp_path / "0.safetensors", class_names=names, metrics={"top1": 50.0})
    steps = [
        ("0.safetensors", "1.safetensors", "timm"),
        ("1.safetensors", "2.pth", "authors"),
        ("2.pth", "3.bin", "timm"),
        ("3.bin", "4.safetensors", "iformer"),
        ("1.safetensors", "5.safetensors", "iformer"),
    ]
    for source, out, to in steps:
        done = convert_file(tmp_path / source, tmp_path / out, to=to, model="iformer_t")  # type: ignore[arg-type]
        assert (done.model, done.num_classes, done.tensors) == ("iformer_t", 6, len(state))
    assert same(load(tmp_path / "4.safetensors").state_dict(), state)
    for last in ("4.safetensors", "5.safetensors"):
        described = load(tmp_path / last)
        assert same(described.state_dict(), state)
        assert described.metadata.class_names == names
        assert described.metadata.metrics == {"top1": 50.0}
    assert described.metadata.metrics == {"top1": 50.0}
    assert described.metadata.provenance["source_file"] == "1.safetensors"
    assert len(described.metadata.provenance["source_sha256"]) == 64

    oracle = timm.create_model("iformer_t", num_classes=6, checkpoint_path=str(tmp_path / "1.safetensors")).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(described(x), oracle(x), atol=1e-5, rtol=1e-4)


def test_the_authors_file_with_their_arguments_beside_it(
    state: dict[str, Tensor], tiny_t: NetworkConfig, tmp_path: Path
) -> None:
    path = tmp_path / "iFormer_t.pth"
    beside = {
        "args": argparse.Namespace(lr=4e-3, model="iFormer_t", milestones=[1, 2]),
        "epoch": 299,
        "max_accuracy": np.float64(74.05),
        "counts": {"a": np.int64(3), "b": np.float32(0.5), "c": np.bool_(True)},
    }
    torch.save({"model": to_authors(state, tiny_t), **beside}, path)
    weights = read_weights(path)
    assert weights.format == "authors"
    assert weights.config == tiny_t
    assert same(weights.state_dict, state)
    # files of NumPy 1 name the scalar's maker by its old place
    content = path.read_bytes()
    assert b"numpy._core.multiarray" in content
    old = tmp_path / "old.pth"
    rewrite_pickle(path, old, lambda data: data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    assert same(read_weights(old).state_dict, state)


def rewrite_pickle(source: Path, target: Path, change: Callable[[bytes], bytes]) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            new.writestr(info.filename, change(data) if info.filename.endswith("data.pkl") else data)


def test_training_checkpoints_and_which_weights_are_taken(
    state: dict[str, Tensor], tiny_t: NetworkConfig, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.pth"
    ema = {key: value * 2 if value.is_floating_point() else value for key, value in state.items()}
    wrapped = {f"module.{key}": value for key, value in to_timm(state, tiny_t).items()}
    torch.save({"epoch": 3, "model_ema": to_timm(ema, tiny_t), "model": wrapped}, path)
    assert same(read_weights(path).state_dict, state)
    assert same(read_weights(path, entry="model_ema").state_dict, ema)
    with pytest.raises(WeightsError, match=r"no state dict 'ema'; it has model_ema, model"):
        read_weights(path, entry="ema")
    torch.save(ema, path)
    assert read_weights(path).format == "iformer"
    assert same(read_weights(path).state_dict, ema)


def test_half_precision_is_asked_for(state: dict[str, Tensor], tiny_t: NetworkConfig, tmp_path: Path) -> None:
    torch.save({"model": to_authors(state, tiny_t)}, tmp_path / "a.pth")
    full = convert_file(tmp_path / "a.pth", tmp_path / "full.safetensors", to="iformer")
    half = convert_file(tmp_path / "a.pth", tmp_path / "half.safetensors", to="iformer", half=True)
    assert half.bytes < 0.6 * full.bytes
    assert load_file(tmp_path / "half.safetensors")["stem.conv1.conv.weight"].dtype == torch.float16
    assert load(tmp_path / "half.safetensors").state_dict()["stem.conv1.conv.weight"].dtype == torch.float32


def test_another_size_than_named_and_unknown_names(
    state: dict[str, Tensor], tiny_t: NetworkConfig, tmp_path: Path
) -> None:
    source, out = tmp_path / "a.pth", tmp_path / "b.safetensors"
    torch.save({"model": to_authors(state, tiny_t)}, source)
    with pytest.raises(WeightsError, match="holds iformer_t, not iformer_m"):
        convert_file(source, out, to="iformer", model="iformer_m")
    with pytest.raises(WeightsError, match="holds iformer_t, not iformer_t_distilled"):
        convert_file(source, out, to="iformer", model="iformer_t_distilled")
    with pytest.raises(UnknownNameError, match="did you mean iformer_t"):
        convert_file(source, out, to="iformer", model="iformer_tt")
    with pytest.raises(UserError, match="unknown format 'onnx'"):
        convert_file(source, out, to="onnx")  # type: ignore[arg-type]
    assert not out.exists()


def test_an_existing_file_is_replaced_only_when_asked(
    state: dict[str, Tensor], tiny_t: NetworkConfig, tmp_path: Path
) -> None:
    source, out = tmp_path / "a.pth", tmp_path / "b.safetensors"
    torch.save({"model": to_authors(state, tiny_t)}, source)
    out.write_text("precious")
    with pytest.raises(WeightsError, match="exists; pass --overwrite"):
        convert_file(source, out, to="iformer")
    assert out.read_text() == "precious"
    convert_file(source, out, to="iformer", overwrite=True)
    assert same(load(out).state_dict(), state)
    for name, to in (("c.pth", "iformer"), ("c.safetensors", "authors"), ("c.onnx", "timm")):
        with pytest.raises(WeightsError, match="has to end in"):
            convert_file(source, tmp_path / name, to=to)  # type: ignore[arg-type]


def test_class_names_of_a_file(state: dict[str, Tensor], tiny_t: NetworkConfig, tmp_path: Path) -> None:
    source, out, names = tmp_path / "a.pth", tmp_path / "b.safetensors", tmp_path / "names.txt"
    torch.save({"model": to_authors(state, tiny_t)}, source)
    names.write_text("ant\nbee\ncat \ndog\nelk\nfox\n")
    read = read_class_names(names)
    assert read == ("ant", "bee", "cat", "dog", "elk", "fox")
    assert convert_file(source, out, to="iformer", class_names=read).class_names_written
    assert load(out).metadata.class_names == read
    with pytest.raises(WeightsError, match="5 class names for 6 classes"):
        convert_file(source, out, to="iformer", class_names=read[:5], overwrite=True)
    assert load(out).metadata.class_names == read
    for text, message in (("a\n\nb\n", "line 2 is empty"), ("", "empty"), ("a\nb\na\n", "more than once: a")):
        names.write_text(text)
        with pytest.raises(WeightsError, match=message):
            read_class_names(names)
    names.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(WeightsError, match="UTF-8"):
        read_class_names(names)
    with pytest.raises(WeightsError, match="No such file"):
        read_class_names(tmp_path / "none.txt")


def test_imagenet_class_names() -> None:
    names = read_class_names("imagenet")
    assert len(names) == len(set(names)) == 1000
    assert names[0] == "tench"
    assert names[207] == "golden retriever"
    assert {names[134], names[517]} == {"crane (n02012849)", "crane (n03126707)"}


def test_networks_that_others_cannot_build_stay_in_our_format(tmp_path: Path) -> None:
    save(build(tiny_config()), tmp_path / "tiny.safetensors")
    with pytest.raises(WeightsError, match="none of the sizes that timm's code can build"):
        convert_file(tmp_path / "tiny.safetensors", tmp_path / "out.safetensors", to="timm")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_new_size_stays_in_our_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of the table of variants, which neither timm nor the authors have."""
    monkeypatch.setitem(VARIANTS, "iformer_tiny", tiny_variant())
    save(build(network_config("iformer_tiny")), tmp_path / "tiny.safetensors")
    for to, name, whose in (("timm", "out.safetensors", "timm's"), ("authors", "out.pth", "the authors'")):
        with pytest.raises(WeightsError, match=f"iformer_tiny is none of the sizes that {whose} code can build"):
            convert_file(tmp_path / "tiny.safetensors", tmp_path / name, to=to)  # type: ignore[arg-type]
        assert not (tmp_path / name).exists()


def test_timm_opens_the_distilled_form_of_a_size_without_a_name_for_it(tmp_path: Path) -> None:
    name = "iformer_t_distilled"
    assert not timm.is_model(name)
    model = build(network_config(name).with_options(num_classes=6)).eval()
    randomize(model)
    save(model, tmp_path / "a.safetensors")
    convert_file(tmp_path / "a.safetensors", tmp_path / "b.safetensors", to="timm")
    options: dict[str, Any] = {"checkpoint_path": str(tmp_path / "b.safetensors"), "distillation": True}
    oracle = timm.create_model("iformer_t", num_classes=6, **options).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), oracle(x), atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------------------------------- hostility


class Call:
    """Pickled as a call of any function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


class Stranger:
    """A class that no weight file needs."""


HOSTILE: dict[str, Callable[[Path], Any]] = {
    "os.system": lambda marker: Call(os.system, f"touch {marker}"),
    "eval": lambda marker: Call(builtins.eval, f"open({str(marker)!r}, 'w')"),
    "exec": lambda marker: Call(builtins.exec, f"open({str(marker)!r}, 'w')"),
    "open": lambda marker: Call(builtins.open, str(marker), "w"),
    "getattr": lambda marker: Call(builtins.getattr, argparse.Namespace, "__init__"),
    "torch.load": lambda marker: Call(torch.load, str(marker)),
    "a class": lambda marker: Stranger(),
    "a module": lambda marker: nn.Linear(1, 1),
    "an array": lambda marker: np.zeros(3),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_pickle_is_refused_and_runs_nothing(
    case: str, state: dict[str, Tensor], tiny_t: NetworkConfig, tmp_path: Path
) -> None:
    marker, path, out = tmp_path / "marker", tmp_path / "a.pth", tmp_path / "b.safetensors"
    evil = HOSTILE[case](marker)
    model = to_timm(state, tiny_t)
    for content in (evil, {"model": model, "args": evil}, {"model": {**model, "x": evil}}, {"model": evil}):
        torch.save(content, path)
        with pytest.raises(WeightsError, match="refused, nothing was run") as caught:
            convert_file(path, out, to="iformer")
        assert "\n" not in str(caught.value)
        with pytest.raises(WeightsError):
            iformer.create_model("iformer_t", weights=path)
    assert not marker.exists()
    assert not out.exists()


def test_the_hostile_pickle_would_run_elsewhere(tmp_path: Path) -> None:
    """The test above could not fail if the pickles did nothing anyway."""
    for case in ("os.system", "eval", "open"):
        marker = tmp_path / case
        torch.save(HOSTILE[case](marker), tmp_path / "a.pth")
        torch.load(tmp_path / "a.pth", weights_only=False)
        assert marker.exists()


def test_arguments_cannot_be_misused(state: dict[str, Tensor], tiny_t: NetworkConfig, tmp_path: Path) -> None:
    """What stands beside the weights is not even built, so its content cannot matter."""
    path = tmp_path / "a.pth"
    model = to_timm(state, tiny_t)
    odd = argparse.Namespace()
    odd.__dict__.update({"__class__": "x", "__reduce__": 1, "_state": {"a": 1}})
    factory = Call(collections.defaultdict, None, {"__class__": odd})
    path_like = Call(type(Path()), "/etc", "passwd")
    for beside in (
        odd,
        Call(argparse.Namespace, 1, 2),
        Call(np.dtype, "O"),
        {"__reduce__": odd},
        factory,
        path_like,
    ):
        torch.save({"model": model, "args": beside}, path)
        assert same(read_weights(path).state_dict, state)
    for wrong in (odd, [1, 2], 3, {}, {"a": odd}, {"a": 1}, {1: torch.zeros(1)}, {"a": np.float64(1)}):
        torch.save({"model": wrong}, path)
        with pytest.raises(WeightsError, match="expected a state dict"):
            read_weights(path)
    torch.save([model], path)
    with pytest.raises(WeightsError, match="expected a state dict; found a list"):
        read_weights(path)


def test_tensors_that_claim_more_than_they_hold(tmp_path: Path) -> None:
    """One stored number must not become a head of a billion classes."""
    path = tmp_path / "a.pth"
    torch.save({"head.head.l.weight": torch.zeros(1, 1).expand(10**9, 256)}, path)
    assert path.stat().st_size < 10_000
    with pytest.raises(WeightsError, match=r"plain tensors.*head\.head\.l\.weight"):
        read_weights(path)
    torch.save({"a": torch.zeros(3).to_sparse()}, path)
    with pytest.raises(WeightsError, match="plain tensors"):
        read_weights(path)


def test_old_and_foreign_pickles(state: dict[str, Tensor], tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "a.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match=r"before PyTorch 1\.6"):
        read_weights(path)
    path.write_bytes(pickle.dumps(Call(os.system, f"touch {marker}")))
    with pytest.raises(WeightsError, match=r"before PyTorch 1\.6"):
        read_weights(path)
    path.write_bytes(pickle.dumps(Call(os.system, f"touch {marker}"), protocol=0))
    with pytest.raises(WeightsError, match="not a weight file"):
        read_weights(path)
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("pickle")
        data = pickle.dumps(Call(os.system, f"touch {marker}"))
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    with pytest.raises(WeightsError, match="not a weight file"):
        read_weights(path)
    torch.jit.script(nn.Linear(1, 1)).save(str(path))
    with pytest.raises(WeightsError, match="is a TorchScript archive, whose code is not run"):
        read_weights(path)
    assert not marker.exists()


def test_zip_bombs_are_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data/0", bytes(50_000_000))
    assert path.stat().st_size < 100_000
    with pytest.raises(WeightsError, match="not unpacked"):
        read_weights(path)


def test_truncated_and_damaged_archives(state: dict[str, Tensor], tiny_t: NetworkConfig, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"model": to_timm(state, tiny_t)}, path)
    whole = path.read_bytes()
    for length in (2, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match="truncated or damaged"):
            read_weights(path)
    path.write_bytes(b"")
    with pytest.raises(WeightsError, match="empty"):
        read_weights(path)
    with pytest.raises(WeightsError, match="does not exist"):
        read_weights(tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="is a folder"):
        read_weights(tmp_path)


def test_a_safetensors_file_may_begin_like_a_pickle(state: dict[str, Tensor], tmp_path: Path) -> None:
    """It begins with its header's length, whose first byte is 0x80, a pickle's, once in 32 files."""
    path = tmp_path / "weights.safetensors"
    for padding in range(0, 256, 8):  # the header is padded to a multiple of 8
        save_file(state, path, metadata={"padding": "x" * padding})
        if path.read_bytes()[:1] == b"\x80":
            break
    assert path.read_bytes()[:1] == b"\x80"
    assert read_weights(path).state_dict.keys() == state.keys()


def test_a_damaged_pickle_is_a_weights_error(tmp_path: Path) -> None:
    small, path = tmp_path / "small.pth", tmp_path / "a.pth"
    torch.save({"model": {"a": torch.zeros(3), "b": torch.ones(2)}, "args": argparse.Namespace(x=1)}, small)
    chance = random.Random(0)

    def damaged(data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(chance.randint(1, 3)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        return bytes(changed[: chance.choice([len(changed), chance.randint(0, len(changed))])])

    for _ in range(150):
        rewrite_pickle(small, path, damaged)
        with pytest.raises(WeightsError) as caught:
            read_weights(path)
        assert "\n" not in str(caught.value)


def test_a_zip_archive_of_images_holds_no_weights(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("cat/1.png", b"")
    with pytest.raises(WeightsError, match="is a zip archive without weights"):
        read_weights(tmp_path / "data.zip")
