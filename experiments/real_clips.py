"""Does what a model learnt in the mini-world help on real video? `python -m experiments.real_clips`

Fine-tuning from it and from random weights.

CLIPS holds `fight_surv` (surveillance clips with groups.csv: file, label, group of each) and `labelled` (clips of UCF101
under their official names). Fights: each seed draws its own halves of the groups, so that no scene is in both. UCF101:
half of each class's clips; the few that there are mostly show one scene a class, so that it asks for pictures to be
known again rather than for actions. The tower has the mini-world's size, 64 x 64 pixels, on one thread; both starts see
the same clips in the same order. OUT/real.md is the table, OUT/real.json every run. Interrupted, the same command
resumes: a finished run is only scored again.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from experiments import main
from harvest.config import StartConfig
from harvest.data.manifest import write_manifest
from harvest.evaluation import EvalSettings, evaluate
from harvest.interfaces import Example, HarvestError
from harvest.model.folder import load_head
from harvest.model.importing.pretrained import load_any
from harvest.objectives.classification import ClassificationConfig
from harvest.parallel import generator_for
from harvest.progress import say
from harvest.recipes import RECIPES
from harvest.training.loop import train

STARTS = ("mini-world", "random weights")
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 10: 2.262}  # Student's t, two-sided, by number of seeds
Halves = tuple[list[Example], list[Example]]


def fights(clips: Path, seed: int) -> Halves:
    """Half of the groups to learn from, the other half to be asked about."""
    folder = clips / "fight_surv"
    with (folder / "groups.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    labels = sorted({row["label"] for row in rows})
    groups = sorted({row["group"] for row in rows})
    order = torch.randperm(len(groups), generator=generator_for(seed)).tolist()
    first = {groups[place] for place in order[: len(groups) // 2]}
    halves: Halves = ([], [])
    for row in rows:
        label = row["label"]
        example = Example(row["file"], str(folder / row["file"]), (label,), labels.index(label))
        halves[row["group"] not in first].append(example)
    return halves


def ucf101(clips: Path, seed: int) -> Halves:
    """Half of the clips of each class that has three or more."""
    named = [
        (re.search(r"v_(\w+?)_g\d+_c\d+", path.name), path) for path in sorted((clips / "labelled").iterdir())
    ]
    found: dict[str, list[Path]] = {}
    for match, path in named:
        if match is not None:
            found.setdefault(match[1], []).append(path)
    kept = {name: paths for name, paths in sorted(found.items()) if len(paths) >= 3}
    halves: Halves = ([], [])
    for number, (name, paths) in enumerate(kept.items()):
        order = torch.randperm(len(paths), generator=generator_for(seed, number)).tolist()
        for place, which in enumerate(order):
            halves[place % 2].append(Example(paths[which].stem, str(paths[which]), (name,), number))
    return halves


SETS: dict[str, Callable[[Path, int], Halves]] = {"fights": fights, "UCF101": ucf101}


def accuracy(model: Path, start: str, halves: Halves, run: Path, *, seed: int, steps: int) -> float:
    """Top-1 on the second half after fine-tuning on the first."""
    learnt, asked = halves
    write_manifest(run.with_suffix(".jsonl"), learnt)
    names = run.with_suffix(".names.json")
    classes = {example.label or 0: example.texts[0] for example in learnt}
    names.write_text(json.dumps([classes[number] for number in sorted(classes)]))
    base = RECIPES["mini-ft-actions"]()
    assert isinstance(base.objective, ClassificationConfig)
    sizes = load_any(model)[0].config
    begin = StartConfig(model=str(model))
    if start == "random weights":
        begin = StartConfig(
            model="scratch", fusion=None, scratch=dataclasses.replace(sizes, text=None, fusion=None)
        )
    config = dataclasses.replace(
        base,
        start=begin,
        objective=dataclasses.replace(base.objective, classes=str(names), drop_ratio=0.5, selector="random"),
        data=dataclasses.replace(
            base.data, train=str(run.with_suffix(".jsonl")), flip=True, crop_scale=(0.5, 1.0), workers=0
        ),
        loop=dataclasses.replace(
            base.loop,
            steps=steps,
            global_batch=16,
            seed=seed,
            threads=1,
            save_every=100_000,
            precision="bf16",
        ),
    )
    folder = train(config, run)
    tuned, tokenizer, _ = load_any(folder)
    result = evaluate(
        tuned,
        tokenizer,
        asked,
        task="classification",
        head=load_head(folder),
        settings=EvalSettings(precision="bf16"),
    )  # type: ignore[arg-type]
    if result.missing:
        raise HarvestError(f"clips cannot be read: {dict(result.missing)}")
    return result.metrics["top1"]


def spread(values: list[float]) -> str:
    """Mean in percent, and the 95 % interval of the mean over seeds."""
    mean = sum(values) / len(values)
    if len(values) not in T_95:
        return f"{100 * mean:.1f}"
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    reach = T_95[len(values)] * deviation / math.sqrt(len(values))
    return f"{100 * mean:.1f} ({100 * (mean - reach):.1f} to {100 * (mean + reach):.1f})"


def real_clips(
    clips: Path, model: Path, out: Path = Path("runs/real"), seeds: int = 5, steps: int = 60
) -> None:
    """Fine-tune on real clips from the mini-world's model and from random weights.

    $ python -m experiments.real_clips --clips CLIPS --model runs/demo/model

    Args:
        clips: Folder with fight_surv and labelled.
        model: A model folder of the mini-world.
        out: Folder for the runs, real.md and real.json.
        seeds: Of fine-tunings.
        steps: Of 16 clips each.
    """
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    lines = [
        "| clips | learnt from, asked about | "
        + " | ".join(f"from {start}" for start in STARTS)
        + " | difference | chance |",
        "|---|---|---|---|---|---|",
    ]
    runs: list[dict[str, Any]] = []
    for name, split in SETS.items():
        found: dict[str, list[float]] = {start: [] for start in STARTS}
        for seed in range(seeds):
            halves = split(clips, seed)
            for start in STARTS:
                run = out / f"{name}-{start.replace(' ', '-')}-{seed}"
                value = accuracy(model, start, halves, run, seed=seed, steps=steps)
                found[start].append(value)
                runs.append({"clips": name, "start": start, "seed": seed, "top1": value})
                say(f"{name}, {start}, seed {seed}: {100 * value:.1f} %")
        halves = split(clips, 0)
        commonest = max(sum(e.label == k for e in halves[1]) for k in {e.label for e in halves[1]})
        paired = [a - b for a, b in zip(found[STARTS[0]], found[STARTS[1]], strict=True)]
        cells = [name, f"{len(halves[0])}, {len(halves[1])}", *(spread(found[start]) for start in STARTS)]
        cells += [spread(paired), f"{100 * commonest / len(halves[1]):.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    text = (
        f"Top-1 in percent, mean over {seeds} seeds with the 95 % interval of the mean (Student's t), {steps}"
        " steps of 16 clips; chance is always saying the commonest class.\n\n" + "\n".join(lines) + "\n"
    )
    (out / "real.md").write_text(text, encoding="utf-8")
    (out / "real.json").write_text(json.dumps(runs, indent=1), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main(real_clips)
