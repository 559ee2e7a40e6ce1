"""How loader workers start and end: whatever ends them, PyTorch speaks of it while a batch is waited for, or never."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_sharer
from multiprocessing.connection import Client
from typing import Any

import pytest
from torch.utils.data import Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from harvest.data import workers
from harvest.data.workers import start_method, worker_batches
from harvest.interfaces import HarvestError

METHODS = ["fork", "spawn"] if sys.platform == "linux" else ["spawn"]


class Squares(Dataset):
    """No videos: what is tested are processes."""

    def __init__(self, pause_s: float = 0.0) -> None:
        self.pause_s = pause_s

    def start_guard(self) -> None:
        pass

    def __getitem__(self, keys: list[int]) -> list[int]:
        time.sleep(self.pause_s)
        return [key * key for key in keys]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The worker processes of the iterators made in a test."""
    processes: list[Any] = []
    made = _MultiProcessingDataLoaderIter.__init__

    def note(self: Any, loader: Any) -> None:
        made(self, loader)
        processes.extend(self._workers)

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "__init__", note)
    return processes


@pytest.fixture(params=METHODS)
def squares(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Iterator[Any]]:
    monkeypatch.setattr(workers, "start_method", lambda decoder, count: request.param)

    def make(*, count: int = 1, pause_s: float = 0.0) -> Iterator[Any]:
        keys = ([n, n + 1] for n in range(10**6))
        return worker_batches(Squares(pause_s), keys, workers=count, decoder="pyav")

    return make


def other_child_ends() -> None:
    """What makes PyTorch's handler look at all workers that it knows."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    time.sleep(0.01)


def test_start_methods() -> None:
    assert start_method("torchcodec_cuda", 0) is start_method("pyav", 0) is None
    assert start_method("torchcodec_cuda", 2) == "spawn"
    assert start_method("pyav", 2) == ("fork" if sys.platform == "linux" else None)


def test_workers_give_what_the_data_set_gives(squares: Any, started: list[Any]) -> None:
    batches = squares(count=2)
    assert [next(batches) for _ in range(5)] == [[n * n, (n + 1) ** 2] for n in range(5)]
    batches.close()
    assert len(started) == 2 and all(process.exitcode == 0 for process in started)


def test_a_killed_worker_is_an_error_of_the_next_batch_and_of_nothing_else(
    squares: Any, started: list[Any]
) -> None:
    batches = squares()
    next(batches)
    os.kill(started[0].pid, signal.SIGKILL)
    other_child_ends()  # here nobody waits for a batch
    with pytest.raises(
        HarvestError, match=r"ended by the system.*fewer --data.workers.*last checkpoint"
    ) as error:
        for _ in range(30):
            next(batches)
    other_child_ends()  # and here its iterator is gone, though the traceback still holds it
    assert error.traceback and not started[0].is_alive()


def test_a_worker_that_is_killed_while_a_batch_is_waited_for(squares: Any, started: list[Any]) -> None:
    batches = squares(pause_s=1000.0)

    def kill() -> None:
        while not started:
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(started[0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(HarvestError, match=r"ended by the system \(DataLoader worker \(pid"):
        next(batches)
    killer.join()


def test_workers_that_die_while_they_are_ended_say_nothing(
    squares: Any, started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shut_down = _MultiProcessingDataLoaderIter._shutdown_workers

    def with_a_death(self: Any) -> None:
        for worker in self._workers:
            if worker.is_alive():
                os.kill(worker.pid, signal.SIGKILL)
        time.sleep(0.05)
        shut_down(self)

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_shutdown_workers", with_a_death)
    batches = squares(count=2)
    next(batches)
    del batches
    gc.collect()  # raised in a destructor it would be a warning, and so an error here
    other_child_ends()
    assert all(process.exitcode == -signal.SIGKILL for process in started)


def test_a_worker_that_does_not_end_is_killed(
    squares: Any, started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_shutdown_workers", lambda self: None)
    batches = squares(pause_s=0.1)
    next(batches)
    batches.close()
    assert [process.exitcode for process in started] == [-signal.SIGKILL]


class Interrupted(Squares):
    """Its worker offers memory, and the process that asks for it is gone before it has read the answer."""

    def __getitem__(self, keys: list[int]) -> list[int]:
        read, write = os.pipe()
        address, _ = resource_sharer.DupFd(read)._id
        with socket.socket(socket.AF_UNIX) as reader:
            reader.connect(address)
        with Client(address) as reader:  # the thread has met the first, and goes on with the next
            assert b"CHALLENGE" in reader.recv_bytes()
        os.close(write)
        return keys


@pytest.mark.skipif(sys.platform != "linux", reason="memory is handed over by a socket")
def test_a_worker_does_not_report_that_its_reader_is_gone(capfd: pytest.CaptureFixture[str]) -> None:
    batches = worker_batches(Interrupted(), [[1], [2]], workers=1, decoder="pyav")
    assert list(batches) == [[1], [2]]
    assert "Traceback" not in capfd.readouterr().err


def test_batches_may_be_waited_for_in_another_thread(squares: Any) -> None:
    got: list[Any] = []

    def read() -> None:
        batches = squares()
        got.append(next(batches))
        batches.close()

    thread = threading.Thread(target=read)
    thread.start()
    thread.join(200)
    assert got == [[0, 1]]
