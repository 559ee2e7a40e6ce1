"""What one setting of `mini-harvest` is worth, over seeds: `python -m experiments.variants`.

Every variant trains for the same number of clips and answers the mini-world's questions, seeing all of each clip.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from experiments import main
from harvest.bench.step import print_table
from harvest.config import RunConfig
from harvest.data.miniworld import write_miniworld
from harvest.demo.scores import CHOICES, read_material
from harvest.evaluation import EvalSettings, evaluate
from harvest.files import write_file
from harvest.interfaces import HarvestError
from harvest.machine import num_cores
from harvest.model.importing.pretrained import load_pretrained
from harvest.objectives.text_tuning import TextTuningConfig
from harvest.progress import bar, say
from harvest.recipes.mini import mini_harvest
from harvest.tokens.hard_negatives import RULES
from harvest.training import loop


def _changed(part: str, **changes: Any) -> Callable[[RunConfig], RunConfig]:
    def change(config: RunConfig) -> RunConfig:
        return dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **changes)})

    return change


VARIANTS: Mapping[str, Callable[[RunConfig], RunConfig]] = {
    "plain": lambda config: config,
    "mirrored by caption": _changed("data", flip=True),
    "mirrored always": _changed("data", flip=True, flip_sides=True),
    "no hard texts": _changed("objective", hard_negatives=0, hard_rules=RULES),
    "text tower as it was": _changed("objective", text_tuning=TextTuningConfig()),
}
_SHOWN = {
    "left or right": "motion_choice.horizontal",
    "motion": "motion_choice",
    "held-out": "motion_choice_held_out",
    "visibility": "motion_choice.visibility",
    "order": "order_choice",
    "appearance": "appearance_choice",
    "R@1": "t2v_r1",
}


def variants(
    names: tuple[str, ...] = tuple(VARIANTS),
    seeds: tuple[int, ...] = (0, 1, 2),
    steps: int = 500,
    threads: int = 1,
    out: Path = Path("runs/variants"),
) -> None:
    """Train `mini-harvest` with one setting changed at a time, over seeds; compare.

    $ python -m experiments.variants --names plain "mirrored always" --seeds 0 1

    The same command resumes where it was stopped.

    Args:
        names: Variants, as they are named in this file.
        seeds: One run of each variant for each seed.
        steps: Steps of the main stage, of 128 clips; tuning follows as in the recipe.
        threads: Threads of each run.
        out: Folder for the world, the runs and results.json.
    """
    if unknown := set(names) - set(VARIANTS):
        raise HarvestError(f"no variant {', '.join(sorted(unknown))}: there are {', '.join(VARIANTS)}")
    torch.set_num_threads(threads)
    path = out / "results.json"
    found: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
    for seed in seeds:
        for name in names:
            run = f"{name}, {steps} steps, seed {seed}"
            if run not in found:
                say(run)
                found[run] = _run(
                    VARIANTS[name], seed, steps, out, out / run.replace(", ", "-").replace(" ", "-")
                )
                write_file(path, json.dumps(found, indent=1))
    rows = []
    for name in names:
        own = [found[f"{name}, {steps} steps, seed {seed}"] for seed in seeds]
        rows.append((name, *(_shown([100 * one[key] for one in own]) for key in _SHOWN.values())))
    print_table(("variant", *_SHOWN), rows)


def _run(
    change: Callable[[RunConfig], RunConfig], seed: int, steps: int, out: Path, folder: Path
) -> dict[str, float]:
    config = mini_harvest()
    with bar("drawing clips") as progress:
        world = write_miniworld(out / "world", config.world, progress=progress, workers=num_cores())
    config = change(
        dataclasses.replace(
            config,
            data=dataclasses.replace(config.data, train=str(world.train.resolve()), videos=None),
            loop=dataclasses.replace(config.loop, steps=steps, seed=seed),
        )
    )
    if not (folder / "model").is_dir():
        loop.train(config, folder)
    model, tokenizer, _ = load_pretrained(folder / "model")
    material, settings = read_material(world), EvalSettings(precision=config.loop.precision)
    scores: dict[str, float] = {}
    for part in CHOICES:
        rows = material.choices[part]
        groups = {row.example.id: str(row.about["group"] or row.about["kind"]) for row in rows}
        result = evaluate(
            model, tokenizer, [row.example for row in rows], task="choice", settings=settings, groups=groups
        )
        scores[part] = result.metrics["accuracy"]
        scores |= {
            f"{part}.{key.removeprefix('accuracy.')}": value
            for key, value in result.metrics.items()
            if key.startswith("accuracy.")
        }
    examples = [row.example for row in material.retrieval]
    return scores | dict(evaluate(model, tokenizer, examples, task="retrieval", settings=settings).metrics)


def _shown(values: list[float]) -> str:
    spread = f" ±{statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


if __name__ == "__main__":
    main(variants)
