"""What UMT's stages teach in equal time, in the mini-world: `python -m experiments.umt_stages`.

Whole runs of the recipes, one after the other, each for the number of steps that fit into its seconds. Seconds
are of one thread's processor time, so that other work on the machine costs no run its steps.

pretraining  stage 1, pixel reconstruction (VideoMAE), and nothing: then all are fine-tuned on action labels. What is
             trained from scratch gets the seconds of both stages
appearance   the same on labels that one frame shows, colour and shape of the actor, few of them: an image teacher
             knows these, and of the motions that make the action labels it knows nothing; and once more with the
             teacher in 8 bits
masks        stage 1 choosing by the teacher's attention, at random and as tubes; fine-tuned in the same way
layers       stage 1 aligning the last 1, 3 or 6 layers of six, taught by an image model of six blocks, which is
             trained first
stage2       stage 1 and 2 against Harvest: search, re-ranked and not, questions and multiple choice
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch

from experiments import main
from harvest.bench.step import describe_machine, print_table
from harvest.charts import log_lines
from harvest.config import RunConfig, StartConfig, TuningConfig
from harvest.data.labels import read_class_names
from harvest.data.manifest import read_manifest
from harvest.data.miniworld import COLOURS, SHAPES, MiniWorld, MiniWorldConfig, write_miniworld
from harvest.evaluation import EvalSettings, evaluate
from harvest.evaluation.task import Task
from harvest.evaluation.tasks.multiple_choice import MultipleChoiceTask
from harvest.evaluation.tasks.retrieval import RetrievalTask
from harvest.files import write_file
from harvest.interfaces import HarvestError
from harvest.model.folder import load_head, load_strictly
from harvest.model.importing.pretrained import load_any, load_pretrained
from harvest.objectives.classification import ClassificationConfig
from harvest.objectives.masked_alignment import MaskedAlignmentConfig
from harvest.recipes.mini import (
    mini_actions,
    mini_harvest,
    mini_image,
    mini_umt_qa,
    mini_umt_stage1,
    mini_umt_stage2,
    mini_videomae,
)
from harvest.training.loop import train

Part = Literal["pretraining", "appearance", "masks", "layers", "stage2"]

_TEST_WORLD = MiniWorldConfig(seed=77, train=1)  # other clips than any recipe's
_CURVE = 3  # points of a fine-tuning's curve over seconds
_RERANKED = 50
_DEEP = 6  # blocks, where how many layers are aligned is compared
_LABELS = ("-actions", "-appearance")  # how runs that learn them are called
_LABELLED = 960
"""Clips with a label of their appearance: twenty of each colour and shape."""


def umt_stages(
    parts: tuple[Part, ...] = ("pretraining", "appearance", "masks", "layers", "stage2"),
    pretrain_s: float = 150.0,
    finetune_s: float = 120.0,
    stage2_s: float = 250.0,
    seed: int = 0,
    out: Path = Path("runs/umt-accuracy"),
) -> None:
    """Train UMT's stages and what they are compared with for equal seconds in the mini-world.

    $ python -m experiments.umt_stages
    $ python -m experiments.umt_stages --parts stage2 --stage2-s 600

    The same command resumes where it was stopped.

    Args:
        parts: Comparisons to make.
        pretrain_s: Processor seconds of stage 1 and of pixel reconstruction, on one thread.
        finetune_s: Of fine-tuning on labels, and on questions.
        stage2_s: Of stage 2; Harvest gets pretrain_s and stage2_s.
        seed: Of all runs.
        out: Folder for the worlds, the runs, results.json and the plot.
    """
    if min(pretrain_s, finetune_s, stage2_s) <= 0:
        raise HarvestError("expected seconds of more than 0")
    torch.set_num_threads(1)
    lab = Lab(out, seed=seed)
    for part in parts:
        if part == "stage2":
            lab.compare_second_stages(pretrain_s, stage2_s, finetune_s)
        else:
            lab.compare_first_stages(part, pretrain_s, finetune_s)
    print(", ".join(str(value) for value in describe_machine(torch.device("cpu")).values()))
    print_table(("run", "steps", "seconds", "scores, %"), [_cells(run) for run in lab.runs.values()])
    print(f"written: {out / 'results.json'}")
    for part, labels in (("pretraining", "actions"), ("appearance", "appearance")):
        if part in parts:
            write_file(out / f"{labels}.svg", _drawn(lab.runs, labels))
            print(f"written: {out / labels}.svg")


@dataclass(frozen=True)
class Run:
    """A run and what came of it."""

    name: str
    steps: int
    spent_s: float
    """Processor seconds, of this run and of those it starts from."""
    scores: Mapping[str, float]
    curve: tuple[tuple[float, float], ...] = ()
    """(Processor seconds with those of the start, accuracy on labels)."""


class Lab:
    """Runs in one folder, remembered by name in results.json."""

    def __init__(self, out: Path, *, seed: int) -> None:
        self.out, self.seed = out, seed
        self.results = out / "results.json"
        out.mkdir(parents=True, exist_ok=True)
        known = json.loads(self.results.read_text()) if self.results.exists() else {"runs": {}}
        self.runs = {name: Run(**run) for name, run in known["runs"].items()}
        self.step_s: dict[str, float] = known.get("step_s", {})
        self.world: MiniWorld = write_miniworld(out / "test-world", _TEST_WORLD)

    # ---- what is compared

    def compare_first_stages(self, part: Part, pretrain_s: float, finetune_s: float) -> None:
        stage1 = mini_umt_stage1()
        starts: dict[str, RunConfig] = {"stage1": stage1}
        labels, learn = ("appearance" if part == "appearance" else "actions"), mini_actions()
        if part == "appearance":
            world = write_miniworld(self.out / "labels-world", learn.world)
            rows = self._by_appearance(world, count=_LABELLED)
            assert isinstance(learn.objective, ClassificationConfig)
            learn = dataclasses.replace(
                learn,
                data=dataclasses.replace(learn.data, train=str(rows)),
                objective=dataclasses.replace(learn.objective, classes=str(rows.with_suffix(".names.json"))),
            )
        if part in ("pretraining", "appearance"):
            starts["videomae"] = mini_videomae()
            if part == "appearance":
                starts["stage1-int8"] = _aligned(stage1, teacher_int8=True)
        elif part == "masks":
            starts |= {
                f"stage1-{selector}": _aligned(stage1, selector=selector) for selector in ("random", "tube")
            }
        else:
            deep = _aligned(_with_blocks(stage1, _DEEP), teacher=str(self._deep_teacher()))
            starts = {f"stage1-k{k}": _aligned(deep, num_layers=k) for k in (1, 3, _DEEP)}
        for name, config in starts.items():
            depth = "-deep" if part == "layers" else ""
            self.train(name, config, pretrain_s, like=name if name == "videomae" else f"stage1{depth}")
            tuned = dataclasses.replace(learn, start=StartConfig(model=str(self.out / name), fusion=None))
            self.train(f"{name}-{labels}", tuned, finetune_s, like=f"actions{depth}", after=name)
        if part in ("pretraining", "appearance"):
            self.train(f"scratch-{labels}", learn, pretrain_s + finetune_s, like="actions")

    def compare_second_stages(self, pretrain_s: float, stage2_s: float, finetune_s: float) -> None:
        self.train("stage1", mini_umt_stage1(), pretrain_s, like="stage1")
        base = mini_umt_stage2()
        stage2 = dataclasses.replace(
            base, start=dataclasses.replace(base.start, model=str(self.out / "stage1"))
        )
        self.train("stage2", stage2, stage2_s, like="stage2", after="stage1")
        base = mini_umt_qa()
        qa = dataclasses.replace(base, start=StartConfig(model=str(self.out / "stage2")))
        self.train("stage2-qa", qa, finetune_s, like="qa", after="stage2")
        self.train("harvest", mini_harvest(), pretrain_s + stage2_s, like="harvest")

    def _deep_teacher(self) -> Path:
        """The run of an image model of six blocks: the recipe of the mini-world's own, which has four."""
        run = self.out / "deep-teacher"
        config = _with_blocks(mini_image(), _DEEP)
        train(dataclasses.replace(config, loop=dataclasses.replace(config.loop, threads=1)), run)
        return run

    # ---- how

    def train(self, name: str, config: RunConfig, seconds: float, *, like: str, after: str = "") -> None:
        """A run of the given processor seconds, and its scores. `like` names the kind whose step it costs."""
        if name in self.runs:
            return
        config = dataclasses.replace(config, tuning=TuningConfig())
        step_s = self._step_seconds(like, config)
        steps = max(2, round(seconds / step_s))
        config = _for(config, steps, self.seed, save_every=max(1, steps // _CURVE))
        before = time.process_time()
        train(config, self.out / name)
        spent = time.process_time() - before
        scores, curve = self.score(name), tuple[tuple[float, float], ...]()
        start_s = self.runs[after].spent_s if after else 0.0
        if name.endswith(_LABELS):
            curve = tuple((start_s + step * step_s, accuracy) for step, accuracy in self._curve(name))
        self.runs[name] = Run(name, steps, start_s + steps * step_s, scores, curve)
        print(f"{name}: {steps} steps, {spent:.0f} s with reading and writing; {_shown(scores)}", flush=True)
        found = {
            "machine": describe_machine(torch.device("cpu")),
            "step_s": self.step_s,
            "runs": {n: dataclasses.asdict(run) for n, run in self.runs.items()},
        }
        write_file(self.results, json.dumps(found, indent=1))

    def _step_seconds(self, kind: str, config: RunConfig) -> float:
        """Processor seconds of a step: of a run of 18 less those of one of 3, which both read and save."""
        if kind not in self.step_s:
            taken = []
            for steps in (3, 18):
                run = self.out / f"timing-{kind}-{steps}"
                shutil.rmtree(run, ignore_errors=True)
                before = time.process_time()
                train(_for(config, steps, self.seed, save_every=1000), run)
                taken.append(time.process_time() - before)
                shutil.rmtree(run)
            self.step_s[kind] = (taken[1] - taken[0]) / 15
        return self.step_s[kind]

    def score(self, name: str) -> dict[str, float]:
        """What a run's model is worth in the mini-world's test sets, fractions."""
        if name.endswith(_LABELS):
            return {name.rpartition("-")[2]: self._accuracy(name)}
        if name.startswith(("stage1", "videomae")):
            return {}
        model, tokenizer, _ = load_pretrained(str(self.out / name))

        def asked(part: str, task: Task | str) -> Mapping[str, float]:
            examples = read_manifest(getattr(self.world, part))
            settings = EvalSettings(precision="bf16")
            return evaluate(model, tokenizer, examples, task=task, settings=settings).metrics

        if name.endswith("-qa"):
            return {"questions": asked("questions", "qa")["accuracy"]}
        matches = model.fusion is not None and model.fusion.head_match is not None
        found = asked("retrieval", RetrievalTask(rerank_top_k=_RERANKED if matches else 0))
        scores = {key: found[key] for key in ("t2v_r1", "v2t_r1")}
        scores |= {f"{key}, re-ranked": found[f"{key}.reranked"] for key in list(scores) if matches}
        for part, label in (("motion_choice", "motion"), ("appearance_choice", "appearance")):
            chosen = asked(part, MultipleChoiceTask(matching=matches))
            scores[label] = chosen["accuracy"]
            if matches:
                scores[f"{label}, matching"] = chosen["accuracy.matching"]
        if model.fusion is not None and not matches:
            scores["questions, by filling words"] = asked("questions", "qa")["accuracy"]
        return scores

    def _accuracy(self, name: str, weights: Path | None = None) -> float:
        """Top-1 accuracy on its labels of a fine-tuned run, or of a checkpoint's weights in its model's place."""
        folder = self.out / name / "model"
        model, _, _ = load_any(str(folder))
        head = load_head(folder)
        if weights is not None:
            tensors = safetensors.torch.load_file(weights)
            for part, prefix in ((model, "model."), (head, "head.")):
                own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
                load_strictly(part, own, source=str(weights))
        asked, names = self.world.actions, None
        if name.endswith("-appearance"):
            asked = self._by_appearance(self.world)
            names = read_class_names(asked.with_suffix(".names.json"))
        result = evaluate(
            model,
            None,
            read_manifest(asked),
            task="classification",
            names=names,
            head=head,
            settings=EvalSettings(precision="bf16"),
        )
        return result.metrics["top1"]

    def _curve(self, name: str) -> list[tuple[int, float]]:
        steps = sorted((self.out / name / "checkpoints").glob("step-*"))
        return [
            (
                int(step.name.removeprefix("step-")),
                self._accuracy(name, step / "weights.safetensors"),
            )
            for step in steps
        ]

    def _by_appearance(self, world: MiniWorld, *, count: int | None = None) -> Path:
        """The first clips of a world's action labels with colour and shape as the label in place of the motion."""
        names, rows = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES], []
        for row in [json.loads(line) for line in world.actions.read_text().splitlines()][:count]:
            text = f"{row['colour']} {row['shape']}"
            video = str((world.folder / row["video"]).resolve())
            rows.append({"id": row["id"], "video": video, "texts": [text], "label": names.index(text)})
        path = self.out / f"{world.folder.name}-appearance.jsonl"
        write_file(path, "".join(json.dumps(row) + "\n" for row in rows))
        write_file(path.with_suffix(".names.json"), json.dumps(names))
        return path


def _with_blocks(config: RunConfig, depth: int) -> RunConfig:
    """A recipe that starts from scratch, with a video tower of `depth` blocks."""
    sizes = config.start.scratch
    assert sizes is not None
    sizes = dataclasses.replace(sizes, video=dataclasses.replace(sizes.video, depth=depth))
    return dataclasses.replace(config, start=dataclasses.replace(config.start, scratch=sizes))


def _aligned(config: RunConfig, **changes: Any) -> RunConfig:
    """A recipe of stage 1 with changes to what is aligned."""
    assert isinstance(config.objective, MaskedAlignmentConfig)
    return dataclasses.replace(config, objective=dataclasses.replace(config.objective, **changes))


def _for(config: RunConfig, steps: int, seed: int, *, save_every: int) -> RunConfig:
    loop = dataclasses.replace(
        config.loop, steps=steps, seed=seed, threads=1, save_every=save_every, keep_last=_CURVE + 1
    )
    return dataclasses.replace(config, loop=loop)


def _shown(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {100 * value:.1f}" for name, value in scores.items())


def _cells(run: Run) -> tuple[str, ...]:
    return run.name, str(run.steps), f"{run.spent_s:.0f}", _shown(run.scores)


def _drawn(runs: Mapping[str, Run], labels: str) -> str:
    """Accuracy on labels over seconds, those of pretraining included, of stage 1 and what it is compared with."""
    series = {
        start: [(s, 100 * a) for s, a in runs[f"{start}-{labels}"].curve]
        for start in ("stage1", "videomae", "scratch")
        if f"{start}-{labels}" in runs
    }
    return log_lines(series, x_title="processor seconds, pretraining included", y_title=f"{labels}, %")


if __name__ == "__main__":
    main(umt_stages)
