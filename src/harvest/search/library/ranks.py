"""The processes that index together under torchrun. One that indexes alone needs no PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from harvest.launched import is_launched


@contextmanager
def world() -> Iterator[bool]:
    """`parallel.world`: join the processes that torchrun started, or be alone. Gives whether this is the first of them."""
    if not is_launched():
        yield True
        return
    from harvest import parallel

    with parallel.world() as here:
        yield here.is_main


def world_rank_size() -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) when alone."""
    if not is_launched():
        return 0, 1
    from harvest import parallel

    return parallel.world_rank_size()


def barrier() -> None:
    """Wait for every rank; alone, nothing."""
    if is_launched():
        from harvest import parallel

        parallel.barrier()
