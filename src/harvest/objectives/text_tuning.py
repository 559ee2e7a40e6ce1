"""A short stage on texts alone, before a run: the text tower learns to tell a caption from what a rule makes false.

Image-text models hardly tell "A, then B" from "B, then A", and a video tower cannot learn from a frozen text tower what
that does not say. The last blocks and the projection are trained on captions for which a rule knows a hard negative
(`tokens.hard_negatives`): another caption of the same clip, or the same one, is found among those of other clips and
beside the negative. Whatever else the tower says stays where it was: embeddings of other captions, and the middle
between a caption and its negative, are held to those of before. Videos are not read.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from harvest.files import new_file
from harvest.interfaces import HarvestError
from harvest.model.text_encoder import TextEncoder
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_text import VideoTextModel
from harvest.objectives.contract import Ready
from harvest.objectives.losses import contrastive_rows
from harvest.objectives.text_store import digest_of_tower
from harvest.parallel import barrier, sync_errors
from harvest.progress import bar, say
from harvest.ranges import Range, check_ranges
from harvest.tokens.hard_negatives import Rule, false_sentences

MOST_READ = 2**18
"""Captions that are searched for rules, in runs of neighbours spread over the data set."""
_RUN = 256


@dataclass(frozen=True)
class TextTuningConfig:
    steps: Annotated[int, Range(least=0)] = 0
    """0: the text tower is left as it is."""
    rules: tuple[Rule, ...] = ("order",)
    """What the negatives change of a caption."""
    captions: Annotated[int, Range(least=2)] = 32
    """Captions with a negative in a step; as many without one are held in place."""
    lr: Annotated[float, Range(above=0)] = 1e-5
    blocks: Annotated[int, Range(least=0)] = 2
    """How many of the last blocks are trained, with the last norm and the projection; 0: these alone."""
    temperature: Annotated[float, Range(above=0)] = 0.07
    hold: Annotated[float, Range(least=0)] = 1.5
    """Weight of what is to stay: mean 1 - cosine to the embeddings of before."""

    def __post_init__(self) -> None:
        check_ranges(self, "objective.text_tuning")
        if self.steps and not self.rules:
            raise HarvestError("objective.text_tuning.rules is empty: give at least one, such as order")


class Sentences(NamedTuple):
    """Captions of a data set, by what a rule knows of them."""

    with_negative: list[list[tuple[str, list[str]]]]
    """Of each clip its captions and the negatives of each."""
    others: list[str]


def tune_text_tower(model: VideoTextModel, config: TextTuningConfig, ready: Ready, folder: Path) -> None:
    """Tune the model's text tower in place, once for all ranks.

    The weights are kept in `folder`, named by what they were made from, for later runs and for a run that goes on.
    Where the rules know no negative of two clips' captions, the tower is left as it is, and that is said.
    """
    if ready.tokenizer is None:
        raise HarvestError("objective.text_tuning: the model has no text tower")
    seed, tower = ready.run.loop.seed, model.text
    made_of = [digest_of_tower(model, ready.tokenizer), ready.dataset.captions_digest(), asdict(config), seed]
    name = hashlib.blake2b(json.dumps(made_of).encode(), digest_size=8).hexdigest()
    path = folder / f"text-tower-{name}.safetensors"
    with sync_errors():
        if ready.here.is_main and not path.exists():
            sentences = _sentences(ready, config.rules)
            if len(sentences.with_negative) > 1:
                tuned = tune(tower, ready.tokenizer, sentences, config, seed=seed)
                folder.mkdir(parents=True, exist_ok=True)
                with new_file(path) as part:
                    save_file({key: tensor.cpu().contiguous() for key, tensor in tuned.items()}, part)
                    part.chmod(0o644)  # safetensors writes for the owner alone
            else:
                say(
                    f"text tower: left as it is, since no caption changes by the rules {', '.join(config.rules)}"
                )
    barrier()
    if path.exists():
        tower.load_state_dict(load_file(path))
        if ready.image_model is not None:  # which may be blended in at the end
            ready.image_model.text.load_state_dict(tower.state_dict())


def tune(
    tower: TextEncoder, tokenizer: Tokenizer, sentences: Sentences, config: TextTuningConfig, *, seed: int
) -> dict[str, Tensor]:
    """The weights of a tuned copy of the tower, computed in fp32; a function of the seed."""
    new = copy.deepcopy(tower).requires_grad_(False).eval()
    trained = [*new.blocks[max(0, len(new.blocks) - config.blocks) :], new.norm_post, new.projection]
    parameters = [weight.requires_grad_() for module in trained for weight in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0)
    device = next(tower.parameters()).device
    draws = _draws(sentences, config, np.random.default_rng(seed))
    told = 0.0
    with bar("tuning the text tower") as progress, torch.enable_grad():
        for step in range(config.steps):
            ids = tokenizer(next(draws)).to(device)
            with torch.no_grad():
                before = tower(ids).pooled
            loss, right = _loss(new(ids).pooled, before, config)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 1.0)
            warm = min(1.0, (step + 1) / max(1, config.steps // 10))
            for group in optimizer.param_groups:
                group["lr"] = config.lr * warm * (1 + math.cos(math.pi * step / config.steps)) / 2
            optimizer.step()
            told = 0.9 * told + 0.1 * float(right) if step else float(right)
            progress(step + 1, config.steps)
    say(f"text tower: {told:.0%} of captions are nearer to another of their clip than their negative is")
    return new.state_dict()


def _loss(now: Tensor, before: Tensor, config: TextTuningConfig) -> tuple[Tensor, Tensor]:
    """The loss, and the share of captions that are told from their negative; rows `first, second, negative, other`."""
    first, second, negative, other = now.chunk(4)
    n = torch.arange(len(first), device=now.device)
    own = (second * negative).sum(dim=1, keepdim=True)
    cosines = torch.cat([second @ first.T, own], dim=1)
    parts = contrastive_rows(cosines / config.temperature, n, torch.cat([n, n.new_full((1,), -1)])).mean()
    _, second_before, negative_before, other_before = before.chunk(4)
    middle = F.cosine_similarity(second + negative, second_before + negative_before)
    stays = 2 - (other * other_before).sum(dim=1).mean() - middle.mean()
    return parts + config.hold * stays, ((second * first).sum(dim=1) > own[:, 0]).float().mean()


def _draws(sentences: Sentences, config: TextTuningConfig, rng: np.random.Generator) -> Iterator[list[str]]:
    """Endless steps of texts: first captions of some clips, second ones, negatives of these, and other captions."""
    clips, others = sentences
    size = min(config.captions, len(clips))
    while True:
        rows = []
        for number in rng.choice(len(clips), size, replace=False):
            captions = clips[number]
            order = rng.permutation(len(captions))
            text, negatives = captions[order[0]]
            rows.append((captions[order[-1]][0], text, negatives[int(rng.integers(len(negatives)))]))
        firsts, seconds, negatives = zip(*rows, strict=True)
        rest = [others[number] for number in rng.integers(len(others), size=size)]
        yield [*firsts, *seconds, *negatives, *rest]


def _sentences(ready: Ready, rules: tuple[Rule, ...]) -> Sentences:
    """The captions of the run's data set, at most about `MOST_READ` of them."""
    dataset = ready.dataset
    clips: dict[int, list[tuple[str, list[str]]]] = {}
    others: list[str] = []
    num = dataset.num_captions
    for start in range(0, num, max(_RUN, num * _RUN // MOST_READ)):
        numbers = range(start, min(start + _RUN, num))
        owners = dataset.clips_of_captions(torch.tensor(numbers)).tolist()
        for owner, text in zip(owners, dataset.captions(numbers), strict=True):
            if negatives := false_sentences(text, rules=rules):
                clips.setdefault(owner, []).append((text, negatives))
            else:
                others.append(text)
    return Sentences([*clips.values()], others or [""])
