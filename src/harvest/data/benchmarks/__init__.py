"""The official annotation files of the benchmarks, read as they are: files in, examples and a protocol out.

    data = read("msrvtt", Path("annotations/msrvtt"), split="1k-a", videos=Path("/data/msrvtt"))
    print(missing(data))

One function a benchmark, in the file of its family. Reading checks that the files are those of the benchmark,
that ids are unique and that labels and classes belong together; it says how many rows there should be, and which
videos are not there.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from harvest.data.benchmarks import detection, moments, question_answering, recognition, retrieval
from harvest.data.benchmarks.files import Files, Published, SplitFiles, looks_like
from harvest.data.benchmarks.missing import Missing, missing
from harvest.data.benchmarks.record import (
    ActingBox,
    Benchmark,
    BenchmarkData,
    BenchmarkRow,
    KeyFrame,
    SplitRows,
)
from harvest.data.manifest import write_manifest
from harvest.data.video_folder import VideoFolder, expected_path
from harvest.files import write_file
from harvest.interfaces import Box, Example, HarvestError

__all__ = [
    "BENCHMARKS",
    "ActingBox",
    "Benchmark",
    "BenchmarkData",
    "KeyFrame",
    "Missing",
    "Published",
    "SplitFiles",
    "looks_like",
    "missing",
    "read",
    "widen",
    "write_training",
]

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for family in (retrieval, moments, question_answering, recognition, detection)
    for benchmark in family.BENCHMARKS
}


def read(
    name: str, annotations: str | Path, *, split: str | None = None, videos: str | Path | None = None
) -> BenchmarkData:
    """One split of a benchmark from the folder of its annotation files; without `split` its first one.

    Videos are looked for in `videos`, by their official names with any suffix, in folders up to three levels down;
    one that is not there keeps the path where it was expected and is named by `missing`. Without `videos` paths are
    the official names.

    Raises HarvestError for a file that is missing, not UTF-8, or another benchmark's (it says which), and for ids
    that come twice.
    """
    if name not in BENCHMARKS:
        near = difflib.get_close_matches(name, BENCHMARKS, n=1)
        raise HarvestError(
            f"no benchmark {name!r}{f': did you mean {near[0]!r}?' if near else ''}; there are {', '.join(BENCHMARKS)}"
        )
    benchmark = BENCHMARKS[name]
    split = next(iter(benchmark.splits)) if split is None else split
    if split not in benchmark.splits:
        raise HarvestError(f"{name} has no split {split!r}: there are {', '.join(benchmark.splits)}")
    files = Files(annotations, name, benchmark.origin, benchmark.splits[split])
    found = benchmark.reader(files, split)
    _check(benchmark, files, found.rows)

    folder = (
        None if videos is None else VideoFolder(videos, (name for row in found.rows for name in row.names))
    )
    paths, unresolved = [], set()
    for row in found.rows:
        path = None if folder is None else folder.find(row.names)
        if path is None:
            path = expected_path(row.names[0], videos)
            unresolved.add(path)
        paths.append(path)
    rows = list(zip(found.rows, paths, strict=True))
    return BenchmarkData(
        name=name,
        split=split,
        task=benchmark.task,
        examples=tuple(_example(row, path, found) for row, path in rows),
        protocol=f"{benchmark.title}, {split}: {found.protocol}.",
        counts=_counts(found, len(set(paths)), benchmark.task),
        published=files.split.published,
        unresolved=None if folder is None else frozenset(unresolved),
        answers=found.answers,
        class_names=found.class_names,
        actions=found.actions,
        key_frames=tuple(
            KeyFrame(row.id, path, ((row.end_s or 0.0) + row.start_s) / 2, found.boxes[row.id])
            for row, path in rows
            if row.id in found.boxes
        ),
        shared_captions=found.shared_captions,
        view_places=found.view_places,
        unscored=found.unscored,
    )


def write_training(data: BenchmarkData, path: str | Path, *, allow_missing: bool = False) -> list[Example]:
    """Write a split as a manifest to train on, and its classes or answers as `NAME.names.json` beside it.

    Raises HarvestError where videos are missing, unless `allow_missing`, which leaves their rows out.
    """
    path = Path(path)
    absent = missing(data)
    if absent.videos and not allow_missing:
        raise HarvestError(f"{absent}. With missing rows allowed (--allow-missing) the others are written")
    gone = set(absent.videos)
    rows = [example for example in data.examples if example.video not in gone]
    if not rows:
        raise HarvestError(f"{absent}: there is nothing to write")
    write_manifest(path, rows)
    names = data.class_names or data.answers or data.action_names
    if names:
        write_file(path.with_suffix(".names.json"), json.dumps(names, indent=1, ensure_ascii=False))
    return rows


def widen(data: BenchmarkData, span_s: float) -> BenchmarkData:
    """The same pictures with `span_s` of video around each, which is what a detector of actions is shown.

    Raises HarvestError for a benchmark that is not one of detection: its rows are stretches, not pictures.
    """
    if data.task != "detection":
        raise HarvestError(
            f"span_s: the seconds of video around a picture of action detection; {data.name} is a benchmark of"
            f" {data.task}"
        )
    if span_s <= 0:
        raise HarvestError(f"span_s: expected more than 0 seconds, got {span_s}")
    middle = [((e.end_s or 0.0) + e.start_s) / 2 for e in data.examples]
    examples = (
        dataclasses.replace(e, start_s=max(0.0, m - span_s / 2), end_s=m + span_s / 2)
        for e, m in zip(data.examples, middle, strict=True)
    )
    said = f" Around each picture {span_s:g} s of video are shown."
    return dataclasses.replace(data, examples=tuple(examples), protocol=data.protocol + said)


def _example(row: BenchmarkRow, video: str, found: SplitRows) -> Example:
    number = {action: place for place, action in enumerate(sorted(found.actions))}
    boxes = tuple(Box(b.box, tuple(number[a] for a in b.actions)) for b in found.boxes.get(row.id, ()))
    return Example(
        boxes=boxes,
        id=row.id,
        video=video,
        texts=row.texts,
        label=row.label,
        start_s=row.start_s,
        end_s=row.end_s,
        question=row.question,
        answer=row.answer,
    )


def _check(benchmark: Benchmark, files: Files, rows: Sequence[BenchmarkRow]) -> None:
    """Raise HarvestError for no rows, ids that come twice, and videos named as another benchmark names them."""
    if not rows:
        raise HarvestError(f"{benchmark.name}: the annotation files in {files.folder} hold no rows")
    files.distinct([row.id for row in rows], f"ids of rows in {files.folder}")
    names = [row.names[0] for row in rows[:50]]
    if not any(_is_named(benchmark, name) for name in names):
        likely = {
            said for path in sorted(files.folder.iterdir()) if path.is_file() and (said := looks_like(path))
        }
        hint = f"; the folder looks like {', '.join(sorted(likely))}" if likely else ""
        raise HarvestError(
            f"{benchmark.name}: the annotation files in {files.folder} name videos like {names[0]!r}, which is not how"
            f" {benchmark.title} names them{hint}"
        )
    blank = next((row.id for row in rows if any(not text.strip() for text in row.texts)), None)
    if blank is not None:
        raise HarvestError(f"{benchmark.name}: a text of {blank!r} is blank")


def _is_named(benchmark: Benchmark, name: str) -> bool:
    last = name.rpartition("/")[2]
    return any(re.fullmatch(benchmark.videos, part) for part in (last, last.rpartition(".")[0]))


def _counts(found: SplitRows, num_videos: int, task: str) -> dict[str, int]:
    counts = {"rows": len(found.rows), "videos": num_videos}
    if task == "retrieval":
        counts["captions"] = sum(len(row.texts) for row in found.rows)
    return counts | dict(found.counts)
