"""How good and how fast search is in a library of made-up vectors, as many as one likes (`harvest bench vectors`)."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harvest.interfaces import OnProgress
from harvest.progress import bar
from harvest.search.library.database import Database
from harvest.search.library.local_store import LocalStore
from harvest.search.library.store import Entry, Floats, Spans

MOMENT_S = 2.0
_PER_PUT = 20_000  # vectors a transaction


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


def vectors_command(out: Path = Path("runs/vectors"), count: int = 1_000_000, width: int = 512) -> None:
    """Search among made-up vectors: times, recall@10 against exact search, memory. Run twice: see --out.

    $ harvest bench vectors
    $ harvest bench vectors --count 100000 --out /tmp/vectors

    Args:
        out: Folder for the library. If it is filled already, it is only searched: its memory is then that of searching.
        count: Vectors.
        width: Of each.
    """
    with bar("filling") as progress:
        print(
            json.dumps(
                dataclasses.asdict(measure_vectors(out, count=count, width=width, progress=progress)),
                indent=1,
            )
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
        entry = Entry(f"{start:08d}", "/made-up", f"{start}.mp4", 0, 0, str(start), MOMENT_S * n, n)
        times = MOMENT_S * np.arange(n, dtype=np.float64)
        store.put([(entry, Spans(times, times + MOMENT_S, _clustered(start, n, width)))])
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
