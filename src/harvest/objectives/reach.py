"""What trains is what the losses reach: found by one small forward pass, not by lists of names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harvest.interfaces import Batch
from harvest.model.video_encoder import VideoEncoderConfig
from harvest.model.video_text import ModelConfig
from harvest.parallel import alone
from harvest.tokens import Selection


def freeze_unreached(
    objective: Any, *, hides_words: bool | None = None, asks: bool = False, stored: int = 0
) -> None:
    """Take `requires_grad` from every parameter that no loss of the objective reaches.

    Such a parameter never gets a gradient: DDP would wait for it, and the optimizer would keep room for it. Two clips
    of noise, two times long and half seen, go forward; gradients are not computed. The vector of a hidden word, which is
    new even where a text tower is frozen, trains where the objective `hides_words` (None: as the tower); texts are
    questions with a hidden word where it `asks`; each clip has a row of `stored` bytes. The caller has already frozen what
    is reached and is not to train.
    """
    model = objective.model
    batch = random_batch(model.config, 2, 8, torch.device("cpu"), captions=2)
    batch = batch._replace(
        video=batch.video[:, : 2 * model.config.video.tubelet_size],
        example=torch.zeros(2, dtype=torch.int64),
        label=torch.zeros(2, dtype=torch.int64),
        stored=torch.zeros(2, stored, dtype=torch.uint8) if stored else batch.stored,
    )
    has_text = model.config.text is not None
    if hides_words is not None and has_text and model.text.mask_embedding is not None:
        model.text.mask_embedding.requires_grad_(hides_words)
    if asks:
        batch.text_ids[..., 3] = model.mask_id
    selection = getattr(objective, "selection", None)
    objective.selection = Selection(drop_ratio=0.5)
    teacher = getattr(getattr(objective, "teaching", None), "teacher", None)
    halves = {torch.float32} if teacher is None else {p.dtype for p in teacher.parameters()}
    half = next((dtype for dtype in halves if dtype.itemsize == 2), None)
    mixed = torch.autocast("cpu", dtype=half, enabled=half is not None)  # else fp32, which every CPU has
    with alone(), torch.random.fork_rng(devices=[]), mixed:
        total: Tensor = objective(batch, 0).total
    objective.selection = selection
    reached, seen, waiting = set(), set(), [total.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        reached.add(id(getattr(node, "variable", None)))
        waiting += [following for following, _ in node.next_functions]
    for parameter in objective.parameters():
        if id(parameter) not in reached:
            parameter.requires_grad_(False)


def random_batch(
    config: ModelConfig, batch: int, words: int, device: torch.device, *, captions: int = 1
) -> Batch:
    """Clips of noise, captions of random words whose lengths end at `words`, padded as a tokenizer would.

    A model without a text tower gets texts of zeros.
    """
    generator = torch.Generator().manual_seed(0)
    video, text = config.video, config.text
    if text is None:
        ids = torch.zeros(batch, captions, words, dtype=torch.int64)
    else:
        specials = 3 if text.start_id == 0 else 0
        ids = torch.full((batch, captions, text.context_length), text.pad_id)
        end_id = text.end_id if text.end_id is not None else text.pad_id
        most = min(text.vocab_size, end_id if end_id > specials else text.vocab_size)
        ids[..., :words] = torch.randint(
            specials, most - 2 if not specials else most, (batch, captions, words), generator=generator
        )
        ids[..., 0] = text.start_id if text.start_id is not None else 0
        ids[..., words - 1] = end_id
    return Batch(
        video=_noise(video, batch, generator).to(device),
        text_ids=ids.to(device),
        example=torch.arange(batch, device=device),
        caption=torch.arange(batch * captions, device=device).view(batch, captions),
        label=torch.full((batch,), -1, device=device),
    )


def _noise(video: VideoEncoderConfig, batch: int, generator: torch.Generator) -> Tensor:
    shape = (batch, video.num_frames, 3, video.image_size, video.image_size)
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8)
