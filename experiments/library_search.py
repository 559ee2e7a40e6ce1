"""What search finds, and refuses, in long videos of the mini-world: `python -m experiments.library_search`."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from experiments import main
from harvest import Index
from harvest.data.miniworld import MiniWorldConfig, absent_scenes, make_clip, render
from harvest.data.video import write_video
from harvest.interfaces import OnProgress
from harvest.progress import bar
from harvest.search.library.segmentation import Segmentation
from harvest.search.results import Answer

CLIP_S = 2.0  # of the mini-world


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
        segmentation=Segmentation(window_s=CLIP_S),
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


def library_search(
    model: tyro.conf.Positional[str],
    /,
    out: Path = Path("runs/library"),
    videos: int = 200,
    false_accept: float = 0.05,
    rerank: int = 0,
    seed: int = 7,
) -> None:
    """Index generated videos, ask for every clip and for scenes that are in none of them, and print the figures.

    $ python -m experiments.library_search runs/demo/model

    Args:
        model: Model folder, or any source that `harvest convert` takes.
        out: Folder for the videos and their library.
        videos: How many.
        false_accept: Share of nonsense queries that may be answered.
        rerank: Number of first answers that the matching head orders again.
    """
    with bar("indexing") as progress:
        figures = measure_library(
            model,
            out,
            num_videos=videos,
            false_accept=false_accept,
            rerank=rerank,
            seed=seed,
            progress=progress,
        )
    print(json.dumps(dataclasses.asdict(figures), indent=1))


if __name__ == "__main__":
    main(library_search)
