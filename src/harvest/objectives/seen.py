"""What a training step sees of a batch: the preamble that objectives share.

Everything is drawn from generators that are functions of (seed, step, rank), so that a resumed run repeats it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from harvest.interfaces import Kept
from harvest.model.video_text import VideoTextModel, own_attention
from harvest.parallel import generator_for, seed_for, send, world_rank_size
from harvest.tokens import Selection, choose, choose_equally


def step_generator(seed: int, step: int, *, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator of this rank's draws in a step, on a device; on the CPU where kernels are to be deterministic, so
    that the same is drawn on every device."""
    if torch.are_deterministic_algorithms_enabled():
        device = "cpu"
    return generator_for(seed, step, world_rank_size()[0], device=device)


def step_seed(seed: int, step: int) -> int:
    """The seed of this rank's draws in a step, for what takes no generator."""
    return seed_for(seed, step, world_rank_size()[0])


def choose_seen(
    model: VideoTextModel, selection: Selection, video: Tensor, *, generator: torch.Generator
) -> Kept:
    """The tubelets of clips that a step sees. The selector "attention" follows the attention of the model itself."""
    return choose(
        selection,
        video,
        model.grid(video),
        generator=generator,
        attention_fn=lambda: own_attention(model, video),
    )


def drop_path_of(
    model: VideoTextModel, video: Tensor, *, rate: float, is_training: bool, generator: torch.Generator
) -> Tensor | None:
    """Stochastic depth of the video tower for a batch, `[depth, 2, B]` on its device; None where there is none."""
    if not is_training or rate == 0:
        return None
    scale = draw_drop_path_scale(model.config.video.depth, len(video), rate=rate, generator=generator)
    return send(scale, video.device)


def draw_drop_path_scale(depth: int, num_clips: int, *, rate: float, generator: torch.Generator) -> Tensor:
    """Stochastic depth as `drop_path_scale` `[depth, 2, num_clips]`: 0 where a branch is left out, else 1 / its chance."""
    device = generator.device
    chances = 1 - torch.linspace(0, rate, depth, device=device)[:, None, None]
    return (torch.rand(depth, 2, num_clips, generator=generator, device=device) < chances) / chances


@contextmanager
def seeded_dropout(seed: int) -> Iterator[None]:
    """Dropout draws from PyTorch's global generators: seed them for a step, and leave them as they were."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def check_seen(
    selection: Selection,
    model: VideoTextModel,
    video: Tensor,
    *,
    attention: bool | None = None,
    equally: bool = False,
) -> Kept:
    """What is chosen of `video`, black clips; HarvestError where a selection asks for what is not there.

    `attention` says whether somebody tells where to look, None: the model where it can. `equally` many tubelets of
    every clip may be needed.
    """
    grid, tower = model.grid(video), model.config.video
    if attention is None:  # `own_attention`
        attention = tower.prefix != "none" or tower.pooling == "attention"
    return (choose_equally if equally else choose)(
        selection,
        video,
        grid,
        generator=torch.Generator(),
        attention_fn=lambda: torch.ones(1, grid.num_tubelets) if attention else None,
    )
