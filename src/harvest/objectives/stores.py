"""Filling `data.stored_rows`: what a frozen tower says of every clip or caption is computed once, before the first step.

Ranks share the blocks. A start that was stopped goes on with those that are missing; runs of the same tower and the same
data share them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harvest.data.columns import Columns
from harvest.data.stored_rows import Fields, StoredRows, block_path, pack, row_size, rows_a_block
from harvest.files import begin_filling, finish_filling, new_file
from harvest.interfaces import HarvestError
from harvest.objectives.contract import Ready
from harvest.parallel import Precision, World, autocast, barrier, computed_in, sync_errors
from harvest.progress import bar

Compute = Callable[[range], Iterable[tuple[Tensor, Mapping[str, Tensor]]]]
"""For some rows: batches (their numbers `[n]`, ascending, and fields `[n, *shape]`)."""


def open_rows(
    parent: Path,
    kind: str,
    made_of: Mapping[str, Any],
    num_rows: int,
    fields: Fields,
    compute: Compute,
    *,
    here: World,
    precision: Precision,
) -> StoredRows:
    """Open `parent/KIND-DIGEST`, after computing the blocks that are missing, one batch of `compute` in memory at a time.

    Raises HarvestError where the folder cannot be written or is damaged.
    """
    types = {name: [str(dtype), list(shape)] for name, (dtype, shape) in fields.items()}
    made_of = {**made_of, "rows": num_rows, "fields": types}
    folder = parent / f"{kind}-{hashlib.blake2b(json.dumps(made_of).encode(), digest_size=8).hexdigest()}"
    is_new, size = False, row_size(fields)
    with sync_errors():
        if here.is_main:
            try:
                is_new = begin_filling(folder, made_of, f"store of {kind}")
            except OSError as error:
                raise HarvestError(f"{kind} cannot be stored in {folder}: {error.strerror}") from error
    barrier()
    a_block = rows_a_block(num_rows, size)
    starts = range(here.rank * a_block, num_rows, here.size * a_block)
    with (
        bar(f"computing {kind}", quiet=not here.is_main) as progress,
        torch.no_grad(),
        autocast(here.device, precision),
        sync_errors(),
    ):
        for before, start in enumerate(starts):
            rows = range(start, min(start + a_block, num_rows))
            path = block_path(folder, start // a_block)
            if path.exists():
                continue
            with new_file(path) as part, open(part, "wb") as file:
                file.truncate(len(rows) * size)
                for numbers, values in compute(rows):
                    for number, row in zip(numbers.tolist(), pack(values, fields).numpy(), strict=True):
                        file.seek((number - start) * size)
                        file.write(row.data)
                    progress(min((before * a_block + number - start + 1) * here.size, num_rows), num_rows)
    barrier()
    if is_new:
        finish_filling(folder, made_of)
    barrier()
    return StoredRows(folder, num_rows, fields)


def open_clip_rows(
    ready: Ready,
    parent: Path,
    kind: str,
    made_of: Mapping[str, Any],
    fields: Fields,
    look: Callable[[Tensor, Tensor], Mapping[str, Tensor]],
) -> StoredRows:
    """A row for each clip of the training set, which the data set adds to its batches from now on.

    `look` gives the fields for clips' numbers `[n]` and frames `[n, T, 3, S, S]`, as the run shows them when nothing is
    drawn.
    """
    from harvest.data.read_once import first_rows  # decodes: training is started where there is no PyAV too

    data, run, here = ready.dataset, ready.run, ready.here
    if not isinstance(data.examples, Columns):
        raise HarvestError(f"a store of {kind} needs a manifest: shards have no order of clips to keep")
    clips, examples = first_rows(data.clip_of), data.examples
    precision = computed_in(here.device, run.loop.precision)

    def compute(rows: range) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
        for numbers, video in ready.read_clips([examples[clips[row]] for row in rows]):
            yield numbers + rows.start, look(numbers + rows.start, video.to(here.device))

    made_of = {
        **made_of,
        "clips": examples.clips_digest(),
        "shown": [run.data.num_frames, data.image_size, data.fit],
        "computed": precision,
    }
    store = open_rows(parent, kind, made_of, data.num_clips, fields, compute, here=here, precision=precision)
    data.stored = ("example", store)
    return store
