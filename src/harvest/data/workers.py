"""Loader workers: how they start, what they send, and how they end.

PyTorch learns of a dead worker by SIGCHLD, and its handler raises wherever the main thread happens to be: in code of
another kind, in a destructor, in the next test. Here it is allowed to speak only while a batch is waited for: the
workers are registered with it for the duration of one `next`, and never again once they are told to end.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from torch._C import _error_if_any_worker_fails, _remove_worker_pids, _set_worker_pids
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from harvest.data.video import Decoder
from harvest.interfaces import HarvestError

_END_S = 5.0  # what a killed process may need until it is gone


@runtime_checkable
class Guarded(Protocol):
    """A data set that reads videos in a process of its own (`data.guard`)."""

    def start_guard(self) -> None:
        """From now on read in a process of its own. Called in workers, before they have threads."""


def worker_batches(
    dataset: Dataset,
    keys: Any,
    *,
    workers: int,
    decoder: Decoder,
    prefetch: int = 2,
    pin_memory: bool = False,
) -> Iterator[Any]:
    """`dataset[k]` for each k of the iterable `keys`, in its order, computed by worker processes; with 0 workers here.

    Raises HarvestError where the system ended a worker, and what `dataset` raises as it is. The workers are ended when
    the iterator is closed, exhausted or collected.
    """
    loader = DataLoader(
        dataset,
        sampler=keys,  # its "indices" are whatever the data set takes
        batch_size=None,
        collate_fn=_unchanged,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        worker_init_fn=_start_worker if workers else None,
        multiprocessing_context=start_method(decoder, workers),
        pin_memory=pin_memory,
    )
    if not workers:
        yield from loader
        return
    batches, end = iter(loader), object()
    assert isinstance(batches, _MultiProcessingDataLoaderIter)
    _forget(batches)
    try:
        while True:
            try:
                with _watched(batches):
                    item = next(batches, end)
            except (EOFError, ConnectionError) as error:  # a worker died while it was sending a batch
                wait([worker.sentinel for worker in batches._workers], timeout=_END_S)
                raise _ended_by_the_system(error) from error
            except RuntimeError as error:
                if "DataLoader worker (pid" not in str(error):  # a worker's own error says "Caught … in"
                    raise
                raise _ended_by_the_system(error) from error
            if item is end:
                return
            yield item
    finally:
        _end(batches)


def start_method(decoder: Decoder, workers: int) -> str | None:
    """How worker processes start; None as PyTorch does.

    On Linux they are forked, whatever Python's default (another from 3.14 on), so that ten million examples are not
    copied to each. Python from 3.12 on warns of forks where a process has threads, which a training process has; what
    these threads may hold is not used by workers: they compute with one thread and write nothing to a terminal.

    What is forked from a process that uses a GPU cannot use it: workers that decode on one are spawned, and fork their
    guarded process before anything in them touches the GPU.
    """
    if not workers:
        return None
    if decoder == "torchcodec_cuda":
        return "spawn"
    return "fork" if sys.platform == "linux" else None


def _unchanged(item: Any) -> Any:
    return item


def _start_worker(worker: int) -> None:
    """Ctrl-C, and SIGTERM to a whole process group, are for the training process, which saves and then ends its workers.
    Reading is guarded."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # A spawned worker would take C++ libraries apart while their threads run, and now and then abort; a forked one
    # does not get there.
    atexit.register(os._exit, 0)
    sys.excepthook = _report
    if hasattr(os, "fork"):
        info = get_worker_info()
        assert info is not None and isinstance(info.dataset, Guarded)
        info.dataset.start_guard()


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """As Python does, but for a connection that ends: the thread that hands over a batch reports its reader's death."""
    if not issubclass(kind, (EOFError, ConnectionError)):
        sys.__excepthook__(kind, error, trace)


@contextmanager
def _watched(batches: _MultiProcessingDataLoaderIter) -> Iterator[None]:
    """PyTorch's handler raises RuntimeError in this block if a worker has died, now or since the last block."""
    if (
        threading.current_thread() is not threading.main_thread()
    ):  # the handler would raise in the main thread
        yield  # PyTorch itself looks every few seconds whether its workers live
        return
    try:
        pids = tuple(worker.pid for worker in batches._workers)
        _set_worker_pids(id(batches), pids)  # type: ignore
        _error_if_any_worker_fails()
        yield
    finally:
        _forget(batches)


def _forget(batches: _MultiProcessingDataLoaderIter) -> None:
    with suppress(ValueError):  # they are not registered
        _remove_worker_pids(id(batches))
    batches._worker_pids_set = False


def _end(batches: _MultiProcessingDataLoaderIter) -> None:
    """End the workers, whatever state they are in: asked first, then by SIGTERM, then by SIGKILL."""
    _forget(batches)
    batches._shutdown_workers()
    for worker in batches._workers:
        if worker.is_alive():
            worker.kill()
            worker.join(_END_S)


def _ended_by_the_system(error: Exception) -> HarvestError:
    reason = str(error).splitlines()[0] if str(error) else "no reason given"
    return HarvestError(
        f"a process that reads videos was ended by the system ({reason}), mostly for want of memory: take fewer"
        " --data.workers. The same command goes on from the last checkpoint."
    )
