"""What selectors and budgets teach in equal time: `python -m experiments.selectors`.

Runs of `mini-harvest` that differ only in what they see of each clip. The time of a step of each is measured first,
in turns; then each trains for the number of steps that fit into the same seconds, including a last stage like the
recipe's, and answers the mini-world's questions: seeing all of each clip, and at the budget it was trained for.
Seconds are processor seconds of one thread, so that other work on the machine costs no run its steps.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments import main
from harvest.bench.step import describe_machine, print_table
from harvest.charts import log_lines
from harvest.config import RunConfig
from harvest.data.loader import TrainLoader
from harvest.data.manifest import read_manifest
from harvest.data.miniworld import write_miniworld
from harvest.data.read_once import eval_batches
from harvest.evaluation.embed import Embeddings, encode_clips
from harvest.evaluation.task import Evaluation
from harvest.evaluation.tasks.multiple_choice import MultipleChoiceTask
from harvest.evaluation.tasks.retrieval import RetrievalTask
from harvest.files import new_folder, write_file
from harvest.interfaces import Batch, Example, HarvestError
from harvest.model.folder import save_model
from harvest.model.matryoshka import shorten
from harvest.model.video_text import VideoTextModel
from harvest.objectives.post_pretraining import PostPretraining, PostPretrainingConfig
from harvest.objectives.text_store import Captions, encode_texts
from harvest.parallel import World
from harvest.progress import bar
from harvest.recipes.mini import mini_harvest
from harvest.tokens import Selection, Selector
from harvest.training.optim import build_optimizer
from harvest.training.prepare import prepare
from harvest.training.start import build_objective, start_model
from harvest.training.step import OptimizerStep
from harvest.training.vary import VaryConfig

TUNING_SHARE = 0.1  # of the seconds: the last stage, as in the recipe
CURVE = (1 / 2,)  # of the main stage: where the curve over seconds has its points, beside the end
_WARM_UP, _TIMED = 2, 9  # steps of each arm that are not, and that are, timed
_PARTS = {
    "motion": "motion_choice",
    "held-out": "motion_choice_held_out",
    "appearance": "appearance_choice",
    "R@1": "retrieval",
}
_CPU = torch.device("cpu")


def selectors(
    selectors: tuple[Selector, ...] = ("random", "tube", "attention", "motion", "run_length"),
    budgets: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5),
    any_budget: bool = False,
    dims: tuple[int, ...] = (),
    seconds: float = 60.0,
    seeds: tuple[int, ...] = (0, 1, 2),
    out: Path = Path("runs/accuracy"),
    plot: bool = True,
) -> None:
    """Train on the mini-world for equal seconds, choosing tokens in several ways at several budgets; compare.

    $ python -m experiments.selectors
    $ python -m experiments.selectors --selectors motion --any-budget --dims 64 --seconds 240 --seeds 0 --out runs/any

    The same command resumes where it was stopped.

    Args:
        selectors: Ways of choosing.
        budgets: Shares of a clip's tubelets that are seen in training.
        any_budget: Also train, for each way, one model with all of the budgets, one of them drawn at each step.
        dims: Leading entries of an embedding that are trained to be an embedding too, in the models of any budget.
        seconds: Processor seconds of training that each run gets, on one thread.
        seeds: One run for each.
        out: Folder for the world, the models, results.json and the plots.
        plot: Draw accuracy over tubelets and over seconds.
    """
    if not selectors or not seeds or seconds <= 0 or not budgets or any(not 0 < b <= 1 for b in budgets):
        raise HarvestError(
            "expected some selectors and seeds, some seconds, and budgets of more than 0 and at most 1"
        )
    torch.set_num_threads(1)
    experiment = Experiment(out)
    arms = [Arm(selector, (share,)) for selector in selectors for share in budgets]
    if any_budget:
        arms += [Arm(selector, budgets, dims) for selector in selectors]
    results = experiment.run(arms, seeds=seeds, seconds=seconds)
    print(", ".join(str(value) for value in describe_machine(_CPU).values()))
    print_table(_HEADINGS, [_cells(arm, results) for arm in arms])
    print(f"written: {out / 'results.json'}")
    if plot:
        for name, drawn in (("tokens", _over_tokens(results)), ("seconds", _over_seconds(results))):
            write_file(out / f"{name}.svg", drawn)
            print(f"written: {out / name}.svg")


@dataclass(frozen=True)
class Arm:
    """What a run sees of each clip."""

    selector: Selector
    shares: tuple[float, ...]  # of a clip's tubelets; of several, one is drawn at each step
    dims: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        shares = "any" if len(self.shares) > 1 else f"{100 * self.shares[0]:g}"
        return f"{self.selector}-{shares}" + "".join(f"-d{dim}" for dim in self.dims)


@dataclass(frozen=True)
class Outcome:
    """One run and what came of it."""

    arm: str
    selector: Selector
    shares: tuple[float, ...]
    seed: int
    step_s: float
    """Processor seconds of a step of the main stage, the median of steps that took turns with all others'."""
    steps: int
    tuning_steps: int
    clips: int
    spent_s: float
    """Processor seconds that training took in fact."""
    scores: Mapping[str, Mapping[str, float]]
    """By what was seen at the end, `all` or a share: accuracies and R@1, fractions."""
    curve: Sequence[tuple[float, float]]
    """(Processor seconds, motion accuracy), everything seen, the end included."""


class Experiment:
    """The mini-world, read once, and the runs that learn from it."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.config = mini_harvest()
        out.mkdir(parents=True, exist_ok=True)
        prepared = prepare(self.config, out / "run", World())
        self.dataset, self.tokenizer = prepared.dataset, prepared.tokenizer
        self.world = write_miniworld(
            out / f"mini-world-{self.config.world.train}-{self.config.world.seed}", self.config.world
        )
        self.sizes = prepared.model.config.video
        self._parts: dict[str, tuple[list[Example], list[Tensor]]] = {}
        self.texts: Captions | None = None

    def run(self, arms: Sequence[Arm], *, seeds: Sequence[int], seconds: float) -> list[Outcome]:
        """Train and score what `results.json` does not hold yet."""
        path = self.out / "results.json"
        known: dict[str, Any] = {"seconds": seconds, "machine": describe_machine(_CPU)}
        known |= {"step_s": {}, "outcomes": []}
        if path.exists():
            known |= json.loads(path.read_text())
        if known["seconds"] != seconds:
            raise HarvestError(f"{path} is of runs of {known['seconds']:g} s: give another folder with --out")
        with bar("decoding clips") as progress:
            self.dataset.fill_cache(progress)
        if missing := [arm for arm in arms if arm.name not in known["step_s"]]:
            known["step_s"] |= self._step_times(missing)
        done = {(outcome["arm"], outcome["seed"]) for outcome in known["outcomes"]}
        wanted = [(seed, c) for seed in seeds for c in arms if (c.name, seed) not in done]
        with bar("training") as progress:
            for number, (seed, arm) in enumerate(wanted):
                outcome = self.train(arm, seed, seconds, known["step_s"][arm.name])
                known["outcomes"].append(dataclasses.asdict(outcome))
                write_file(path, json.dumps(known, indent=1))
                progress(number + 1, len(wanted))
        names = {arm.name for arm in arms}
        return [
            Outcome(**outcome)
            for outcome in known["outcomes"]
            if outcome["arm"] in names and outcome["seed"] in seeds
        ]

    def _step_times(self, arms: Sequence[Arm]) -> dict[str, list[float]]:
        """Processor seconds of a step of the main stage and of the last one, all taking turns."""
        times = _WARM_UP + _TIMED
        runs = {c.name: _Run(self, c, seed=0, steps=times, tuning_steps=times) for c in arms}
        taken: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in runs}
        with bar("timing steps") as progress:
            for turn in range(2 * times):
                for name, run in runs.items():
                    before = time.process_time()
                    run.step()
                    taken[name][turn // times].append(time.process_time() - before)
                progress(turn + 1, 2 * times)
        return {name: [statistics.median(part[_WARM_UP:]) for part in parts] for name, parts in taken.items()}

    def train(self, arm: Arm, seed: int, seconds: float, step_s: Sequence[float]) -> Outcome:
        """One run of a given number of seconds, and what the model knows after it."""
        main, tuning = step_s
        steps = max(1, round(seconds * (1 - TUNING_SHARE) / main))
        tuning_steps = max(1, round(seconds * TUNING_SHARE / tuning))
        run = _Run(self, arm, seed=seed, steps=steps, tuning_steps=tuning_steps)
        curve, spent = [], 0.0
        stops = {round(share * steps) for share in CURVE}
        for step in range(steps + tuning_steps):
            before = time.process_time()
            run.step()
            spent += time.process_time() - before
            if step + 1 in stops:
                curve.append((spent, self.scores(run.model, ["motion"])["motion"]))
        scores = {"all": self.scores(run.model, list(_PARTS))}
        for share in arm.shares:
            selection = Selection(budget=self.budget(share), selector=arm.selector)
            scores[f"{share:g}"] = self.scores(run.model, ["motion", "R@1"], selection)
        for dim in arm.dims:
            scores[f"all, first {dim}"] = self.scores(run.model, ["motion", "R@1"], dim=dim)
        curve.append((spent, scores["all"]["motion"]))
        with new_folder(self.out / "models" / f"{arm.name}-{seed}") as folder:
            assert self.tokenizer is not None
            save_model(folder, run.model, self.tokenizer, notes={"arm": arm.name, "seed": str(seed)})
        return Outcome(
            arm=arm.name,
            selector=arm.selector,
            shares=arm.shares,
            seed=seed,
            step_s=main,
            steps=steps,
            tuning_steps=tuning_steps,
            clips=(steps + tuning_steps) * self.config.loop.global_batch,
            spent_s=spent,
            scores=scores,
            curve=curve,
        )

    def budget(self, share: float) -> int:
        return max(1, round(share * self.sizes.num_times * self.sizes.num_patches))

    def scores(
        self,
        model: VideoTextModel,
        names: Sequence[str],
        selection: Selection | None = None,
        dim: int | None = None,
    ) -> dict[str, float]:
        assert self.tokenizer is not None
        found = {}
        for name in names:
            examples, batches = self._part(name)
            encoded = [encode_clips(model, v, precision="bf16", selection=selection).pooled for v in batches]
            pooled, rows = torch.cat(encoded).float(), torch.arange(len(examples))
            if dim is not None:
                pooled = shorten(pooled, dim)
            videos = Embeddings(pooled, row=rows, first=rows, broken={})
            given = Evaluation(model, self.tokenizer, examples)
            if name == "R@1":
                found[name] = RetrievalTask().of_embeddings(given, videos).metrics["t2v_r1"]
            else:
                found[name] = MultipleChoiceTask().of_embeddings(given, videos).metrics["accuracy"]
        return found

    def _part(self, name: str) -> tuple[list[Example], list[Tensor]]:
        """The rows of a test set, each with a clip of its own, and their frames: decoded once, they are asked often."""
        if name not in self._parts:
            examples = read_manifest(getattr(self.world, _PARTS[name]))
            batches = eval_batches(
                examples,
                num_frames=self.sizes.num_frames,
                image_size=self.sizes.image_size,
                batch_size=64,
                workers=0,
            )
            self._parts[name] = examples, [video for _, video in batches]
        return self._parts[name]


class _Run:
    """The training loop without what keeps a run: no folder, no log, no checkpoints."""

    def __init__(self, experiment: Experiment, arm: Arm, *, seed: int, steps: int, tuning_steps: int) -> None:
        base = experiment.config
        assert isinstance(base.objective, PostPretrainingConfig)
        budgets = tuple(experiment.budget(share) for share in arm.shares)
        self.config: RunConfig = dataclasses.replace(
            base,
            objective=dataclasses.replace(
                base.objective, selector=arm.selector, budget=budgets[0], dims=arm.dims
            ),
            vary=VaryConfig(budgets=budgets if len(budgets) > 1 else ()),
            loop=dataclasses.replace(base.loop, steps=steps, seed=seed),
            tuning=dataclasses.replace(base.tuning, steps=tuning_steps),
        )
        dataset = experiment.dataset.reseeded(seed)
        with torch.random.fork_rng(devices=[]):
            self.model, tokenizer, _ = start_model(self.config, dataset.captions())
        objective = build_objective(self.config, self.model)
        assert isinstance(objective, PostPretraining) and tokenizer is not None
        if experiment.texts is None or arm.dims:  # the same frozen tower for all that do not turn its space
            pooled = encode_texts(self.model, tokenizer(dataset.captions()))
            objective.captions = Captions(len(pooled), pooled.__getitem__, dataset.clips_of_captions)
            if not arm.dims:
                experiment.texts = objective.captions
        else:
            objective.captions = experiment.texts
        pooled_of = objective.captions.pooled
        dataset.stored = ("caption", lambda numbers: pooled_of(numbers).view(torch.uint8))
        self.objective = objective.train()
        self._take_step = OptimizerStep(
            self.objective,
            build_optimizer(objective, self.config.optim),
            _CPU,
            self.config.loop.precision,
            self.config.optim.max_grad_norm,
        )
        self.batches: Iterator[Batch] = iter(TrainLoader(dataset, self.config.loop.global_batch))
        self.done = 0

    def step(self) -> None:
        config, step = self.config, self.done
        self.objective.train()
        self.objective.selection = config.selection_at(step)
        self._take_step(next(self.batches), step, lr=config.lr_at(step))
        self.done += 1


# ---- what is printed ------------------------------------------------------------------------------------------------

_HEADINGS = (
    "seen in training",
    "clips",
    "motion",
    "held-out",
    "appearance",
    "R@1",
    "motion, R@1 at its budget",
)


def _cells(arm: Arm, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    own = [outcome for outcome in outcomes if outcome.arm == arm.name]
    if not own:
        return (arm.name, *[""] * 6)

    def shown(seen: str, name: str) -> str:
        values = [100 * outcome.scores[seen][name] for outcome in own]
        spread = f" ±{statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.1f}{spread}"

    at = "; ".join(
        f"{seen}: {shown(seen, 'motion')}, {shown(seen, 'R@1')}" for seen in own[0].scores if seen != "all"
    )
    return (
        arm.name,
        f"{own[0].clips:,}",
        *(shown("all", name) for name in ("motion", "held-out", "appearance", "R@1")),
        at,
    )


def _over_tokens(outcomes: Sequence[Outcome]) -> str:
    """Motion accuracy, everything seen, over the share seen in training; the mean over seeds."""
    found: dict[str, dict[float, list[float]]] = {}
    for outcome in outcomes:
        if len(outcome.shares) == 1:
            at = found.setdefault(outcome.selector, {}).setdefault(100 * outcome.shares[0], [])
            at.append(100 * outcome.scores["all"]["motion"])
    series = {k: [(x, statistics.mean(ys)) for x, ys in sorted(v.items())] for k, v in found.items()}
    return log_lines(series, x_title="tubelets seen in training, %", y_title="motion choice, % (chance 25)")


def _over_seconds(outcomes: Sequence[Outcome]) -> str:
    """Motion accuracy over processor seconds, at each way's best budget; the mean over seeds."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.arm, []).append(outcome)

    def final(own: list[Outcome]) -> float:
        return statistics.mean(outcome.scores["all"]["motion"] for outcome in own)

    series = {}
    for selector in dict.fromkeys(outcome.selector for outcome in outcomes):
        name, own = max(
            ((n, g) for n, g in groups.items() if g[0].selector == selector), key=lambda item: final(item[1])
        )
        points = zip(*(outcome.curve for outcome in own), strict=True)
        series[name] = [
            (statistics.mean(s for s, _ in point), 100 * statistics.mean(y for _, y in point))
            for point in points
        ]
    return log_lines(series, x_title="processor seconds of training", y_title="motion choice, % (chance 25)")


if __name__ == "__main__":
    main(selectors)
