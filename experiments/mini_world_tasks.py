"""Every task in the mini-world, before and after fine-tuning: `python -m experiments.mini_world_tasks`.

Each model is scored as it is (zero-shot) on clips that nobody was trained on, fine-tuned for each task by a `mini-ft-…`
recipe, two minutes on one CPU core each and ten for retrieval, and scored again. OUT/tasks.md is the table,
OUT/tasks.json the same with the protocols; both grow with every task. Interrupted, the same command resumes: a task that is
scored is not scored again, and a fine-tuning resumes from its last checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from experiments import main
from harvest.config import TuningConfig
from harvest.data.labels import read_class_names
from harvest.data.manifest import boxed_example, read_manifest
from harvest.data.miniworld import MiniWorld, MiniWorldConfig, acting_rows, write_miniworld
from harvest.evaluation import EvalSettings, Result, evaluate
from harvest.files import write_file
from harvest.interfaces import Example, HarvestError
from harvest.model.folder import digest_of, load_head
from harvest.model.heads import BoxHead, Head
from harvest.model.importing.pretrained import load_any
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
    how: dict[str, Any] = {"frame_order": frame_order, "settings": EvalSettings(precision="bf16")}
    if task.startswith("detection"):
        is_able = isinstance(head, BoxHead)
        return evaluate(model, tokenizer, rows, task="detection", head=head, **how) if is_able else None
    if task == "classification":
        names = read_class_names(world.labels)
        kind = "classification" if fine_tuned else "recognition"
        return evaluate(model, tokenizer, rows, task=kind, names=names, head=head, **how)
    if task.startswith("questions"):
        answers = sorted({row.answer or "" for row in read_manifest(world.questions)})
        try:
            return evaluate(
                model, tokenizer, rows, task="qa", names=None if head else answers, head=head, **how
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
    config = dataclasses.replace(
        config,
        start=dataclasses.replace(config.start, model=str(model)),
        data=dataclasses.replace(config.data, workers=0),
        loop=dataclasses.replace(config.loop, threads=1),
    )
    if steps is not None:  # a try: a small world, and no stage at the end
        config = dataclasses.replace(
            config,
            loop=dataclasses.replace(config.loop, steps=steps),
            tuning=TuningConfig(),
            world=dataclasses.replace(config.world, train=min(500, config.world.train)),
        )
    return train(config, run)


def scored(
    called: str, folder: Path, world: MiniWorld, task: str, *, out: Path, steps: int | None
) -> dict[str, Any]:
    """A line of the table, kept in OUT/NAME-TASK.json: what is there is not scored again."""
    recipe, name = TASKS[task]
    kept = out / f"{called}-{task.replace(' ', '-')}.json"
    asked = {
        "weights": digest_of(load_any(folder)[0]),
        "clips": world.config.questions,
        "steps": steps,
        "recipe": recipe,
    }
    if kept.is_file():
        found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        if found["asked"] != asked:
            raise HarvestError(f"{kept} is of another model, other steps or other clips: give another --out")
        return found
    before = score(folder, world, task, fine_tuned=False)
    tuned = fine_tune(folder, recipe, out / f"{called}-{recipe}", steps=steps)
    after = score(tuned, world, task, fine_tuned=True)
    still = score(tuned, world, task, fine_tuned=True, frame_order="one_frame")
    found = {"task": task, "model": called, "metric": name, "asked": asked}
    for key, result in (("zero_shot", before), ("fine_tuned", after), ("one_frame", still)):
        found[key] = None if result is None else result.to_dict()
    write_file(kept, json.dumps(found, indent=1, ensure_ascii=False))
    return found


def figure(result: dict[str, Any] | None, name: str) -> str:
    if result is None:
        return "–"
    low, high = result["intervals"][name]
    return f"{100 * result['metrics'][name]:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def table(rows: Sequence[dict[str, Any]], *, clips: int) -> str:
    lines = [
        f"Percent, with 95 % intervals over {clips} clips a task.",
        "",
        "| task | model | zero-shot | fine-tuned | one frame, fine-tuned |",
        "|---|---|---|---|---|",
    ]
    for line in rows:
        figures = [figure(line[key], line["metric"]) for key in ("zero_shot", "fine_tuned", "one_frame")]
        lines.append("| " + " | ".join([line["task"], line["model"], *figures]) + " |")
    return "\n".join(lines) + "\n"


def mini_world_tasks(
    models: tuple[str, ...], out: Path = Path("runs/tasks"), steps: int | None = None, clips: int = 400
) -> None:
    """Every task of the mini-world, zero-shot and fine-tuned, for one or several models.

    $ python -m experiments.mini_world_tasks --models harvest=runs/demo/model umt=runs/mini-umt-stage2/model

    Args:
        models: NAME=FOLDER of each model.
        out: Folder for the runs, tasks.md and tasks.json. The same command resumes where it was stopped.
        steps: Of every fine-tuning, to try it; without it the recipes' own.
        clips: Scored in each task.
    """
    torch.set_num_threads(1)
    named: list[tuple[str, str]] = [pair.partition("=")[::2] for pair in models]
    if not all(name and folder for name, folder in named):
        raise HarvestError(f"--models takes NAME=FOLDER, got {' '.join(models)}")
    world = write_miniworld(
        out / "world", MiniWorldConfig(seed=5, train=1, retrieval=clips, questions=clips), workers=1
    )
    rows: list[dict[str, Any]] = []
    for task in TASKS:
        for name, folder in named:
            rows.append(scored(name, Path(folder), world, task, out=out, steps=steps))
            write_file(out / "tasks.md", table(rows, clips=clips))
            write_file(out / "tasks.json", json.dumps(rows, indent=1, ensure_ascii=False))
            say(f"{len(rows)} of {len(TASKS) * len(models)}: {task}, {name}")
    print(table(rows, clips=clips))


if __name__ == "__main__":
    main(mini_world_tasks)
