"""AdamW's parameter groups, its state by name, and the learning rate of every step."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import timm.optim.muon
import torch
from torch import Tensor, nn

from iformer.config.variants import network_config
from iformer.errors import WeightsError
from iformer.models.factory import build
from iformer.tasks.registry import load_recipe
from iformer.training.optimizer import build_optimizer, load_optimizer_tensors, optimizer_tensors
from iformer.training.schedule import RunLength, build_schedule
from tiny.classification import tiny_config, tiny_recipe


def network() -> nn.Module:
    torch.manual_seed(0)
    built: nn.Module = build(tiny_config(distillation=True, layer_scale_init=0.1))
    return built.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def set_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=generator))


def test_norms_biases_and_layer_scales_are_not_decayed() -> None:
    model = network()
    optimizer = build_optimizer(model, tiny_recipe(weight_decay=0.05))
    decay = {parameter: group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    parameters = dict(model.named_parameters())
    assert len(decay) == len(parameters)
    kinds = {"norm.weight", "norm.bias", "linear.bias", "gamma"}
    for name, parameter in parameters.items():
        free = any(name.endswith(kind) for kind in kinds)
        assert decay[parameter] == (0.0 if free else 0.05), name
        assert name.endswith((*kinds, "conv.weight", "linear.weight", "depthwise.weight")), name
    assert all(any(name.endswith(kind) for name in parameters) for kind in kinds)


def test_parameter_groups_equal_those_of_timm() -> None:
    """The recipe's network, ours and timm's, each with its own optimizer factory: how much decays and how."""
    import timm
    from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]

    recipe = load_recipe("imagenet-300", model="iformer_m")
    ours, timms = build(network_config("iformer_m")), timm.create_model("iformer_m")
    reference = create_optimizer_v2(
        timms, opt="adamw", lr=recipe.lr, weight_decay=recipe.weight_decay, betas=(0.9, 0.999)
    )
    found = []
    for optimizer in (build_optimizer(ours, recipe), reference):
        sizes = {}
        for group in optimizer.param_groups:
            shapes = sorted(parameter.numel() for parameter in group["params"])
            sizes[group["weight_decay"]] = shapes
            assert (group["lr"], group["betas"], group["eps"]) == (recipe.lr, (0.9, 0.999), 1e-8)
        found.append(sizes)
    assert sorted(found[0]) == [0.0, 0.05]
    assert {decay: sum(sizes) for decay, sizes in found[0].items()} == {
        decay: sum(sizes) for decay, sizes in found[1].items()
    }


def test_frozen_parameters_are_left_out() -> None:
    model = network()
    for parameter in model.stem.parameters():  # type: ignore[union-attr]
        parameter.requires_grad_(False)
    optimizer = build_optimizer(model, tiny_recipe())
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {parameter for parameter in model.parameters() if parameter.requires_grad}


def test_fused_steps_are_adamw() -> None:
    one, other = network(), network()
    recipe = tiny_recipe()
    optimizer = build_optimizer(one, recipe)
    groups = [
        {"params": [p for p in other.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        {"params": [p for p in other.parameters() if p.ndim > 1], "weight_decay": recipe.weight_decay},
    ]
    reference = torch.optim.AdamW(groups, lr=recipe.peak_lr, foreach=False)
    for seed in range(3):
        for model, steps in ((one, optimizer), (other, reference)):
            set_gradients(model, seed)
            steps.step()
    for parameter, expected in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, atol=1e-6, rtol=1e-5)


def test_muon_steps_turn_every_direction_of_a_matrix_alike() -> None:
    model = network()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, tiny_recipe(optimizer="muon", weight_decay=0.0))
    set_gradients(model, 1)
    optimizer.step()
    matrices = 0
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or parameter.shape[1] == 1:  # norms and depthwise convolutions
            assert "exp_avg_sq" in optimizer.state[parameter], name
        elif "momentum_buffer" in optimizer.state[parameter]:
            values = torch.linalg.svdvals((parameter.detach() - before[name]).flatten(1))
            assert values[0] < 2 * values[-1], name  # Newton-Schulz brings them near to each other
            matrices += 1
    assert matrices > 10


@pytest.mark.parametrize("in_hardware", [True, False])
def test_muon_uses_bf16_only_where_the_device_multiplies_it(
    in_hardware: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iformer.training.optimizer.multiplies_bf16", lambda device: in_hardware)
    newton_schulz = timm.optim.muon.zeropower_via_newtonschulz
    dtypes = []

    def spy(*arguments: Any, **settings: Any) -> Tensor:
        result = newton_schulz(*arguments, **settings)
        dtypes.append(result.dtype)
        return result

    monkeypatch.setattr(timm.optim.muon, "zeropower_via_newtonschulz", spy)
    model = network()
    set_gradients(model, 1)
    build_optimizer(model, tiny_recipe(optimizer="muon")).step()
    assert set(dtypes) == {torch.bfloat16 if in_hardware else torch.float32}
    assert timm.optim.muon.zeropower_via_newtonschulz is spy


@pytest.mark.parametrize("optimizer_name", ["adamw", "muon"])
def test_restored_state_continues_exactly(optimizer_name: str) -> None:
    recipe = tiny_recipe(optimizer=optimizer_name)
    model = network()
    optimizer = build_optimizer(model, recipe)
    set_gradients(model, 1)
    optimizer.step()
    tensors = {name: tensor.clone().contiguous() for name, tensor in optimizer_tensors(optimizer, model).items()}
    copied = network()
    copied.load_state_dict(model.state_dict())
    restored = build_optimizer(copied, recipe)
    load_optimizer_tensors(restored, copied, tensors)
    for parameter in copied.parameters():
        state = restored.state[parameter]
        moment = state["exp_avg"] if "exp_avg" in state else state["momentum_buffer"]
        assert moment.stride() == parameter.stride()
    for each, steps in ((model, optimizer), (copied, restored)):
        set_gradients(each, 2)
        steps.step()
    for parameter, expected in zip(copied.parameters(), model.parameters(), strict=True):
        assert torch.equal(parameter, expected)


def test_state_of_another_network_is_refused() -> None:
    model = network()
    optimizer = build_optimizer(model, tiny_recipe())
    with pytest.raises(WeightsError, match=r"another network.*somewhere\.else"):
        load_optimizer_tensors(optimizer, model, {"exp_avg.somewhere.else": torch.zeros(1)})


def learning_rates(recipe: object, steps_per_epoch: int, steps: int) -> list[float]:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=recipe.peak_lr)  # type: ignore[attr-defined]
    schedule = build_schedule(optimizer, recipe, RunLength(recipe, steps_per_epoch=steps_per_epoch))  # type: ignore[arg-type]
    rates = []
    for step in range(steps):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_schedule_is_linear_warmup_then_half_a_cosine() -> None:
    recipe = tiny_recipe(
        epochs=10, lr=4e-3, lr_batch=64, batch_size=16, min_lr=1e-5, warmup_epochs=2, warmup_lr=1e-4
    )
    rates = learning_rates(recipe, 7, 70)
    peak = 1e-3
    for step in range(14):
        assert rates[step] == pytest.approx(1e-4 + (peak - 1e-4) * step / 14)
    for step in range(14, 70):
        cosine = 0.5 * (1 + math.cos(math.pi * (step - 14) / 56))
        assert rates[step] == pytest.approx(1e-5 + (peak - 1e-5) * cosine)
    assert max(rates) == pytest.approx(peak)


def test_schedule_of_steps_falls_after_its_milestones() -> None:
    recipe = tiny_recipe(
        epochs=6, lr=8e-3, lr_batch=8, schedule="step", milestones=[3, 5], warmup_steps=4, warmup_lr=1e-3
    )
    rates = learning_rates(recipe, 5, 30)
    assert rates[:4] == pytest.approx([1e-3 + 7e-3 * step / 4 for step in range(4)])
    assert rates[4:15] == pytest.approx([8e-3] * 11)
    assert rates[15:25] == pytest.approx([8e-4] * 10)
    assert rates[25:] == pytest.approx([8e-5] * 5)


def test_schedule_of_a_polynomial_ends_at_its_floor() -> None:
    recipe = tiny_recipe(epochs=4, lr=1e-3, lr_batch=8, schedule="poly", max_steps=17, warmup_steps=0, min_lr=1e-6)
    expected = [1e-6 + (1e-3 - 1e-6) * (1 - step / 17) ** 0.9 for step in range(17)]
    assert learning_rates(recipe, 5, 17) == pytest.approx(expected)


def test_length_in_steps_cuts_the_last_epoch() -> None:
    length = RunLength(tiny_recipe(epochs=4, max_steps=17), steps_per_epoch=5)
    assert (length.steps, length.epochs) == (17, 4)
    assert [length.steps_in(epoch) for epoch in range(4)] == [5, 5, 5, 2]
    assert RunLength(tiny_recipe(epochs=3, max_steps=17), steps_per_epoch=5).steps == 15


def test_schedule_is_timms_by_its_own_factory() -> None:
    from timm.scheduler import create_scheduler_v2  # type: ignore[attr-defined]

    recipe = tiny_recipe(epochs=30, lr=1e-3, lr_batch=8, min_lr=1e-6, warmup_epochs=3, warmup_lr=1e-6)
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=recipe.peak_lr)
    schedule, epochs = create_scheduler_v2(
        optimizer,
        num_epochs=27,
        warmup_epochs=3,
        warmup_lr=1e-6,
        min_lr=1e-6,
        warmup_prefix=True,
        step_on_epochs=False,
        updates_per_epoch=5,
    )
    assert epochs == 30
    expected = []
    for step in range(150):
        schedule.step_update(step)
        expected.append(optimizer.param_groups[0]["lr"])
    assert learning_rates(recipe, 5, 150) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["imagenet-300", "imagenet-450-distilled", "imagenet-300-h"])
def test_schedules_of_the_paper_s_recipes_are_timm_s(name: str) -> None:
    from timm.scheduler import create_scheduler_v2  # type: ignore[attr-defined]

    recipe = load_recipe(name)
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=recipe.lr)
    schedule, _ = create_scheduler_v2(
        optimizer,
        num_epochs=recipe.epochs - 20,
        warmup_epochs=20,
        warmup_lr=0.0,
        min_lr=1e-6,
        warmup_prefix=True,
        step_on_epochs=False,
        updates_per_epoch=3,
    )
    expected = []
    for step in range(3 * recipe.epochs):
        schedule.step_update(step)
        expected.append(optimizer.param_groups[0]["lr"])
    assert learning_rates(recipe, 3, 3 * recipe.epochs) == pytest.approx(expected)
    assert max(expected) == (8e-3 if name == "imagenet-300-h" else 4e-3)


def test_a_step_s_learning_rate_depends_on_its_number_only() -> None:
    recipe = tiny_recipe(epochs=4, warmup_epochs=1)
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=recipe.peak_lr)
    schedule = build_schedule(optimizer, recipe, RunLength(recipe, steps_per_epoch=5))
    schedule.step_update(13)
    assert optimizer.param_groups[0]["lr"] == learning_rates(recipe, 5, 14)[13]


def test_a_run_of_one_step_is_scheduled_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    recipe = tiny_recipe(epochs=1)
    with caplog.at_level(logging.DEBUG):
        assert learning_rates(recipe, 1, 1) == [recipe.peak_lr]
        assert learning_rates(recipe, 2, 2)[-1] == recipe.peak_lr
    assert not caplog.records


def test_warmup_is_at_most_half_of_a_short_run() -> None:
    rates = learning_rates(tiny_recipe(epochs=1, warmup_epochs=20), 8, 8)
    assert rates.index(max(rates)) == 4
    assert min(rates[5:]) < max(rates)
