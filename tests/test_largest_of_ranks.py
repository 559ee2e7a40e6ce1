"""Numbers of all ranks, known at the same step without waiting."""

from __future__ import annotations

import os
from pathlib import Path

import torch.distributed as dist
import torch.multiprocessing as mp

from harvest.parallel import LargestOfRanks, meet

SAID = ([0, 2, 0, 0], [0, 0, 15, 0])


def on_a_rank(rank: int, folder: str) -> None:
    meet(dist.FileStore(f"{folder}/meet", 2), rank, 2)
    largest = LargestOfRanks()
    known = [largest(number) for number in SAID[rank]]
    Path(folder, str(rank)).write_text(repr([*known, largest.close()]))
    dist.barrier()
    os._exit(0)  # gloo's threads now and then abort a process that tears them down at its end


def test_every_rank_knows_the_largest_number_one_step_later(tmp_path: Path) -> None:
    mp.spawn(on_a_rank, (str(tmp_path),), nprocs=2)
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["[0, 0, 2, 15, 0]"] * 2


def test_alone_a_number_is_itself() -> None:
    assert [LargestOfRanks()(number) for number in (0, 15)] == [0, 15]
