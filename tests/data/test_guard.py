"""Calls that hang, crash or end their process are lost; the caller and the other calls are not."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from harvest.data.guard import Guard, Lost
from harvest.interfaces import HarvestError


def behave(what: str) -> object:
    if what == "pid":
        return os.getpid()
    if what == "segfault":
        ctypes.string_at(0)
    if what == "abort":
        os.abort()
    if what == "exit":
        os._exit(3)
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "sleep":
        time.sleep(1000)
    if what == "spin":  # in Python, so that no signal handler of C code could help
        while True:
            pass
    if what == "mistake":
        raise KeyError("ours")
    if what == "error":
        raise HarvestError("mend it")
    return np.full((2, 3), len(what), dtype=np.uint8)


@pytest.fixture
def guard(request: pytest.FixtureRequest):
    guard = Guard(behave, limit_s=getattr(request, "param", 20.0))
    yield guard
    guard.close()


def test_results_come_back(guard: Guard) -> None:
    assert guard("four").tolist() == [[4] * 3] * 2
    assert guard("pid") == guard("pid") != os.getpid()


@pytest.mark.parametrize(
    ("guard", "what", "reason"),
    [
        (60.0, "segfault", "crashed (SIGSEGV)"),
        (60.0, "abort", "crashed (SIGABRT)"),
        (60.0, "killed", "crashed (SIGKILL); out of memory?"),
        (60.0, "exit", "exit code 3"),
        (2.0, "sleep", "longer than 2 s"),
        (2.0, "spin", "longer than 2 s"),
    ],
    indirect=["guard"],
)
def test_a_lost_call_has_a_reason_and_the_next_one_works(guard: Guard, what: str, reason: str) -> None:
    before = guard("pid")
    began = time.monotonic()
    with pytest.raises(Lost) as lost:
        guard(what)
    assert reason in str(lost.value) and time.monotonic() - began < 50  # its limit is not waited for
    assert guard("pid") != before
    with pytest.raises(ProcessLookupError):
        os.kill(before, 0)


def test_errors_cross_the_border(guard: Guard) -> None:
    with pytest.raises(HarvestError, match="mend it"):
        guard("error")
    with pytest.raises(RuntimeError, match="KeyError: 'ours'"):
        guard("mistake")
    assert guard("pid")


def test_the_process_is_replaced_after_so_many_calls() -> None:
    guard = Guard(behave, limit_s=60, max_calls=3)
    pids = [guard("pid") for _ in range(7)]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3, 1]
    guard.close()


def allocate(megabytes: int) -> int:
    with mmap.mmap(-1, megabytes << 20) as memory:  # new pages: what the heap has kept free does not count
        return len(memory)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_memory_is_limited() -> None:
    guard = Guard(allocate, limit_s=20, max_bytes=400 << 20)
    with pytest.raises(RuntimeError, match="Cannot allocate memory"):
        guard(600)
    assert guard(50) == 50 << 20
    guard.close()


def test_the_process_ends_with_its_parent() -> None:
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        guard = Guard(behave, limit_s=60)
        os.write(write, str(guard("pid")).encode())
        os._exit(0)
    os.waitpid(parent, 0)
    child = int(os.read(read, 20))
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        with open(f"/proc/{child}/stat") as file:  # nobody may be there to collect it
            if file.read().rsplit(")", 1)[1].split()[0] == "Z":
                return
        time.sleep(0.02)
    pytest.fail("the child outlived its parent")


def test_a_caller_that_computes_with_several_threads_can_read() -> None:
    """OpenMP's threads are not forked: what is computed with several of them in the child would wait for ever."""
    script = """
import torch
from harvest.data.guard import Guard
torch.set_num_threads(2)
def add(size):
    return float((torch.ones(size) + 1).sum())
add(4_000_000)
print(Guard(add, limit_s=20.0)(4_000_000))
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    ended = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.stdout == "8000000.0\n", ended.stderr


def test_a_child_that_somebody_else_collected_is_not_killed(
    guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its number may belong to another process by then."""
    number = guard("pid")
    assert isinstance(number, int)
    os.kill(number, signal.SIGKILL)
    os.waitpid(number, 0)
    killed: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(os, "kill", lambda child, _: killed.append(child))
        with pytest.raises(Lost, match="is gone"):
            guard("four")
    assert not killed and guard("four") is not None
