"""`harvest prepare`: the clips of a manifest, trimmed and scaled, as tar shards that training reads fast.

OUT/shard-000000.tar          000000000.mp4 (or .000.jpg, .001.jpg, … or .jpg), .txt, .json of each clip
    shard-000000.index.json   where each clip lies, the shard's SHA-256, and what could not be read
    prepare.json              what was asked for, so that a stopped run goes on with the same
    broken.json               every row that could not be read, with its reason; written last

Sound is dropped. A clip of many key frames is read several times faster than its original, at an eighth of its
pixels; pre-sampled frames are read faster still and fix the times for good.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from harvest.data.guard import Guard, Lost
from harvest.data.options import PrepareConfig
from harvest.data.rows import video_of
from harvest.data.shards import INDEX, ShardIndex, index_path, read_index, shard_path, write_index
from harvest.data.video import IMAGE_SUFFIXES, VideoError, read_clip, transcode, write_pictures
from harvest.files import new_file, sha256_of, write_file
from harvest.interfaces import Example, HarvestError, OnProgress
from harvest.settings import read_json


@dataclass(frozen=True)
class Prepared:
    """What lies in the output folder."""

    shards: list[str]
    num_clips: int
    num_bytes: int
    broken: dict[str, str]  # id -> reason


def prepare(
    examples: Sequence[Example],
    out: Path,
    config: PrepareConfig,
    *,
    workers: int = 2,
    progress: OnProgress = lambda done, of: None,
) -> Prepared:
    """Write `examples` as shards into `out`; shards that are there already are kept, so a stopped run goes on.

    Raises HarvestError for a folder that holds something else or cannot be written.
    """
    if not examples:
        raise HarvestError("nothing to prepare: the manifest has no rows")
    _claim(out, examples, config)
    num_shards = math.ceil(len(examples) / config.clips_per_shard)
    digits = max(6, len(str(num_shards - 1)))
    shards = [out / f"shard-{number:0{digits}d}.tar" for number in range(num_shards)]
    rows = {
        shard: range(n * config.clips_per_shard, min((n + 1) * config.clips_per_shard, len(examples)))
        for n, shard in enumerate(shards)
    }
    todo = [shard for shard in shards if not _is_done(shard)]
    done = sum(len(rows[shard]) for shard in shards) - sum(len(rows[shard]) for shard in todo)
    progress(done, len(examples))

    def arguments_of(shard: Path) -> tuple[Any, ...]:
        return shard, [examples[row] for row in rows[shard]], rows[shard].start, config

    try:
        for shard in _written(todo, arguments_of, workers):
            done += len(rows[shard])
            progress(done, len(examples))
    except BrokenProcessPool as error:
        raise HarvestError(
            "a process that prepares clips was ended by the system, mostly for want of memory: take fewer --workers."
            " The same command goes on."
        ) from error
    except OSError as error:
        raise HarvestError(
            f"cannot write into {out}: {error.strerror or error}. The same command goes on."
        ) from error
    indexes = [read_index(Path(index_path(str(shard)))) for shard in shards]
    broken = {id: reason for index in indexes for id, reason in index.left_out.items()}
    write_file(out / "broken.json", json.dumps(broken, indent=1))
    return Prepared(
        [shard.name for shard in shards],
        sum(len(index.offsets) for index in indexes),
        sum(index.num_bytes for index in indexes),
        broken,
    )


def _written(
    shards: Sequence[Path], arguments_of: Callable[[Path], tuple[Any, ...]], workers: int
) -> Iterator[Path]:
    """Write shards, here or on `workers` processes; each is given when it is there."""
    if workers < 1:
        for shard in shards:
            _write_shard(*arguments_of(shard))
            yield shard
        return
    # spawned, so that each can guard its decoder by a fork of its own
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = list(shards)
        running: dict[Future[None], Path] = {}
        while waiting or running:
            while waiting and len(running) < 2 * workers:  # the rows of few shards are in flight
                shard = waiting.pop(0)
                running[pool.submit(_write_shard, *arguments_of(shard))] = shard
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                future.result()
                yield running.pop(future)


def verify(out: Path, *, progress: OnProgress = lambda done, of: None) -> list[str]:
    """Shards of a prepared folder whose bytes are not those that were written, with what is wrong."""
    indexed = {Path(shard_path(str(index))) for index in out.glob(f"*{INDEX}")}
    shards = sorted(indexed.union(out.glob("*.tar")))
    if not shards:
        raise HarvestError(f"{out} holds no shards")
    wrong = []
    if (out / "prepare.json").exists() and not (out / "broken.json").exists():
        wrong.append("it was not finished: the same harvest prepare goes on")
    for done, shard in enumerate(shards, 1):
        index = Path(index_path(str(shard)))
        if not shard.exists():
            wrong.append(f"{shard.name}: it is gone, its index is there")
        elif not index.exists():
            wrong.append(f"{shard.name}: no index beside it")
        elif shard.stat().st_size != read_index(index).num_bytes:
            wrong.append(
                f"{shard.name}: {shard.stat().st_size} bytes, {read_index(index).num_bytes} were written"
            )
        elif sha256_of(shard) != read_index(index).sha256:
            wrong.append(f"{shard.name}: its bytes have changed since it was written")
        progress(done, len(shards))
    return wrong


def _claim(out: Path, examples: Sequence[Example], config: PrepareConfig) -> None:
    """Write down what `out` is to hold, or see that it is the same."""
    rows = hashlib.sha256()
    for example in examples:
        rows.update(repr(example).encode())
    asked = {"rows": rows.hexdigest(), **asdict(config)}
    path = out / "prepare.json"
    try:
        if path.exists():
            found = read_json(path)
            differs = sorted(key for key in asked if found.get(key) != asked[key] and key != "video_limit_s")
            if differs:
                raise HarvestError(
                    f"{out} holds clips prepared otherwise ({', '.join(differs)} differ): give another folder"
                )
            return
        if out.is_file() or (out.is_dir() and any(not file.name.startswith(".") for file in out.iterdir())):
            raise HarvestError(f"{out} is not empty and holds no prepared clips: give another folder")
        write_file(path, json.dumps(asked, indent=1))
    except OSError as error:
        raise HarvestError(f"cannot write into {out}: {error.strerror or error}") from error


def _is_done(shard: Path) -> bool:
    index = Path(index_path(str(shard)))
    return shard.exists() and index.exists() and shard.stat().st_size == read_index(index).num_bytes


def _write_shard(shard: Path, examples: Sequence[Example], first: int, config: PrepareConfig) -> None:
    """One shard and its index; each gets its name when it is whole."""
    index = ShardIndex(num_bytes=0)
    encode = Guard(_members, limit_s=config.video_limit_s) if hasattr(os, "fork") else _members
    try:
        with new_file(shard) as part, open(part, "wb") as file:
            for place, example in enumerate(examples):
                try:
                    members: list[tuple[str, bytes]] = encode(example, config)
                except VideoError as error:
                    index.left_out[example.id] = error.reason
                    continue
                except Lost as error:
                    index.left_out[example.id] = str(error)
                    continue
                index.offsets.append(file.tell())
                checksum = 0
                for suffix, content in members:
                    member = _tar_member(f"{first + place:09d}.{suffix}", content)
                    checksum = zlib.crc32(member, checksum)
                    file.write(member)
                index.checksums.append(checksum)
                index.sizes.append(file.tell() - index.offsets[-1])
                index.num_texts.append(len(example.texts))
                index.labels.append(-1 if example.label is None else example.label)
            file.write(bytes(1024))  # the end of a tar
            num_bytes = file.tell()
            file.flush()
            sha256 = sha256_of(part)
    finally:
        if isinstance(encode, Guard):
            encode.close()
    write_index(Path(index_path(str(shard))), dataclasses.replace(index, num_bytes=num_bytes, sha256=sha256))


def _members(example: Example, config: PrepareConfig) -> list[tuple[str, bytes]]:
    """(suffix, content) of a clip's members: what it shows, what is said of it, and both as json."""
    said: dict[str, Any] = {"id": example.id, "texts": list(example.texts), "source": example.video}
    said |= {"source_start_s": example.start_s, "source_end_s": example.end_s}
    if example.label is not None:
        said["label"] = example.label
    video = video_of(example.video)
    is_still = example.video.lower().endswith(IMAGE_SUFFIXES)
    members: list[tuple[str, bytes]]
    if is_still or config.frames is not None:
        clip = read_clip(
            video,
            num_frames=1 if is_still else config.frames or 1,
            image_size=config.short_side,
            start_s=example.start_s,
            end_s=example.end_s,
            fit=None,
        )
        pictures = write_pictures(clip.frames)
        if is_still:
            members = [("jpg", pictures[0])]
        else:
            members = [(f"{place:03d}.jpg", picture) for place, picture in enumerate(pictures)]
            times = [round(float(t) - example.start_s, 6) for t in clip.times_s]
            step = (times[-1] - times[0]) / max(1, len(times) - 1)
            said |= {"times_s": [max(0.0, t) for t in times], "duration_s": max(times[-1], 0.0) + step / 2}
        said |= {"height": clip.frames.shape[2], "width": clip.frames.shape[3]}
    else:
        data, info = transcode(
            video,
            short_side=config.short_side,
            start_s=example.start_s,
            end_s=example.end_s,
            key_every=config.key_every,
            crf=config.crf,
            max_fps=config.max_fps,
        )
        members = [("mp4", data)]
        said |= {"duration_s": round(info.duration_s, 6), "num_frames": info.num_frames}
        said |= {"height": info.height, "width": info.width}
    if example.texts:
        members.append(("txt", example.texts[0].encode()))
    return [*members, ("json", json.dumps(said, ensure_ascii=False).encode())]


def _tar_member(name: str, content: bytes) -> bytes:
    """A member in the oldest tar format, the same bytes on every machine."""
    header = tarfile.TarInfo(name)
    header.size, header.mode, header.mtime = len(content), 0o644, 0
    padding = bytes(-len(content) % 512)
    return header.tobuf(tarfile.USTAR_FORMAT) + content + padding
