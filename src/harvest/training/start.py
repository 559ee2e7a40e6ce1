"""What a run trains: the model it starts from, and the objective around it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from harvest.model.adaptation import adapt
from harvest.model.importing.sources import find_model
from harvest.model.video_text import VideoTextModel
from harvest.objectives.contract import Given
from harvest.objectives.starting import Started, seeded
from harvest.training.checkpoint import newest_weights

if TYPE_CHECKING:
    from harvest.config import RunConfig


def needs_captions(config: RunConfig) -> bool:
    """Whether a run's captions say how its model starts: a vocabulary is learned from them, or the shared space turned."""
    start = config.start
    return start.scratch is not None or start.text == "scratch" or config.objective.needs.captions


def start_model(config: RunConfig, captions: list[str]) -> Started:
    """The model that `config.start` names, its tokenizer (None without a text tower), and the image model it was made
    from (None if from none)."""
    return config.objective.needs.start(config, captions)


def build_objective(config: RunConfig, model: VideoTextModel, given: Given | None = None) -> nn.Module:
    """The module that trains `model`, or of its towers what `config.adapt` says, with its teacher where it has one."""

    def earlier() -> Mapping[str, Tensor]:
        run = find_model(config.start.model).parent
        return newest_weights(run) if (run / "checkpoints").is_dir() else {}

    with seeded(config):
        made = config.objective.build(config, model, (given or Given())._replace(earlier=earlier))
    with seeded(config):
        adapt(model, config.adapt)
    return made
