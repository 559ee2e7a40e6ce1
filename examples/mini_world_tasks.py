"""Every task in the mini-world, before and after fine-tuning, for any number of models:

python examples/mini_world_tasks.py --models harvest=runs/demo/model umt=runs/mini-umt-stage2/model --out runs/tasks

Each model is scored as it is (zero-shot) on clips that nobody was trained on, fine-tuned for each task by a `mini-ft-…`
recipe, about a minute on one CPU core each, and scored again. OUT/tasks.md is the table, OUT/tasks.json the same with
the protocols. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import torch

from harvest.data.labels import read_class_names
from harvest.data.manifest import boxed_example, read_manifest
from harvest.data.miniworld import MiniWorld, MiniWorldConfig, acting_rows, write_miniworld
from harvest.evaluation import Result, evaluate
from harvest.evaluation.detection import detection
from harvest.interfaces import Example, HarvestError
from harvest.model.folder import load_head
from harvest.model.heads import BoxHead, Head
from harvest.model.pretrained import load_any
from harvest.progress import say
from harvest.recipes import RECIPES
from harvest.training.loop import train

# task: the recipe that fine-tunes for it, and its main metric
TASKS = {
    "retrieval": ("mini-ft-retrieval", "t2v_r1"),
    "motion choice": ("mini-ft-choice", "accuracy"),
    "questions about motion": ("mini-ft-qa", "accuracy"),
    "questions about colour and shape": ("mini-ft-qa", "accuracy"),
    "classification": ("mini-ft-actions", "top1"),
    "detection of acting objects": ("mini-ft-boxes", "frame_map"),
}


def rows_of(world: MiniWorld, task: str) -> list[Example]:
    """What is scored."""
    if task == "retrieval":
        return read_manifest(world.retrieval)
    if task == "motion choice":
        return read_manifest(world.motion_choice)
    if task == "classification":
        return read_manifest(world.actions)
    if task.startswith("detection"):
        return [boxed_example(row, world.folder) for row in acting_rows(world, "retrieval")]
    kinds = [json.loads(line)["kind"] for line in world.questions.read_text().splitlines()]
    return [
        row
        for row, kind in zip(read_manifest(world.questions), kinds, strict=True)
        if (kind == "motion") == (task == "questions about motion")
    ]


def score(
    folder: Path, world: MiniWorld, task: str, *, fine_tuned: bool, frame_order: str = "forward"
) -> Result | None:
    """The scores of a model folder; None where it has nothing to do the task with."""
    model, tokenizer, _ = load_any(folder)
    head: Head | None = load_head(folder) if (folder / "head.json").is_file() else None
    rows = rows_of(world, task)
    how: dict[str, Any] = {"frame_order": frame_order, "precision": "bf16", "workers": 0}
    if task.startswith("detection"):
        return detection(model, head, rows, **how) if isinstance(head, BoxHead) else None
    if task == "classification":
        names = read_class_names(world.labels)
        kind: Literal["classification", "recognition"] = "classification" if fine_tuned else "recognition"
        return evaluate(model, tokenizer, rows, task=kind, class_names=names, head=head, **how)
    if task.startswith("questions"):
        answers = sorted({row.answer or "" for row in read_manifest(world.questions)})
        try:
            return evaluate(
                model, tokenizer, rows, task="qa", answers=None if head else answers, head=head, **how
            )
        except HarvestError as error:  # it fills no words in
            say(f"{folder}: {error}")
            return None
    if task == "retrieval":
        return evaluate(model, tokenizer, rows, task="retrieval", **how)
    return evaluate(model, tokenizer, rows, task="choice", **how)


def fine_tune(model: Path, recipe: str, run: Path, *, steps: int | None) -> Path:
    """The model folder of a finished run; a finished one is not run again."""
    config = RECIPES[recipe]()
    loop = dataclasses.replace(
        config.loop,
        threads=1,
        steps=steps or min(150, config.loop.steps),
        global_batch=min(64, config.loop.global_batch),
    )
    config = dataclasses.replace(
        config,
        start=dataclasses.replace(config.start, model=str(model)),
        data=dataclasses.replace(config.data, workers=0),
        loop=loop,
        tuning=dataclasses.replace(config.tuning, steps=0),
        world=dataclasses.replace(config.world, train=min(3000, config.world.train), retrieval=1),
    )
    return train(config, run)


def figure(result: Result | None, name: str) -> str:
    if result is None:
        return "–"
    low, high = result.intervals[name]
    return f"{100 * result.metrics[name]:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--out", type=Path, default=Path("runs/tasks"))
    parser.add_argument(
        "--steps", type=int, default=None, help="of every fine-tuning; without it about a minute"
    )
    parser.add_argument("--clips", type=int, default=400, help="scored in each task")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    world = write_miniworld(
        asked.out / "world",
        MiniWorldConfig(seed=5, train=1, retrieval=asked.clips, questions=asked.clips),
        workers=1,
    )
    lines = ["| task | model | zero-shot | fine-tuned | one frame, fine-tuned |", "|---|---|---|---|---|"]
    told: list[dict[str, Any]] = []
    for task, (recipe, name) in TASKS.items():
        for called, folder in (pair.split("=", 1) for pair in asked.models):
            before = score(Path(folder), world, task, fine_tuned=False)
            tuned = fine_tune(Path(folder), recipe, asked.out / called / recipe, steps=asked.steps)
            after = score(tuned, world, task, fine_tuned=True)
            still = score(tuned, world, task, fine_tuned=True, frame_order="one_frame")
            cells = [task, called, *(figure(result, name) for result in (before, after, still))]
            lines.append("| " + " | ".join(cells) + " |")
            say(lines[-1])
            told.append(
                {
                    "task": task,
                    "model": called,
                    "metric": name,
                    **{
                        key: result and result.to_dict()
                        for key, result in (
                            ("zero_shot", before),
                            ("fine_tuned", after),
                            ("one_frame", still),
                        )
                    },
                }
            )
    text = f"Percent, with 95 % intervals over {asked.clips} clips a task.\n\n" + "\n".join(lines) + "\n"
    (asked.out / "tasks.md").write_text(text, encoding="utf-8")
    (asked.out / "tasks.json").write_text(json.dumps(told, indent=1, ensure_ascii=False), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
