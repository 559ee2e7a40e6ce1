"""What is to be evaluated, row by row: a manifest, or the samples of shards, which an address finds again.

`path/shard-000003.tar#12` is sample 12 of a shard. It stands where a manifest names a file, so that all that works on
examples works on shards; the bytes are read when the clip is.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from harvest.data.manifest import read_manifest
from harvest.data.shards import ShardSet, are_shards, open_shard, read_shards
from harvest.data.video import PackedVideo
from harvest.interfaces import Example, HarvestError, OnProgress

_ADDRESS = re.compile(r"(.+\.tar)#(\d+)")
_OPEN_SHARDS = 64


def read_rows(
    name: str, *, videos: Path | None = None, progress: OnProgress = lambda done, of: None
) -> tuple[list[Example], dict[str, str]]:
    """The rows of a manifest or, in their order, of tar shards, and the samples of shards left out, with reasons.

    `name` is a manifest, a folder of shards, `shards-{000..009}.tar`, or such an address in a bucket. All captions are
    read now, for which shards are read through once.
    """
    if not are_shards(name):
        return read_manifest(name, videos=videos), {}
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
    """What `Example.video` names: the bytes of a sample where it is an address in a shard, else the name itself.

    Raises VideoError where the shard is cut short there, HarvestError where it is missing or out of reach.
    """
    address = _ADDRESS.fullmatch(name)
    if address is None:
        return name
    shard, sample = _shard(address[1], _stamp(address[1])), int(address[2])
    if sample >= len(shard):
        raise HarvestError(f"{name}: this shard has {len(shard)} samples, numbered from 0")
    return shard.fetch(sample)[1]


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
