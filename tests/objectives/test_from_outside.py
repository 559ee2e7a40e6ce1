"""What it takes to add an objective or a selector, counted: the table in docs/architecture.md must stay true."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Union, get_args, get_type_hints

import pytest
import safetensors.torch
import torch
from torch import nn

import harvest
from harvest import config as config_module
from harvest.config import RunConfig, read_config
from harvest.interfaces import Batch, HarvestError, Losses
from harvest.model.video_text import VideoTextModel
from harvest.objectives import OBJECTIVES
from harvest.objectives.contract import Given, Needs
from harvest.objectives.reach import freeze_unreached
from harvest.ranges import Range
from harvest.tokens import SELECTORS, Selection, choose
from harvest.tokens.selectors import Request, SelectorKind
from harvest.training.loop import train
from harvest.training.step import OptimizerStep

SOURCE = Path(harvest.__file__).parent


def files_that_say(pattern: str) -> set[str]:
    """The files of the package, relative to it, in which a pattern occurs."""
    files = SOURCE.rglob("*.py")
    return {str(f.relative_to(SOURCE)) for f in files if re.search(pattern, f.read_text(encoding="utf-8"))}


@dataclass(frozen=True)
class LengthConfig(Selection):
    """Embeddings whose first entry is as large as it can be: an objective that the package knows nothing of."""

    wanted: Annotated[float, Range(least=-1, most=1)] = 1.0

    @property
    def needs(self) -> Needs:
        return Needs(self)

    def build(self, run: RunConfig, model: VideoTextModel, given: Given) -> nn.Module:
        return Length(self, model, seed=run.loop.seed)


class Length(nn.Module):
    def __init__(self, config: LengthConfig, model: VideoTextModel, *, seed: int) -> None:
        super().__init__()
        self.config, self.model, self.seed = config, model, seed
        self.selection: Selection = config
        freeze_unreached(self)

    def forward(self, batch: Batch, step: int) -> Losses:
        grid, generator = self.model.grid(batch.video), torch.Generator().manual_seed(step)
        keep = choose(self.selection, batch.video, grid, generator=generator)
        first = self.model.encode_video(batch.video, keep).pooled[:, 0]
        loss = (first - self.config.wanted).square().mean()
        return Losses(loss, {"first": first.mean().detach()})


def test_an_objective_is_its_file_and_its_place_in_the_tuple(
    runs: Path, tiny_run: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The one file of the package that is touched: `config` reads the tuple when it is imported.
    monkeypatch.setattr(config_module, "ObjectiveConfig", Union[(*OBJECTIVES, LengthConfig)])
    objective = LengthConfig(drop_ratio=0.5, wanted=0.5)
    loop = {"steps": 8, "save_every": 4}
    config = tiny_run("mini-harvest", loop=loop, tuning={"steps": 0}, optim={"lr": 1e-3})
    config = dataclasses.replace(config, recipe="length", objective=objective)
    run = runs / "length"
    train(config, run)
    assert read_config(run / "config.json") == config
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"] and lines[-1]["first"] > lines[0]["first"]
    moments = safetensors.torch.load_file(run / "checkpoints" / "step-00000008" / "moments.safetensors")
    assert moments and not any(name.startswith("model.text.") for name in moments)  # no loss reaches it
    with pytest.raises(HarvestError, match=r"objective\.wanted: expected at least -1 and at most 1, got 2"):
        LengthConfig(wanted=2.0)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective.__name__)
def test_no_file_asks_which_objective_it_is(objective: type) -> None:
    """Besides its own file an objective is named in the tuple and by recipes; what counts its work may name it."""
    named = files_that_say(rf"\b{objective.__name__}\b")
    own = f"{objective.__module__.removeprefix('harvest.').replace('.', '/')}.py"
    rest = {name for name in named - {own, "objectives/__init__.py"} if not name.startswith("recipes/")}
    may = {f"bench/{name}.py" for name in ("gpu", "host", "plan", "step", "umt", "work")}
    if objective.__name__ == "MaskedAlignmentConfig":
        may |= {"objectives/multimodal.py"}  # which is one, and more
    assert rest <= may


def test_one_optimizer_step_is_written_once() -> None:
    """Besides it there are a probe on features that are cached, and the short stage on texts before a run."""
    others = {"evaluation/probe.py", "objectives/text_tuning.py"}
    assert files_that_say(r"\.backward\(\)") == {"training/step.py", *others}
    assert OptimizerStep.__module__ == "harvest.training.step"


def test_the_loop_is_read_in_one_sitting() -> None:
    assert len((SOURCE / "training" / "loop.py").read_text().splitlines()) <= 200


# ---- a selector --------------------------------------------------------------------------------------------------


def last_tubelets(asked: Request) -> torch.Tensor:
    N = asked.grid.num_tubelets
    return torch.arange(N - asked.budget, N).expand(len(asked.video), -1)


def test_a_selector_is_a_function_and_a_line_of_a_table(
    runs: Path, tiny_run: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SELECTORS, "last", SelectorKind(last_tubelets, "those at the end"))
    config = tiny_run(
        "mini-harvest", loop={"steps": 2}, tuning={"steps": 1, "selector": "last", "drop_ratio": 0.5}
    )
    config = dataclasses.replace(config, objective=dataclasses.replace(config.objective, selector="last"))
    assert config.selection_at(0).selector == config.selection_at(2).selector == "last"
    train(config, runs / "last-tubelets")
    assert (runs / "last-tubelets" / "model" / "config.json").is_file()


def test_every_option_of_a_selector_is_the_table_s() -> None:
    assert get_args(get_type_hints(Selection)["selector"]) == tuple(SELECTORS)
    assert files_that_say(r"Literal\[\"random\", \"tube\"") == {"plain_types.py"}
