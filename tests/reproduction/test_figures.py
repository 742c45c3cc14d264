"""Figures: the files and the drawn values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from iformer.config.network import NetworkConfig
from iformer.config.variants import network_config
from iformer.errors import UserError
from iformer.models.factory import build
from iformer.models.weights.checkpoint import save
from iformer_paper.ablations import ABLATIONS, TRAINED
from iformer_paper.figures import draw_figure
from iformer_paper.heads import head_similarity, trained_heads


@pytest.mark.parametrize(("number", "values"), [(1, 33), (2, 10)])
def test_a_figure_is_a_picture_of_the_values(tmp_path: Path, number: int, values: int) -> None:
    drawn = draw_figure(number, tmp_path)
    assert drawn.path == tmp_path / f"figure_{number}.png"
    assert [file.name for file in tmp_path.iterdir()] == [drawn.path.name]
    with Image.open(drawn.path) as picture:
        assert min(picture.size) > 500
        assert len(picture.convert("RGB").getcolors(maxcolors=1 << 24) or []) > 20
    assert len(drawn.values) == values
    assert drawn.notes


def test_figure_2_holds_print_and_counts(tmp_path: Path) -> None:
    first, *_, last = draw_figure(2, tmp_path).values
    assert (first["top1_pct"], first["latency_ms"]) == (74.9, 1.07)
    assert (last["top1_pct"], last["latency_ms"], round(last["gmacs"], 4)) == (80.4, 1.1, 1.6399)


def test_figure_3_sets_trained_heads_beside_random_ones(images: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "mha.safetensors"
    network = build(TRAINED["MHA"].with_options(num_classes=2))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.fill_(1e-3)  # small activations, as random weights make them
    save(network, checkpoint)
    trained = trained_heads(checkpoint, str(images), images=2)
    drawn = draw_figure(3, tmp_path, trained=trained)
    layers = len(trained.before)
    assert layers == len(trained.after) == 5
    assert [value["weights"] for value in drawn.values] == ["random weights"] * layers + ["trained"] * layers
    assert [layer.similarities for layer in trained.before] != [layer.similarities for layer in trained.after]
    assert drawn.path.is_file()
    with pytest.raises(UserError, match="trained network is for figure 3"):
        draw_figure(2, tmp_path, trained=trained)


def test_no_other_figure(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="figure 4 is not drawn here"):
        draw_figure(4, tmp_path)


def small_heads() -> NetworkConfig:
    return ABLATIONS[1]["MHA Baseline"].with_options(num_classes=0)


def test_similarity_of_heads_is_that_of_their_maps() -> None:
    model = build(small_heads(), features_only=True).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    images = torch.randn(1, 3, 64, 64)
    model(images)
    after_forward = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for name, buffer in model.named_buffers():
        buffer.copy_(before[name])
    layers = head_similarity(model, images)
    assert [(layer.stage, layer.block, layer.heads) for layer in layers] == [
        (3, 1, 6), (3, 2, 6), (3, 3, 6), (3, 4, 6), (4, 1, 12), (4, 2, 12),
    ]  # fmt: skip
    assert [len(layer.similarities) for layer in layers] == [15, 15, 15, 15, 66, 66]
    assert all(0 < value <= 1 + 1e-6 for layer in layers for value in layer.similarities)
    # looking leaves no trace in the running statistics beyond the forward pass itself
    assert all(torch.equal(after_forward[name], buffer) for name, buffer in model.named_buffers())


def test_equal_heads_have_similarity_one() -> None:
    model = build(small_heads(), features_only=True).eval()
    with torch.no_grad():
        for stage in model.stages:
            for block in stage.blocks:
                for name in ("q", "k"):
                    part = getattr(getattr(block, "attention", None), name, None)
                    if part is not None:
                        weight = part.conv.weight
                        weight.copy_(10 * weight[:32].repeat(weight.shape[0] // 32, 1, 1, 1))
    for layer in head_similarity(model, torch.randn(1, 3, 64, 64)):
        assert layer.similarities == pytest.approx([1.0] * len(layer.similarities), abs=1e-5)


def test_a_network_of_one_head_has_nothing_to_compare() -> None:
    with pytest.raises(UserError, match="no multi-head attention"):
        head_similarity(build(network_config("iformer_t")), torch.randn(1, 3, 32, 32))
