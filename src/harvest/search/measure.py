"""How good and how fast search is: the two measurements behind the figures in docs/results.md.

`measure_library` makes a mini-world library whose right answers are known. `measure_vectors` fills a library with
made-up vectors, as many as one likes, and asks it.
"""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harvest.data.miniworld import (
    COLOURS,
    LABELS,
    MOTIONS,
    SHAPES,
    MiniWorldConfig,
    is_held_out,
    make_clip,
    render,
)
from harvest.data.video import write_video
from harvest.interfaces import HarvestError, OnProgress
from harvest.search.cutting import Cutting
from harvest.search.index import Index
from harvest.search.results import Answer
from harvest.search.store import Database, Entry, Floats, LocalStore, Spans

CLIP_S = 2.0  # of the mini-world
_PER_PUT = 20_000  # vectors a transaction


@dataclass(frozen=True)
class LibraryFigures:
    """Shares of queries; see `measure_library`."""

    videos: int
    moments: int
    first: float
    """The right moment comes first."""
    within_1s: float
    """It does, and starts within a second of its true start."""
    kept: float
    """True queries that are answered."""
    refused: float
    """Nonsense queries that are not."""
    false_accept: float
    index_s: float
    query_ms: float
    """Median."""


@dataclass(frozen=True)
class VectorFigures:
    """See `measure_vectors`."""

    vectors: int
    width: int
    p50_ms: float
    p99_ms: float
    recall_at_10: float
    resident_mb: float
    """Of the process, at the end."""
    disk_mb: float


def absent_scenes(present: set[tuple[str, str, str]], count: int, *, seed: int) -> list[str]:
    """Sentences in the mini-world's words about scenes that are not `present`: (motion, colour, shape)."""
    rng = np.random.default_rng(seed)
    free = [
        (motion, colour, shape)
        for motion in LABELS
        for colour in COLOURS
        for shape in SHAPES
        # what stays still may stand beside what moves; nobody paints spinning circles
        if (motion, colour, shape) not in present
        and motion != "stays still"
        and not (motion.startswith("spins") and shape in ("circle", "ring"))
        and not is_held_out(colour, shape, motion)
    ]
    if len(free) < count:
        raise HarvestError(f"{count} absent scenes were asked for, and there are {len(free)}")
    sentences = []
    for place in rng.permutation(len(free))[:count]:
        motion, colour, shape = free[place]
        phrases = MOTIONS[motion].phrases
        sentences.append(f"the {colour} {shape} {phrases[int(rng.integers(len(phrases)))]}")
    return sentences


def write_videos(folder: Path, *, num_videos: int, clips_each: int, seed: int) -> list[dict[str, Any]]:
    """Videos of several mini-world clips each, in an order at random; gives a row for every clip."""
    config = MiniWorldConfig(seed=seed, retrieval=num_videos * clips_each)
    order = np.random.default_rng(seed).permutation(config.retrieval)
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for number in range(num_videos):
        name = f"{number:04d}.mp4"
        frames = []
        for place, index in enumerate(order[number * clips_each : (number + 1) * clips_each]):
            scene, row = make_clip(config, "retrieval", int(index))
            frames.append(render(scene, size=config.size))
            rows.append({**row, "video": name, "start_s": place * CLIP_S})
        if not (folder / name).exists():
            write_video(folder / name, torch.from_numpy(np.concatenate(frames)).permute(0, 3, 1, 2), fps=8)
    return rows


def measure_library(
    model: str,
    out: Path,
    *,
    num_videos: int = 200,
    clips_each: int = 10,
    seed: int = 7,
    false_accept: float = 0.05,
    rerank: int = 0,
    progress: OnProgress | None = None,
) -> LibraryFigures:
    """Index videos of the mini-world and ask for every clip, and for scenes that are in none of them.

    The background is made of other absent scenes than those that are asked for, in equal words. Both have colours,
    shapes and motions that do occur, each in other company: the hardest nonsense there is in the mini-world.
    """
    rows = write_videos(out / "videos", num_videos=num_videos, clips_each=clips_each, seed=seed)
    present = {(row["motion"], row["colour"], row["shape"]) for row in rows}
    absent = absent_scenes(present, 400, seed=seed)
    bank, nonsense = absent[:200], absent[200:]
    index = Index.build(
        out / "videos",
        out=out / "library",
        model=model,
        cutting=Cutting(window_s=CLIP_S),
        background=bank,
        rerank=rerank,
        reindex=True,
        progress=progress,
    )
    first = near = kept = 0
    seconds = []
    with index:

        def ask(text: str) -> Answer:
            started = time.perf_counter()
            answer = index.search(text, k=1, false_accept=false_accept)
            seconds.append(time.perf_counter() - started)
            return answer

        for row in rows:
            answer = ask(row["texts"][0])
            hit = answer.hits[0]
            common = min(hit.end_s, row["start_s"] + CLIP_S) - max(hit.start_s, row["start_s"])
            is_right = hit.path == row["video"] and common > CLIP_S / 2
            first += is_right
            near += is_right and abs(hit.start_s - row["start_s"]) <= 1
            kept += answer.is_there
        refused = sum(not ask(text).is_there for text in nonsense)
        stats, report = index.stats(), index.report
    assert report is not None
    return LibraryFigures(
        videos=stats.videos,
        moments=stats.moments,
        first=first / len(rows),
        within_1s=near / len(rows),
        kept=kept / len(rows),
        refused=refused / len(nonsense),
        false_accept=false_accept,
        index_s=report.seconds,
        query_ms=1000 * float(np.median(seconds)),
    )


def measure_vectors(
    out: Path,
    *,
    count: int = 1_000_000,
    width: int = 512,
    queries: int = 200,
    progress: OnProgress | None = None,
) -> VectorFigures:
    """Fill a library with unit vectors in 2,000 clusters, and ask for the neighbours of points beside some of them.

    A folder that was filled before is only asked: its figure of memory is then that of searching alone.
    """
    out.mkdir(parents=True, exist_ok=True)
    store = LocalStore(Database(out / "library.db", create=True), width=width)
    have = store.num_moments()
    for start in range(have, count, _PER_PUT):
        n = min(_PER_PUT, count - start)
        entry = Entry(f"{start:08d}", "/made-up", f"{start}.mp4", 0, 0, str(start), CLIP_S * n, n)
        times = CLIP_S * np.arange(n, dtype=np.float64)
        store.put([(entry, Spans(times, times + CLIP_S, _clustered(start, n, width)))])
        store.optimise()
        if progress is not None:
            progress(start + n, count)
    rng = np.random.default_rng(1)
    asked = _clustered(0, _PER_PUT, width)[rng.integers(min(_PER_PUT, count), size=queries)]
    asked = _unit(asked + 0.02 * rng.standard_normal(asked.shape).astype(np.float32))
    seconds, found = [], []
    for query in asked:
        started = time.perf_counter()
        near = store.nearest(query, 10)
        seconds.append(time.perf_counter() - started)
        found.append({(n.video, n.number) for n in near})
    resident_mb = _resident_mb()
    right = _exact(asked, count, width)
    recall = float(np.mean([len(one & other) / 10 for one, other in zip(found, right, strict=True)]))
    store.database.close()
    return VectorFigures(
        vectors=count,
        width=width,
        p50_ms=1000 * float(np.quantile(seconds, 0.5)),
        p99_ms=1000 * float(np.quantile(seconds, 0.99)),
        recall_at_10=recall,
        resident_mb=resident_mb,
        disk_mb=sum(file.stat().st_size for file in out.iterdir()) / 1e6,
    )


def _clustered(start: int, n: int, width: int) -> Floats:
    """The vectors of one transaction: a function of where it starts."""
    centres = np.random.default_rng(0).standard_normal((2000, width), np.float32)
    rng = np.random.default_rng((2, start))
    return _unit(centres[rng.integers(2000, size=n)] + 0.7 * rng.standard_normal((n, width), np.float32))


def _exact(queries: Floats, count: int, width: int) -> list[set[tuple[str, int]]]:
    """The ten nearest of every query, by looking at all."""
    scores = np.full((len(queries), 0), -2.0, np.float32)
    names: list[np.ndarray] = []
    for start in range(0, count, _PER_PUT):
        vectors = _clustered(start, min(_PER_PUT, count - start), width).astype(np.float16).astype(np.float32)
        here = queries @ vectors.T
        best = np.argpartition(-here, min(10, here.shape[1] - 1), axis=1)[:, :10]
        scores = np.concatenate([scores, np.take_along_axis(here, best, 1)], axis=1)
        names.append(best + start)
    every = np.concatenate(names, axis=1)
    order = np.argsort(-scores, axis=1)[:, :10]
    return [
        {(f"{place // _PER_PUT * _PER_PUT:08d}", int(place % _PER_PUT)) for place in row}
        for row in np.take_along_axis(every, order, 1)
    ]


def _unit(vectors: Floats) -> Floats:
    unit: Floats = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


def _resident_mb() -> float:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not Linux: the highest so far
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
