"""The saved state of a run: complete, strict, and safe from unfinished files."""

from __future__ import annotations

import errno
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from iformer.config.metadata import Metadata
from iformer.errors import OutputError, UserError, WeightsError
from iformer.models.factory import build
from iformer.models.weights.resolve import load
from iformer.tasks.registry import load_recipe
from iformer.training.checkpointer import save_network
from iformer.training.network.ema import ModelEma
from iformer.training.optimizer import build_optimizer
from iformer.training.records.provenance import identity_defaults
from iformer.training.records.run_folder import RunFolder
from iformer.training.state import (
    OLD_FORMAT,
    TrainProgress,
    TrainState,
    check_identity,
    read_newest_state,
    read_state,
    saved_step,
)
from tiny.classification import tiny_config, tiny_recipe

IDENTITY = {"model": "tiny", "recipe": {"lr": 1e-3, "epochs": 2}}


def trained(seed: int, *, num_classes: int = 3, **progress: Any) -> TrainState:
    """The state after two steps of a tiny network."""
    torch.manual_seed(seed)
    model = build(tiny_config(num_classes=num_classes))
    ema = ModelEma(model, decay=0.9)
    state = TrainState(
        model=model,
        ema=ema,
        optimizer=build_optimizer(model, tiny_recipe()),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        progress=TrainProgress(**progress),
    )
    for step in range(1, 3):
        model(torch.randn(4, 3, 32, 32)).square().sum().backward()
        state.optimizer.step()
        ema.update(step)
    return state


def tensors(state: TrainState) -> dict[str, torch.Tensor]:
    assert state.ema is not None
    found = {f"model {name}": tensor for name, tensor in state.model.state_dict().items()}
    found |= {f"average {name}": tensor for name, tensor in state.ema.module.state_dict().items()}
    for name, parameter in state.model.named_parameters():
        found |= {f"{key} {name}": value for key, value in state.optimizer.state[parameter].items()}
    return found


def test_everything_comes_back(tmp_path: Path) -> None:
    fields = {"step": 7, "epoch": 1, "step_in_epoch": 3, "seconds": 1.25}
    one, other = trained(1, **fields, best={"top1": 0.1}, sums={"loss": 1 / 3}), trained(2)
    one.save(tmp_path / "state.safetensors", identity=IDENTITY)
    saved = read_state(tmp_path / "state.safetensors")
    other.load(saved)
    assert other.progress == one.progress
    assert saved.identity == IDENTITY
    assert saved_step(tmp_path / "state.safetensors") == 7
    expected, found = tensors(one), tensors(other)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_file_holds_tensors_and_text_only(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    trained(1).save(path, identity=IDENTITY)
    with safe_open(path, framework="pt") as file:
        assert set(file.metadata()) == {"format", "position", "identity", "scaler", "crc32", "network", "metadata"}


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99])
def test_cut_file_is_an_error_that_names_it(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "state.safetensors"
    trained(1).save(path, identity=IDENTITY)
    os.truncate(path, int(keep * path.stat().st_size))
    with pytest.raises(WeightsError, match=r"state\.safetensors"):
        read_state(path)
    assert saved_step(path) is None


def test_network_is_no_state(tmp_path: Path) -> None:
    save_network(build(tiny_config()), tmp_path / "net.safetensors", name="tiny", metadata=Metadata())
    with pytest.raises(WeightsError, match="not the saved state"):
        read_state(tmp_path / "net.safetensors")


def test_state_of_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    trained(1).save(path, identity=IDENTITY)
    other = trained(1, num_classes=4)
    with pytest.raises(WeightsError, match="does not fit"):
        other.load(read_state(path))


def full_disk(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, state = tmp_path / "state.safetensors", trained(1, step=1)
    state.save(path, identity=IDENTITY)
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        trained(1, step=2).save(path, identity=IDENTITY)
    assert read_state(path).progress.step == 1
    assert [file.name for file in tmp_path.iterdir()] == ["state.safetensors"]


def test_differences_are_named_with_both_values(tmp_path: Path) -> None:
    check_identity(IDENTITY, {"recipe": {"epochs": 2, "lr": 1e-3}, "model": "tiny"}, folder=tmp_path)
    other = {"model": "tiny", "recipe": {"lr": 2e-3, "epochs": 2, "size": 64}}
    with pytest.raises(UserError) as caught:
        check_identity(IDENTITY, other, folder=tmp_path)
    message = str(caught.value)
    assert "recipe.lr was 0.001, is 0.002" in message
    assert "recipe.size was (not set), is 64" in message
    assert "epochs" not in message


def test_run_of_a_version_without_a_field_has_its_default(tmp_path: Path) -> None:
    other = {"model": "tiny", "recipe": {"lr": 1e-3, "epochs": 2, "size": 64}}
    check_identity(IDENTITY, other, folder=tmp_path, defaults={"recipe": {"size": 64}})
    with pytest.raises(UserError, match="size was 224, is 64"):
        check_identity(IDENTITY, other, folder=tmp_path, defaults={"recipe": {"size": 224}})
    defaults = identity_defaults(load_recipe("quickstart"))["recipe"]
    assert defaults["betas"] == [0.9, 0.999]
    assert defaults["attention"] is None
    assert "workers" not in defaults


def test_our_network_is_kept_as_our_checkpoint(tmp_path: Path) -> None:
    model = build(tiny_config())
    metadata = Metadata(class_names=("a", "b", "c"), metrics={"top1": 50.0})
    save_network(model, tmp_path / "net.safetensors", name="tiny", metadata=metadata)
    loaded = load(tmp_path / "net.safetensors")
    assert loaded.metadata == metadata
    assert torch.equal(loaded.stem.conv1.conv.weight, model.stem.conv1.conv.weight)


def test_other_network_is_kept_as_tensors(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_network(nn.Linear(2, 3), path, name="a peer", metadata=Metadata(class_names=("a", "b", "c")))
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == {"weight", "bias"}
        assert "a peer" in file.metadata()["network"]


def write_states(files: RunFolder, *steps: int) -> None:
    files.path.mkdir(parents=True)
    for step in steps:
        trained(step, step=step).save(files.state, identity=IDENTITY, previous=files.state_before)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path: Path) -> None:
    contents = bytearray(path.read_bytes())
    contents[-50] ^= 1
    path.write_bytes(contents)


def test_one_flipped_bit_anywhere_is_damage(tmp_path: Path) -> None:
    """Every bit of the progress, and a sample of those of the layout, the identity and the tensors."""
    path = tmp_path / "state.safetensors"
    model = nn.Linear(2, 3)
    state = TrainState(
        model=model,
        ema=ModelEma(model, decay=0.9),
        optimizer=build_optimizer(model, tiny_recipe()),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        progress=TrainProgress(step=3, epoch=1, sums={"loss": 1.5}),
    )
    model(torch.ones(1, 2)).sum().backward()
    state.optimizer.step()
    state.save(path, identity=IDENTITY)
    contents = path.read_bytes()
    progress = contents.index(b"position")
    bits = set(range(8 * progress, 8 * contents.index(b"}", progress)))
    bits |= set(range(64)) | set(random.Random(0).sample(range(8 * len(contents)), 1000))
    for bit in sorted(bits):
        flipped = bytearray(contents)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(WeightsError, match=r"state\.safetensors"):
            read_state(path)


@pytest.mark.parametrize("position", ["[]", '{"step": "3"}', '{"step": -1}', '{"steps": 3}', "[" * 100_000])
def test_state_with_impossible_progress_is_damaged(tmp_path: Path, position: str) -> None:
    header = {"format": OLD_FORMAT, "position": position, "identity": "{}", "scaler": "{}"}
    save_file({}, tmp_path / "state.safetensors", header)
    with pytest.raises(WeightsError, match=r"state\.safetensors is damaged"):
        read_state(tmp_path / "state.safetensors")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut_short, "is damaged|incomplete|not a sound"),
        (flip_a_bit, "is damaged: its checksum does not match its contents"),
        (Path.unlink, r"is missing \(the run was killed while it was written\)"),
    ],
)
def test_damaged_state_falls_back_to_the_previous_one(
    tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    files = RunFolder(tmp_path / "run")
    write_states(files, 3, 5)
    found = read_newest_state(files)
    assert found is not None
    assert found[0].progress.step == 5
    assert found[1] is None
    damage(files.state)
    found = read_newest_state(files)
    assert found is not None
    saved, warning = found
    assert saved.progress.step == 3
    assert re.search(rf"resume\.safetensors.*({reason})", warning or "")
    assert (warning or "").endswith("; continuing from the state before it, of step 3")


def test_damaged_state_does_not_replace_the_previous_one(tmp_path: Path) -> None:
    files = RunFolder(tmp_path / "run")
    write_states(files, 3, 5)
    cut_short(files.state)
    trained(1, step=7).save(files.state, identity=IDENTITY, previous=files.state_before)
    assert saved_step(files.state) == 7
    assert saved_step(files.state_before) == 3


def test_states_that_are_all_damaged_are_an_error(tmp_path: Path) -> None:
    files = RunFolder(tmp_path / "run")
    assert read_newest_state(files) is None
    write_states(files, 3, 5)
    cut_short(files.state)
    cut_short(files.state_before)
    with pytest.raises(WeightsError, match=r"resume\.safetensors .*start again with --overwrite"):
        read_newest_state(files)
