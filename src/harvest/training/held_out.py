"""Scores on held-out clips while a run trains, by the evaluators of `harvest evaluate`; the best model so far is kept.

RUN/best/   the model folder of the step with the best score, and scores.json with what it scored
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from harvest.data.rows import read_rows
from harvest.evaluation.embed import mode_of
from harvest.evaluation.settings import EvalSettings
from harvest.evaluation.task import Evaluation, Task
from harvest.evaluation.tasks import evaluate, task_named
from harvest.files import new_folder
from harvest.interfaces import Example, HarvestError, RunStopped
from harvest.model.folder import write_model
from harvest.parallel import World, sync_errors
from harvest.progress import say
from harvest.settings import read_settings
from harvest.training.average import WeightAverage
from harvest.training.log import RunLog, steps_with
from harvest.training.prepare import Prepared, rows_of
from harvest.training.run import Ended, ended, notes_of

if TYPE_CHECKING:
    from harvest.config import RunConfig

SCORES = "scores.json"


class Best(NamedTuple):
    """What RUN/best/scores.json says."""

    step: int
    data: str
    """The manifest by whose score it is the best."""
    by: str
    """The name of that score."""
    scores: dict[str, float]


@dataclass(frozen=True)
class Part:
    """A manifest to be scored."""

    name: str
    task: Task
    examples: Sequence[Example]
    left_out: dict[str, str]
    by: str
    """The score that stands for it, `NAME/METRIC`."""


class HeldOut:
    """Scores the model as the run would end with it now, every `eval.every` steps, before the first and after the last.

    An evaluation draws nothing at random and leaves weights and order as they are. A run that is killed at any moment
    logs the same scores and keeps the same best model as the unbroken one.
    """

    def __init__(self, config: RunConfig, prepared: Prepared, run: Path, here: World) -> None:
        self.config, self.prepared, self.run, self.here = config, prepared, run, here
        self.parts = [_part(config, run, here, name) for name in config.eval.data]
        names = [part.name for part in self.parts]
        if len(set(names)) < len(names):
            raise HarvestError(
                f"eval.data: two manifests have the same name ({', '.join(names)}): rename one"
            )
        if self.parts and prepared.tokenizer is None:
            raise HarvestError(
                "eval.data: retrieval and multiple choice need a text tower, which this run has none of: leave it out"
            )
        model = prepared.model
        self.settings = EvalSettings(
            image=mode_of(model) == "image",
            fit=config.data.fit,
            precision=config.loop.precision,
            workers=config.data.workers,
        )
        for part in self.parts:
            part.task.check(Evaluation(model, prepared.tokenizer, part.examples, self.settings))
        self._scored = steps_with(run / "metrics.jsonl", self.parts[0].by) if self.parts else set()

    def resume(self, first_step: int) -> None:
        """Leave aside the steps after `first_step`, which are done again."""
        self._scored = {step for step in self._scored if step <= first_step}

    def is_due(self, step: int) -> bool:
        every, last = self.config.eval.every, self.config.total_steps
        return bool(self.parts) and (step % every == 0 or step == last) and step not in self._scored

    def __call__(
        self,
        step: int,
        objective: nn.Module,
        average: WeightAverage | None,
        log: RunLog,
        *,
        stopped: Callable[[], int],
    ) -> float:
        """Score the weights after `step` steps where that is due; returns the seconds it took.

        Every rank must call it, once the step is saved. `stopped` gives the signal that asks all ranks to stop, 0 where
        none does: RunStopped is then raised, and the run that goes on scores this step again.
        """
        if not self.is_due(step):
            return 0.0
        began = time.perf_counter()
        made = ended(self.config, self.prepared, objective, average)
        scores: dict[str, float] = {}
        for part in self.parts:

            def progress(done: int, of: int, name: str = part.name) -> None:
                if signal := stopped():
                    raise RunStopped(
                        f"stopped while step {step} was scored; the same command goes on", signal=signal
                    )
                log.show(f"scoring {name}: {done:,} of {of:,} clips")

            found = evaluate(
                made.model,
                self.prepared.tokenizer,
                part.examples,
                task=part.task,
                settings=self.settings,
                left_out=part.left_out,
                progress=progress,
            )
            scores |= {f"{part.name}/{metric}": value for metric, value in found.metrics.items()}
            if found.missing and self.here.is_main and not self._scored:
                say(f"{part.name}: {len(found.missing)} of its videos cannot be read and are not scored")
        with sync_errors():
            if self.here.is_main:
                is_best = self._keep(step, scores, made)
                says = " · ".join(f"{part.by} {100 * scores[part.by]:.1f} %" for part in self.parts)
                log.write_scores(step, scores, says + (" · the best so far" if is_best else ""))
        self._scored.add(step)
        return time.perf_counter() - began

    def _keep(self, step: int, scores: dict[str, float], made: Ended) -> bool:
        """Write RUN/best where the score is better than that of the model there, or this very step's."""
        folder, by, data = self.run / "best", self.parts[0].by, self.config.eval.data[0]
        if (folder / SCORES).exists():
            best: Best = read_settings(Best, folder / SCORES)
            if (best.data, best.by) == (data, by) and best.step != step and best.scores[by] >= scores[by]:
                return False
        for leftover in self.run.glob(".best-*"):  # of a save that was killed
            shutil.rmtree(leftover)
        try:
            with new_folder(folder) as temporary:
                notes = notes_of(self.config)
                write_model(temporary, made.model, self.prepared.tokenizer, head=made.head, notes=notes)
                best = Best(step, data, by, scores)
                (temporary / SCORES).write_text(json.dumps(best._asdict(), indent=1))
        except OSError as error:
            raise HarvestError(
                f"could not write {folder}: {error}. Free some space and run the same command again"
            ) from error
        return True


def _part(config: RunConfig, run: Path, here: World, name: str) -> Part:
    left_out: dict[str, str] = {}
    examples: Sequence[Example]
    if name.split("/")[0] == "mini-world":
        examples, _ = rows_of(config, run, here, name)
    else:
        videos = Path(config.eval.videos) if config.eval.videos else None
        examples, left_out = read_rows(name, videos=videos)
    if not len(examples):
        raise HarvestError(f"eval.data: {name} has no clip to score")
    has_options = examples[0].label is not None and len(examples[0].texts) > 1
    task = task_named("choice" if has_options else "retrieval")()
    label = re.sub(r"[^\w.-]+", "-", Path(name).stem).strip("-")
    return Part(label, task, examples, left_out, f"{label}/{'accuracy' if has_options else 't2v_r1'}")
