"""What a frozen tower says of every clip or caption, computed once: rows of bytes on disk, of which a step reads a few.

FOLDER/KIND-0123456789abcdef/     named by a digest of what it is made of: the tower and the data
    block-00000.bin, …            rows of equal size, one behind the other; zeros where nothing could be computed
    cache.json                    what it is made of; written last, `filling.json` until then

Loader workers read the rows of a batch by `os.pread` from where they lie: the system keeps in its page cache what is read
often, once for all processes of a machine, where mapped pages would be counted as memory of every process that has
touched them. Numbers stay in the type that they are stored in, of 8, 16 or 32 bits, until `unpack` on the device.
`objectives/stores.py` fills the blocks.

Letters in shapes: n rows, R bytes a row.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harvest.interfaces import HarvestError

Fields = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""What a row holds, in this order: by its name the type and the shape of a tensor."""

_MOST_BLOCKS = 512  # files that one process has open
_BLOCK_BYTES = 2**27


def row_size(fields: Fields) -> int:
    """Bytes of a row."""
    return sum(dtype.itemsize * math.prod(shape) for dtype, shape in fields.values())


def rows_a_block(num_rows: int, size: int) -> int:
    """Rows of `size` bytes in each block: up to 65,536 or 128 MB, but at least 64 blocks for ranks to share, where that
    leaves 256 rows, and at most 512."""
    shared = max(256, -(-num_rows // 64))
    return max(1, -(-num_rows // _MOST_BLOCKS), min(2**16, _BLOCK_BYTES // size, shared))


def pack(values: Mapping[str, Tensor], fields: Fields) -> Tensor:
    """Tensors `[n, *shape]` as rows, uint8 `[n, R]` on the CPU."""
    parts = [
        values[name].to("cpu", dtype).flatten(1).view(torch.uint8) for name, (dtype, _) in fields.items()
    ]
    return torch.cat(parts, dim=1)


def unpack(rows: Tensor, fields: Fields) -> dict[str, Tensor]:
    """The tensors `[..., *shape]` of rows uint8 `[..., R]`, on their device."""
    found, start = {}, 0
    for name, (dtype, shape) in fields.items():
        end = start + dtype.itemsize * math.prod(shape)
        part = rows[..., start:end].clone(memory_format=torch.contiguous_format)  # aligned for its type
        found[name], start = part.view(dtype).view(*rows.shape[:-1], *shape), end
    return found


def block_path(folder: Path, number: int) -> Path:
    return folder / f"block-{number:05d}.bin"


class StoredRows:
    """The rows of a folder: `store(numbers)` of int64 `[...]` is uint8 `[..., R]`; -1 is the last row.

    Raises HarvestError for blocks that are missing or cut short, and for rows that nothing could be computed for. It
    may be used in forked and in spawned processes.
    """

    def __init__(self, folder: Path, num_rows: int, fields: Fields) -> None:
        self.folder, self.num_rows, self.fields = folder, num_rows, fields
        self._size = row_size(fields)
        self._rows_a_block = rows_a_block(num_rows, self._size)
        self._open: dict[int, int] = {}
        for start in range(0, num_rows, self._rows_a_block):
            path = block_path(folder, start // self._rows_a_block)
            expected = min(self._rows_a_block, num_rows - start) * self._size
            found = path.stat().st_size if path.is_file() else 0
            if found != expected:
                raise HarvestError(
                    f"{path} has {found:,} bytes, expected {expected:,}: remove {folder} to fill it anew"
                )

    def __len__(self) -> int:
        return self.num_rows

    def __call__(self, numbers: Tensor) -> Tensor:
        size, wanted = self._size, numbers.flatten().numpy()
        if len(wanted) and not (wanted.min() >= -1 and wanted.max() < self.num_rows):
            raise IndexError(f"{self.num_rows} rows are stored, {wanted.min()} to {wanted.max()} asked for")
        blocks, rows_in = np.divmod(wanted % self.num_rows, self._rows_a_block)
        for block in set(blocks.tolist()) - self._open.keys():
            self._open[block] = os.open(block_path(self.folder, block), os.O_RDONLY)
            if hasattr(os, "posix_fadvise"):  # nothing is read ahead of a row
                os.posix_fadvise(self._open[block], 0, 0, os.POSIX_FADV_RANDOM)
        files, pread = self._open, os.pread
        places = zip(blocks.tolist(), (rows_in * size).tolist(), strict=True)
        parts = [pread(files[block], size, start) for block, start in places]
        nothing = bytes(size)
        if nothing in parts:
            raise HarvestError(
                f"{self.folder} lacks row {wanted[parts.index(nothing)]}: its video could not be read when it was "
                "filled. Remove the folder to fill it anew, or the video from the training set."
            )
        data = bytearray().join(parts)
        if len(data) != size * len(wanted):
            raise HarvestError(f"a block of {self.folder} has been cut short: remove it")
        return torch.from_numpy(np.frombuffer(data, np.uint8)).view(*numbers.shape, size)

    def read(self, numbers: Tensor) -> dict[str, Tensor]:
        """The fields of rows, on the CPU."""
        return unpack(self(numbers), self.fields)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def __del__(self) -> None:
        for file in getattr(self, "_open", {}).values():
            os.close(file)
