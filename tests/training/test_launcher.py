"""The environment variables of launchers."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import accelerate
import pytest

from iformer.errors import UserError
from iformer.training import distributed
from iformer.training.distributed import launch, launched_processes


@pytest.fixture
def new_process() -> Iterator[None]:
    """Accelerate as in a process that has trained nothing yet."""
    reset = accelerate.state.AcceleratorState._reset_state
    reset(reset_partial_state=True)
    yield
    reset(reset_partial_state=True)


@pytest.mark.usefixtures("new_process")
@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"WORLD_SIZE": "two"},
            "WORLD_SIZE is 'two'; expected a number of 1 or more; start them with torchrun",
        ),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'; expected a number of 1 or more"),
        ({"RANK": "-1"}, "RANK is '-1'; expected a number of 0 or more"),
        ({"MASTER_PORT": "9" * 5000}, "MASTER_PORT is '999"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK 2 and WORLD_SIZE 2 do not fit"),
        ({"ACCELERATE_USE_CPU": "abc"}, "Accelerate cannot start (.*); the environment sets ACCELERATE_USE_CPU"),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "cannot be joined (.*); start them with torchrun"),
    ],
)
def test_variables_of_launchers_that_do_not_fit(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match=message.replace("(.*)", r"\(.*\)")):
        launch("cpu", "fp32")


@pytest.mark.usefixtures("new_process")
@pytest.mark.parametrize(("rank", "reason"), [("0", "1/2 clients joined"), ("1", "not complete|timed out")])
def test_a_process_does_not_wait_for_long_for_one_that_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str, reason: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for name, value in (group | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "JOIN_SECONDS", 1)
    monkeypatch.setattr(distributed, "_NOTE_SECONDS", 0.1)
    with pytest.raises(UserError, match=rf"cannot be joined \(.*({reason}).*; see the messages of the other proc"):
        launch("cpu", "fp32")
    assert f"rank {rank} waits for the other processes of this run (2 in all" in capsys.readouterr().err


def test_the_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launched_processes() == 1
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert launched_processes() == 8
