"""What is to be evaluated, row by row: a manifest, or the samples of shards, which an address finds again.

`path/shard-000003.tar#12` is sample 12 of a shard. It stands where a manifest names a file, so that all that works on
examples works on shards; the bytes are read when the clip is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from harvest.data.manifest import read_manifest
from harvest.data.shards import ShardSet, are_shards, open_shard, read_shards
from harvest.data.stretches import read_bytes
from harvest.data.tables import parquet_cell
from harvest.data.video import PackedVideo, VideoError
from harvest.interfaces import Example, HarvestError, OnProgress

_SAMPLE = re.compile(r"(.+\.tar)#(\d+)")
_MEMBER = re.compile(r"(.+\.tar)#@(\d+)\+(\d+)")
_CELL = re.compile(r"(.+\.parquet)#(\d+)/(.+)")
_OPEN_SHARDS = 64


def read_rows(
    name: str,
    *,
    videos: Path | None = None,
    form: str = "",
    columns: Sequence[str] = (),
    progress: OnProgress = lambda done, of: None,
) -> tuple[Sequence[Example], dict[str, str]]:
    """The rows of a manifest or, in their order, of tar shards, and those left out, with reasons.

    `name` is a manifest (`read_manifest`), a folder of shards, `shards-{000..009}.tar`, or such an address in a bucket.
    All captions are read now, for which shards are read through once.
    """
    if not are_shards(name):
        manifest = read_manifest(name, videos=videos, form=form, columns=columns)
        return manifest, manifest.left_out | {id: "no video" for id in manifest.missing}
    if videos is not None:
        raise HarvestError(
            f"{name} are shards, which hold their videos: leave out the folder of videos, {videos}"
        )
    shards = read_shards(name)
    rows, refused = shards.rows(progress)
    if not rows:
        first, reason = next(iter(refused.items()))
        raise HarvestError(
            f"none of the {len(refused)} samples of {name} can be read; the first, {first}: {reason}"
        )
    return rows, shards.left_out | refused


def video_of(name: str) -> str | PackedVideo:
    """What `Example.video` names: bytes where it is an address in a file of many videos, else the name itself.

    `SHARD.tar#12` is a sample of a shard, `FILE.tar#@512+12452` a member of a tar, `FILE.parquet#12/video` a cell.

    Raises VideoError where the shard is cut short there, HarvestError where it is missing or out of reach.
    """
    if sample := _SAMPLE.fullmatch(name):
        shard, number = _shard(sample[1], _stamp(sample[1])), int(sample[2])
        if number >= len(shard):
            raise HarvestError(f"{name}: this shard has {len(shard)} samples, numbered from 0")
        return shard.fetch(number)[1]
    if member := _MEMBER.fullmatch(name):
        return PackedVideo(name, (read_bytes(member[1], int(member[2]), int(member[3])),))
    if cell := _CELL.fullmatch(name):
        try:
            return PackedVideo(name, (parquet_cell(cell[1], int(cell[2]), cell[3]),))
        except OSError as error:
            raise VideoError(name, f"cannot be read: {error.strerror or error}") from error
    return name


def _stamp(name: str) -> tuple[int, int] | None:
    """Changes when a local file is written anew."""
    path = Path(name)
    if not path.is_file():
        return None
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


@lru_cache(maxsize=_OPEN_SHARDS)
def _shard(name: str, stamp: tuple[int, int] | None) -> ShardSet:
    return open_shard(name)
