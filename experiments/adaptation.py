"""What adaptation without captions gives, by budget: `python -m experiments.adaptation`.

The image model that sees all frames, the same model given a few tubelets without training, and the adapted model.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import torch

from experiments import main
from harvest.bench.step import print_table
from harvest.data.manifest import read_manifest
from harvest.data.miniworld import write_miniworld
from harvest.evaluation import EvalSettings, evaluate
from harvest.files import write_file
from harvest.machine import num_cores
from harvest.model.importing.pretrained import load_pretrained
from harvest.model.inflation import as_video_model
from harvest.model.video_text import VideoTextModel
from harvest.progress import bar, say
from harvest.recipes.mini import mini_adapt
from harvest.training import loop

_PARTS = {
    "appearance": ("appearance_choice", "choice", "accuracy"),
    "R@1": ("retrieval", "retrieval", "t2v_r1"),
}


def adaptation(
    seeds: tuple[int, ...] = (0, 1, 2),
    steps: int = 2000,
    threads: int = 1,
    out: Path = Path("runs/adaptation"),
) -> None:
    """Adapt the mini-world's image model to its clips without captions; compare it by budget with no training.

    $ python -m experiments.adaptation --seeds 0

    Args:
        seeds: One run each.
        steps: Steps of 128 clips.
        threads: Threads of each run.
        out: Folder for the world, the runs and results.json.
    """
    torch.set_num_threads(threads)
    base = mini_adapt()
    with bar("drawing clips") as progress:
        world = write_miniworld(out / "world", base.world, progress=progress, workers=num_cores())
    bare = out / "without_captions.jsonl"
    write_file(bare, "".join(json.dumps({"video": row.video}) + "\n" for row in read_manifest(world.train)))
    image, tokenizer, _ = load_pretrained("mini-image")
    untrained, _ = as_video_model(image, num_frames=8, tubelet_size=2, time_positions="gated")
    parts = {name: (read_manifest(getattr(world, part)), *how) for name, (part, *how) in _PARTS.items()}
    budgets = base.vary.budgets

    def scores(model: VideoTextModel, budget: int | None, *, image: bool = False) -> Mapping[str, float]:
        settings = EvalSettings(image=image, precision=base.loop.precision, budget=budget)
        return {
            name: 100 * evaluate(model, tokenizer, rows, task=task, settings=settings).metrics[metric]
            for name, (rows, task, metric) in parts.items()
        }

    found = {"image model, all frames": [scores(image, None, image=True)]}
    for budget in budgets:
        found[f"untrained, {budget} of 256"] = [scores(untrained, budget)]
    for seed in seeds:
        folder = out / f"seed-{seed}-{steps}"
        config = dataclasses.replace(
            base,
            data=dataclasses.replace(base.data, train=str(bare.resolve())),
            loop=dataclasses.replace(base.loop, steps=steps, seed=seed),
        )
        if not (folder / "model").is_dir():
            loop.train(config, folder)
        adapted, _, _ = load_pretrained(folder / "model")
        for seen in (*budgets, None):
            found.setdefault(f"adapted, {seen or 'all'} of 256", []).append(scores(adapted, seen))
    write_file(out / "results.json", json.dumps(found, indent=1))
    print_table(
        ("", *_PARTS),
        [
            (name, *(", ".join(f"{run[part]:.1f}" for run in runs) for part in _PARTS))
            for name, runs in found.items()
        ],
    )
    say(f"written: {out / 'results.json'}")


if __name__ == "__main__":
    main(adaptation)
