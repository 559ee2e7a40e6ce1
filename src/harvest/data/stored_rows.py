"""Vectors of one size on disk, of which each step reads a few: what was computed once of every caption of a data set.

FOLDER/block-00000.npy, block-00001.npy, …   `[rows_a_block, E]` each, the last one shorter

Rows are read by `os.pread` from where they lie. The system keeps in its page cache what is read often, once for all
processes of a machine; mapped pages would be counted as memory of every process that has touched them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harvest.files import new_file
from harvest.interfaces import HarvestError

_MOST_BLOCKS = 512  # files that one process has open


def rows_a_block(num_rows: int) -> int:
    """65,536, or more where there would be more than 512 blocks."""
    return max(2**16, -(-num_rows // _MOST_BLOCKS))


def blocks_of(num_rows: int) -> list[range]:
    """The rows of each block."""
    size = rows_a_block(num_rows)
    return [range(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


def block_path(folder: Path, number: int) -> Path:
    return folder / f"block-{number:05d}.npy"


def write_block(folder: Path, number: int, rows: np.ndarray) -> None:
    """Write one block `[n, E]`, whole or not at all."""
    with new_file(block_path(folder, number)) as part, open(part, "wb") as file:
        np.save(file, rows, allow_pickle=False)


class StoredRows:
    """`num_rows` vectors in the blocks of a folder: `store(numbers)` of int64 `[...]` is `[..., E]`, in the type stored.

    Raises HarvestError for blocks that are missing, cut short, or of other sizes. It may be used in forked and in
    spawned processes.
    """

    def __init__(self, folder: Path, num_rows: int) -> None:
        self.folder, self.num_rows = folder, num_rows
        self._rows_a_block = rows_a_block(num_rows)
        self._starts: list[int] = []  # of the first row, in bytes
        kinds = set()
        for number, rows in enumerate(blocks_of(num_rows)):
            path = block_path(folder, number)
            try:
                block = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise HarvestError(
                    f"{path} cannot be read: {error}. Remove {folder} to fill it anew."
                ) from error
            if block.ndim != 2 or len(block) != len(rows) or not block.flags.c_contiguous:
                raise HarvestError(
                    f"{path}: expected {len(rows)} rows, got {list(block.shape)}: remove {folder}"
                )
            self._starts.append(int(block.offset))
            kinds.add((block.shape[1], block.dtype))
        if len(kinds) != 1:
            raise HarvestError(f"the blocks of {folder} are of different kinds ({kinds}): remove it")
        self.width, self.dtype = kinds.pop()
        self._open: dict[int, int] = {}

    def __len__(self) -> int:
        return self.num_rows

    def __call__(self, numbers: Tensor) -> Tensor:
        size = self.width * self.dtype.itemsize
        wanted = numbers.flatten().numpy()
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < self.num_rows):
            raise IndexError(
                f"rows from 0 to {self.num_rows - 1} are stored, {wanted.min()} to {wanted.max()} asked for"
            )
        blocks, rows_in = np.divmod(wanted, self._rows_a_block)
        for block in set(blocks.tolist()) - self._open.keys():
            self._open[block] = os.open(block_path(self.folder, block), os.O_RDONLY)
            if hasattr(os, "posix_fadvise"):  # nothing is read ahead of a row
                os.posix_fadvise(self._open[block], 0, 0, os.POSIX_FADV_RANDOM)
        starts = (np.array(self._starts)[blocks] + rows_in * size).tolist()
        files, pread = self._open, os.pread
        parts = [
            pread(files[block], size, start) for block, start in zip(blocks.tolist(), starts, strict=True)
        ]
        data = bytearray().join(parts)
        if len(data) != size * len(wanted):
            raise HarvestError(f"a block of {self.folder} has been cut short: remove it")
        rows = np.frombuffer(data, dtype=self.dtype).reshape(*numbers.shape, self.width)
        return torch.from_numpy(rows)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def __del__(self) -> None:
        for file in getattr(self, "_open", {}).values():
            os.close(file)
