"""The output of converters is suppressed; that of other threads is not."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import redirect_stdout

import pytest

from iformer.deploy.quiet import quiet


def in_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(timeout=60)
    assert not thread.is_alive()


def test_everything_the_thread_writes_is_suppressed(capfd: pytest.CaptureFixture[str]) -> None:
    print("before")
    with quiet():
        print("from Python")
        print("from Python", file=sys.__stderr__, flush=True)
        os.write(1, b"from C")
        subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)
        with quiet():
            print("nested")
        print("still quiet", file=sys.stderr)
    print("after")
    assert capfd.readouterr() == ("before\nafter\n", "")
    assert "write" not in vars(sys.stdout)


def test_an_error_carries_the_end_of_the_suppressed_text() -> None:
    def fail() -> None:
        with quiet(), quiet():
            print("from Python")
            os.write(2, b"from C")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken") as caught:
        fail()
    assert caught.value.__notes__ == ["from Python\nfrom C"]


def test_other_threads_print_and_log_as_always() -> None:
    script = """
import logging, sys, threading
from iformer.deploy.quiet import quiet
logging.basicConfig(format="%(message)s")
def talk():
    print("printed \u00e4")
    print("flushed", flush=True)
    print("to stderr", file=sys.stderr)
    logging.warning("logged")
with quiet():
    print("swallowed")
    logging.warning("swallowed")
    thread = threading.Thread(target=talk)
    thread.start()
    thread.join()
print("after")
"""
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", script], capture_output=True, encoding="utf-8", timeout=60, check=True
    )
    assert done.stdout == "printed \u00e4\nflushed\nafter\n"
    assert done.stderr == "to stderr\nlogged\n"


def test_streams_of_the_caller_stay_open_and_in_place() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    with redirect_stdout(stream):
        with quiet():
            print("swallowed")
            in_thread(lambda: print("other thread"))
            handler.emit(logging.makeLogRecord({"msg": "swallowed"}))
        assert sys.stdout is stream
        print("after")
    assert stream.getvalue() == "other thread\nafter\n"


def test_a_closed_stream_of_the_caller_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stdout", stream)
    with quiet():
        pass
    assert sys.stdout is stream


def test_threads_are_quiet_one_after_the_other(capfd: pytest.CaptureFixture[str]) -> None:
    inside = 0
    most = 0
    streams = sys.stdout, sys.stderr

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            with quiet():
                inside += 1
                most = max(most, inside)
                print("swallowed")
                os.write(1, b"swallowed")
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert most == 1
    assert (sys.stdout, sys.stderr) == streams
    print("after")
    assert capfd.readouterr() == ("after\n", "")
