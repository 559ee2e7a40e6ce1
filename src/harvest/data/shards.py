"""Tar shards, on disk or in a bucket, as a training set in which every sample is at hand by its number.

The layout is that of webdataset, video2dataset and img2dataset: members of one sample follow one another and share
a name up to the first dot.

    000000012.mp4 | .webm | .jpg | …   the video or picture, or 000000012.000.jpg, .001.jpg, …: frames of a clip
    000000012.txt                      a caption
    000000012.json                     optional: id, texts or caption, label, and times_s, duration_s of frames
    000000012.cls                      optional: a label

A small index a shard says where each sample lies. `harvest prepare` writes it beside the shard; for shards of others
it is made at first use and kept in the user's cache folder. A sample is then one read of its bytes, so the order
of samples is any permutation, exactly as for a manifest: no shuffle buffers, and no state beside the step.

Why not the webdataset library: it reads shards from front to back, so its order depends on workers and ranks and
cannot be resumed within an epoch (its authors advise sampling with replacement instead). What is left to do, a
permutation and a read, is little; fsspec reads the bucket.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import json
import os
import re
import tarfile
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from harvest.data.sidecars import SUFFIXES as VIDEO_SUFFIXES
from harvest.data.sidecars import json_of, label_beside, texts_beside
from harvest.data.stretches import Reader, filesystem, is_remote, tried
from harvest.data.video import IMAGE_SUFFIXES, PackedVideo, VideoError
from harvest.files import write_file
from harvest.interfaces import Example, HarvestError, OnProgress
from harvest.settings import parse

_PICTURES = tuple(suffix[1:] for suffix in IMAGE_SUFFIXES)
_DOTTED = re.compile(
    rf"(.+\.(?:\d+|[^.]*[^.\w][^.]*))\.({'|'.join(VIDEO_SUFFIXES)}|txt|json|cls)", re.IGNORECASE
)
_FORMAT = 3
_KEPT = 4096  # samples whose captions are remembered for a moment
_ROWS_AHEAD = 64  # samples asked of a bucket in one go where all are read in order


@dataclass(frozen=True)
class ShardIndex:
    """Where the samples of one shard lie, and what they hold."""

    num_bytes: int  # of the shard
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    num_texts: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)  # -1 where there is none
    checksums: list[int] = field(default_factory=list)  # CRC-32 of each sample's bytes; empty where not known
    left_out: dict[str, str] = field(default_factory=dict)  # name -> reason
    repeated: list[str] = field(default_factory=list)  # names of samples that a sample before has too
    sha256: str | None = None  # of the shard, where `harvest prepare` wrote it
    format: int = _FORMAT
    digest: str = ""  # of all the others, from format 3 on


def _digest_of(index: ShardIndex) -> str:
    return hashlib.sha256(json.dumps(asdict(dataclasses.replace(index, digest=""))).encode()).hexdigest()


def are_shards(path: str) -> bool:
    """Does this name tar shards rather than a manifest?"""
    return path.endswith((".tar", ".tar}")) or (
        "://" not in path and Path(path).is_dir() and any(Path(path).glob("*.tar"))
    )


INDEX = ".index.json"
"""How the name of a shard's index ends, in place of `.tar`."""


def index_path(shard: str) -> str:
    """Where `harvest prepare` writes the index of a shard."""
    return shard.removesuffix(".tar") + INDEX


def shard_path(index: str) -> str:
    """The shard that an index is of."""
    return index.removesuffix(INDEX) + ".tar"


class ShardSet(Sequence[Example]):
    """The samples of tar shards, numbered through. `shard_set[i]` reads one, without keeping its video.

    Raises HarvestError where a shard is missing, or out of reach after several tries.
    """

    def __init__(self, shards: Sequence[str], indexes: Sequence[ShardIndex]) -> None:
        self.shards = list(shards)
        self._first = np.cumsum([0, *(len(index.offsets) for index in indexes)])
        self._offsets = np.array([x for index in indexes for x in index.offsets], dtype=np.int64)
        self._sizes = np.array([x for index in indexes for x in index.sizes], dtype=np.int64)
        self.num_texts = torch.tensor([x for index in indexes for x in index.num_texts], dtype=torch.int64)
        self.labels = torch.tensor([x for index in indexes for x in index.labels], dtype=torch.int64)
        unknown = (-1 for index in indexes for _ in index.offsets)
        self._checksums = np.fromiter(unknown, np.int64, len(self._offsets))
        for first, index in zip(self._first[:-1], indexes, strict=True):
            self._checksums[first : first + len(index.checksums)] = index.checksums
        self.left_out = {
            f"{shard}/{name}": reason
            for shard, index in zip(shards, indexes, strict=True)
            for name, reason in index.left_out.items()
        }
        self.repeated = [
            f"{shard}/{name}" for shard, index in zip(shards, indexes, strict=True) for name in index.repeated
        ]
        self._remembered: OrderedDict[int, Example] = OrderedDict()
        self._ahead: dict[int, bytes] = {}
        self._reader = Reader()
        if len(self) == 0:
            raise HarvestError(
                f"the {len(self.shards)} shards hold no sample with a video or picture"
                + (f" (first left out: {next(iter(self.left_out.items()))})" if self.left_out else "")
            )

    def __len__(self) -> int:
        return len(self._offsets)

    @overload
    def __getitem__(self, sample: int) -> Example: ...
    @overload
    def __getitem__(self, sample: slice) -> list[Example]: ...
    def __getitem__(self, sample: int | slice) -> Example | list[Example]:
        if isinstance(sample, slice):
            return [self[i] for i in range(*sample.indices(len(self)))]
        sample = range(len(self))[sample]
        if sample not in self._remembered:
            self.fetch(sample)
        return self._remembered[sample]

    def id_of(self, sample: int) -> str:
        """The shard and the sample's place in it, without reading."""
        shard = self._shard_of(sample)
        return f"{self.shards[shard]}#{sample - int(self._first[shard])}"

    def digest(self) -> str:
        """What the samples are, as the indexes say it: other shards, or shards packed anew, have another digest."""
        found = hashlib.blake2b(
            "\n".join(name.rsplit("/", 1)[-1] for name in self.shards).encode(), digest_size=16
        )
        for numbers in (self._offsets, self._sizes, self.num_texts.numpy(), self.labels.numpy()):
            found.update(numbers.tobytes())
        return found.hexdigest()

    def samples_of(self, ids: Iterable[str]) -> dict[str, int]:
        """The numbers behind ids of `id_of`; those of other shards are left out."""
        known = {shard: number for number, shard in enumerate(self.shards)}
        found = {}
        for id in ids:
            shard, _, place = id.rpartition("#")
            if shard in known and place.isdigit():
                found[id] = int(self._first[known[shard]]) + int(place)
        return found

    def fetch(self, sample: int) -> tuple[Example, PackedVideo]:
        """A sample and the bytes of its video. Raises VideoError where the shard is shorter than its index says."""
        packed, example = _sample(self._members(sample), self.id_of(sample))
        self._remembered[sample] = example
        if len(self._remembered) > _KEPT:
            self._remembered.popitem(last=False)
        return example, packed

    def rows(self, progress: OnProgress = lambda done, of: None) -> tuple[list[Example], dict[str, str]]:
        """All samples as rows of a manifest, read through once, and those that cannot be read with their reasons.

        `Example.video` is an address that `data.rows` opens again. Ids are such addresses too, from the folder on that
        all shards share. Samples that `harvest prepare` cut from the same stretch of a video are rows of one video.
        """
        # not commonpath, which takes // in an address for /
        start = os.path.commonprefix(self.shards).rfind("/") + 1  # noqa: RUF071
        rows: list[Example] = []
        refused: dict[str, str] = {}
        address_of: dict[tuple[Any, ...], str] = {}  # of a stretch that a sample was cut from
        for sample in range(len(self)):
            if sample % _ROWS_AHEAD == 0:
                self.read_ahead(range(sample, min(sample + _ROWS_AHEAD, len(self))))
            address = self.id_of(sample)
            try:
                members = self._members(sample)
                _, example = _sample(members, address)
                stretch = _stretch(members, address)
            except VideoError as error:
                refused[address[start:]] = error.reason
                continue
            video = address if stretch is None else address_of.setdefault(stretch, address)
            rows.append(dataclasses.replace(example, id=address[start:], video=video))
            progress(sample + 1, len(self))
        self._ahead = {}
        return rows, refused

    def _members(self, sample: int) -> list[tuple[str, bytes]]:
        """Names and contents of what a sample is made of."""
        shard = self._shard_of(sample)
        name, offset, size = self.shards[shard], int(self._offsets[sample]), int(self._sizes[sample])
        data = self._ahead.get(sample)
        if data is None:
            data = self._reader.read(name, offset, size)
        id = self.id_of(sample)
        if len(data) < size:
            raise VideoError(id, f"the shard is cut short: {size - len(data)} of {size} bytes are missing")
        if self._checksums[sample] >= 0 and zlib.crc32(data) != self._checksums[sample]:
            raise VideoError(
                id, "its bytes have changed since the shard was written (their checksum differs)"
            )
        try:
            with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
                return [(m.name, _content(tar, m)) for m in tar if m.isfile()]
        except tarfile.TarError as error:
            raise VideoError(id, f"the shard is not what its index says ({error})") from error

    def read_ahead(self, samples: Iterable[int]) -> None:
        """Fetch samples that will be asked for next in one go: for buckets, where each read waits a while."""
        self._ahead = {}
        wanted = [s for s in samples if is_remote(self.shards[self._shard_of(s)])]
        if wanted:
            places = [
                (self.shards[self._shard_of(s)], int(self._offsets[s]), int(self._sizes[s])) for s in wanted
            ]
            self._ahead = dict(zip(wanted, self._reader.read_many(places), strict=True))

    def _shard_of(self, sample: int) -> int:
        return int(np.searchsorted(self._first, sample, side="right")) - 1

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": Reader(), "_ahead": {}, "_remembered": OrderedDict()}


def read_shards(
    paths: str | Sequence[str], *, progress: OnProgress = lambda done, of: None, threads: int = 16
) -> ShardSet:
    """Open tar shards: a folder, `shards-{000..999}.tar`, `clips-*.tar`, `s3://bucket/{a,b}/{00..99}.tar`, or several.

    An index that is missing is made by walking the shard's headers, and kept in the cache folder. A shard that is
    cut short gives its whole samples; a sample without a video or without its caption is left out:
    `ShardSet.left_out` names both.
    """
    names = [name for path in ([paths] if isinstance(paths, str) else paths) for name in expand(path)]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise HarvestError(f"the shard {twice[0]} is given twice")
    indexes: list[ShardIndex] = []
    with ThreadPoolExecutor(threads) as pool:
        for index in pool.map(_index_of, names):
            indexes.append(index)
            progress(len(indexes), len(names))
    return ShardSet(names, indexes)


def open_shard(name: str) -> ShardSet:
    """One shard, by a name in which nothing is a pattern."""
    return ShardSet([name], [_index_of(name)])


def expand(pattern: str) -> list[str]:
    """The shards behind a pattern with `{000..999}`, `{a,b}`, `*`, or a folder; sorted where the file system lists them."""
    if "://" not in pattern and Path(pattern).is_dir():
        shards = sorted(str(path) for path in Path(pattern).glob("*.tar"))
        if not shards:
            raise HarvestError(f"no shards match {Path(pattern) / '*.tar'}")
        return shards
    if "://" not in pattern and Path(pattern).exists():  # in the name of a file nothing is a pattern
        return [pattern]
    names: list[str] = []
    for name in _braces(pattern):
        if "*" not in name and "?" not in name:
            names.append(name)
            continue
        fs, path = filesystem(name)
        found = sorted(tried(lambda fs=fs, path=path: fs.glob(path), name))  # type: ignore[misc]
        if not found:
            raise HarvestError(f"no shards match {name}")
        names += [fs.unstrip_protocol(f) if is_remote(name) else f for f in found]
    return names


def _braces(pattern: str) -> Iterator[str]:
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        yield pattern
        return
    span = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if span is None and "," not in match[1]:
        raise HarvestError(f"shards {pattern}: expected {{000..999}} or {{a,b}}, got {{{match[1]}}}")
    if span is None:
        choices = match[1].split(",")
    else:
        first, last = int(span[1]), int(span[2])
        if last < first:
            raise HarvestError(f"shards {pattern}: {{{match[1]}}} ends before it starts")
        choices = [str(number).zfill(len(span[1])) for number in range(first, last + 1)]
    for choice in choices:
        yield from _braces(pattern[: match.start()] + choice + pattern[match.end() :])


# ---------------------------------------------------------------------------------------------------------------
# The index


def _index_of(shard: str) -> ShardIndex:
    """From beside the shard, from the cache folder, or by walking the shard."""
    fs, path = filesystem(shard)
    info = tried(lambda: fs.info(path), f"shard {shard}")
    num_bytes = int(info["size"])
    beside = index_path(path)
    if tried(lambda: fs.exists(beside), index_path(shard)):
        index = _from_json(tried(lambda: fs.cat_file(beside), index_path(shard)), index_path(shard))
        if index.num_bytes != num_bytes:
            raise HarvestError(
                f"shard {shard} has {num_bytes} bytes, its index is of one of {index.num_bytes}: copy it again, or"
                f" remove {index_path(shard)} to use what is whole of it"
            )
        return index
    stamp = next(
        (str(info[k]) for k in ("mtime", "ETag", "etag", "LastModified", "updated") if k in info), ""
    )
    name = hashlib.blake2b(f"{shard} {num_bytes} {stamp} {_FORMAT}".encode(), digest_size=16).hexdigest()
    cached = cache_folder() / "shards" / f"{name}.json"
    if cached.exists():
        return _from_json(cached.read_bytes(), str(cached))
    with fs.open(path, "rb", **({"block_size": 2**20} if is_remote(shard) else {})) as file:
        try:
            index = tried(lambda: walk(file, num_bytes), f"shard {shard}")
        except HarvestError as error:
            raise error if shard in str(error) else HarvestError(f"{shard}: {error}") from error
    with suppress(OSError):  # without a place to keep it, it is made again next time
        write_index(cached, index)
    return index


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "harvest"


def write_index(path: Path, index: ShardIndex) -> None:
    write_file(path, json.dumps(asdict(dataclasses.replace(index, digest=_digest_of(index)))))


def read_index(path: Path) -> ShardIndex:
    return _from_json(path.read_bytes(), str(path))


def _from_json(data: bytes, where: str) -> ShardIndex:
    try:
        index: ShardIndex = parse(ShardIndex, data, where=where)
        columns = (index.offsets, index.sizes, index.num_texts, index.labels)
        is_whole = len({len(column) for column in columns}) == 1 and all(
            -1 <= number < 2**62 for column in columns for number in column
        )
        stretches = zip(index.offsets, index.sizes, strict=True)
        if index.format >= 3 and index.digest != _digest_of(index):
            raise ValueError("it has changed since it was written")
        if len(index.checksums) not in (0, len(index.offsets)):
            raise ValueError("checksums of other samples")
        if not is_whole or any(o < 0 or s < 0 or o + s > index.num_bytes for o, s in stretches):
            raise ValueError("stretches outside the shard")
    except (ValueError, HarvestError) as error:
        raise HarvestError(f"{where} is not an index of a shard: remove it, it is made anew") from error
    return index


def walk(file: Any, num_bytes: int) -> ShardIndex:
    """The index of an open shard. What lies behind a cut, or has no video or caption, is left out and named."""
    index = ShardIndex(num_bytes=num_bytes)
    file.seek(0)
    if file.read(2) == b"\x1f\x8b":
        raise HarvestError(
            "the shard is compressed with gzip, in which samples have no place: unpack it (gunzip)"
        )
    file.seek(0)
    seen: set[str] = set()
    members: list[tuple[tarfile.TarInfo, bytes]] = []

    try:
        with tarfile.open(fileobj=file, mode="r:", tarinfo=_Member) as tar:
            for member in tar:
                if not member.isfile() or Path(member.name).name.startswith("."):
                    continue
                sample, suffix = _split(member.name)
                if members and (
                    sample != _split(members[0][0].name)[0]
                    or any(suffix == _split(other.name)[1] for other, _ in members)
                ):
                    _add_sample(index, members, seen)
                    members = []
                is_small = suffix in ("txt", "json", "cls") and member.size < 2**24
                members.append((member, _content(tar, member) if is_small else b""))
                tar.members = []  # type: ignore[attr-defined]  # or it keeps all headers
    except (tarfile.TarError, EOFError, ValueError, OverflowError, OSError) as error:
        if (
            isinstance(error, OSError) and error.errno != errno.EINVAL
        ):  # EINVAL: a header names a place that cannot be
            raise
        index.left_out["(end)"] = f"the shard is cut short or damaged: {error}"
    _add_sample(index, members, seen)
    last = members[-1][0] if members else None
    if last is not None and num_bytes < last.offset_data + (last.size + 511) // 512 * 512 + 512:
        index.left_out.setdefault("(end)", "the shard is cut short: the mark at the end of a tar is missing")
    return index


def _add_sample(index: ShardIndex, members: Sequence[tuple[tarfile.TarInfo, bytes]], seen: set[str]) -> None:
    """Note a sample, or why it is left out; `seen` are the names of those before it."""
    if not members:
        return
    first, last = members[0][0], members[-1][0]
    name, _ = _split(first.name)
    end = last.offset_data + (last.size + 511) // 512 * 512
    if last.offset_data + last.size > index.num_bytes:
        index.left_out[name] = "the shard is cut short"
        return
    try:
        _, example = _sample([(member.name, content) for member, content in members], name)
    except VideoError as error:
        index.left_out[name] = error.reason
        return
    if not example.texts and example.label is None:
        index.left_out[name] = "no caption and no label"
        return
    if name in seen:
        index.repeated.append(name)
    seen.add(name)
    index.offsets.append(first.offset)
    index.sizes.append(min(end, index.num_bytes) - first.offset)
    index.num_texts.append(len(example.texts))
    index.labels.append(-1 if example.label is None else example.label)


class _Member(tarfile.TarInfo):
    """A member whose extended header is bounded: names and times need little, and a bomb would fill the memory."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _HEADERS and self.size > _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes")
        return super()._proc_member(tar)  # type: ignore[misc, no-any-return]


_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_MAX_HEADER = 2**20


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return b"" if file is None else file.read()


def _split(name: str) -> tuple[str, str]:
    """A member's name as sample and rest: up to the first dot of its last part, as webdataset does.

    But `ID.3.mp4` is sample `ID.3`: sets that cut videos number their clips so (VideoUFO, HD-VILA), and by the first
    dot all clips of a video would be one sample. `Dr. Who 1.mp4` is `Dr. Who 1`: a kind of member has no spaces.
    """
    folder, _, base = name.rpartition("/")
    sample, _, rest = base.partition(".")
    dotted = _DOTTED.fullmatch(base)
    if dotted is not None:
        sample, rest = dotted[1], dotted[2]
    return (f"{folder}/{sample}" if folder else sample), rest.lower()


def _sample(members: Sequence[tuple[str, bytes]], id: str) -> tuple[PackedVideo, Example]:
    """A sample from its members: name and content each."""
    by_suffix = {_split(name)[1]: content for name, content in members}
    said = json_of(by_suffix.get("json"), id)
    video = next((s for v in VIDEO_SUFFIXES for s in by_suffix if s == v or s.endswith(f".{v}")), None)
    frames = [s for s in by_suffix if re.fullmatch(rf"\d{{1,9}}\.({'|'.join(_PICTURES)})", s)]
    frames.sort(key=lambda suffix: int(suffix.partition(".")[0]))  # 2 before 10
    picture = next((s for s in _PICTURES if s in by_suffix), None)
    if video is not None:
        packed = PackedVideo(id, (by_suffix[video],))
    elif frames:
        fps = _number(said.get("fps")) or 1.0
        times = said.get("times_s")
        if not isinstance(times, list):
            times = []
        if len(times) != len(frames) or not all(_number(t) is not None or t == 0 for t in times):
            times = [number / fps for number in range(len(frames))]
        duration = _number(said.get("duration_s")) or float(times[-1]) + 1 / fps
        packed = PackedVideo(id, tuple(by_suffix[s] for s in frames), tuple(map(float, times)), duration)
    elif picture is not None:
        packed = PackedVideo(id, (by_suffix[picture],))
    else:
        raise VideoError(id, f"no video or picture (members: {', '.join(sorted(by_suffix)) or 'none'})")
    return packed, Example(
        id, id, texts_beside(said, by_suffix.get("txt"), id), label_beside(said, by_suffix.get("cls"), id)
    )


def _stretch(members: Sequence[tuple[str, bytes]], id: str) -> tuple[Any, ...] | None:
    """What a sample was cut from, where `harvest prepare` wrote that down."""
    said = json_of({_split(name)[1]: content for name, content in members}.get("json"), id)
    if not isinstance(said.get("source"), str) or "source_start_s" not in said:
        return None
    return said["source"], _number(said["source_start_s"]), _number(said.get("source_end_s"))


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 < value < 1e9 else None
