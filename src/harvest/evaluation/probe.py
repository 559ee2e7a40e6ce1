"""What does a frozen tower know? A head is trained on its features, which are computed once.

Linear: multinomial logistic regression on a clip's feature, solved to the end; nothing about it is drawn. Attentive:
a learned query over all tokens, trained by AdamW. Few-shot: either on k clips a class, drawn several times.

Shapes: n clips, K tokens, D width, A classes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harvest.data.labels import check_labels
from harvest.data.read_once import clip_numbers, eval_batches
from harvest.evaluation.classification import report, views_said
from harvest.evaluation.embed import evaluating, share_broken, shared
from harvest.evaluation.metrics import choice_credit
from harvest.evaluation.result import Result
from harvest.evaluation.settings import check_counts
from harvest.files import new_file, write_file
from harvest.interfaces import Example, HarvestError, OnProgress, VideoFeatures
from harvest.model.folder import digest_of
from harvest.model.heads import AttentiveHead, HeadConfig
from harvest.model.video_text import VideoTextModel
from harvest.parallel import Precision, generator_for, world_rank_size

Kind = Literal["linear", "attentive"]
PENALTIES = tuple(10.0**power for power in range(-5, 2))


@dataclass(frozen=True)
class Features:
    """Features of the distinct clips of a list of examples, from memory or from a file."""

    values: Tensor  # fp16 [n, D], or [n, K, D]
    row: Tensor  # int64 [len(examples)]: the row of `values` of each example, -1 where its video is broken
    broken: dict[str, str]


def probe(
    model: VideoTextModel,
    train: Sequence[Example],
    test: Sequence[Example],
    *,
    class_names: Sequence[str],
    kind: Kind = "linear",
    shots: int | None = None,
    draws: int = 5,
    epochs: int = 20,
    lr: float = 1e-3,
    seed: int = 0,
    num_frames: int | None = None,
    batch_size: int = 32,
    precision: Precision = "fp32",
    workers: int = 0,
    cache: Path | None = None,
    progress: OnProgress | None = None,
) -> Result:
    """Train a head on the frozen tower's features of `train` and score it on `test`, one middle view a clip.

    `shots` takes so many clips a class, `draws` times anew; figures are then means over the draws. The penalty of the
    linear probe is the likeliest of `PENALTIES` on a fifth of the training clips (all of them train in the end); with
    fewer than 5 clips a class it is 0.01. `epochs` and `lr` are of the attentive probe. `cache` is a folder in which
    features are kept for the next probe of the same model and clips.
    """
    check_counts(shots=shots, draws=draws, epochs=epochs, num_frames=num_frames, batch_size=batch_size)
    if workers < 0:
        raise HarvestError(f"workers: expected 0 or more, got {workers}")
    for examples in (train, test):
        check_labels(examples, len(class_names))
    if any(e.labels for e in (*train, *test)):
        raise HarvestError("probes tell one class a clip: rows with a list of labels have no place in them")
    both = {(e.video, e.start_s, e.end_s) for e in train} & {(e.video, e.start_s, e.end_s) for e in test}
    if both:
        raise HarvestError(
            f"{len(both)} clips are in the training and in the test set (first: {min(both)[0]}): a probe would know them"
        )
    frames = model.config.video.num_frames if num_frames is None else num_frames
    seen = [
        read_features(
            model,
            examples,
            kind=kind,
            num_frames=frames,
            batch_size=batch_size,
            precision=precision,
            workers=workers,
            cache=cache,
            progress=progress,
        )
        for examples in (train, test)
    ]
    labels = [
        torch.tensor([-1 if e.label is None else e.label for e in examples]) for examples in (train, test)
    ]
    learned = [place for place, row in enumerate(seen[0].row.tolist()) if row >= 0]
    asked = [place for place, row in enumerate(seen[1].row.tolist()) if row >= 0]
    device = model.log_scale.device
    parts = []
    for draw in range(1 if shots is None else draws):
        places = torch.tensor(learned)
        if shots is not None:
            places = places[draw_shots(labels[0][places], shots, len(class_names), generator_for(seed, draw))]
        given = seen[0].values[seen[0].row[places]], labels[0][places]
        if kind == "linear":
            classify = fit_linear(*given, num_classes=len(class_names), seed=seed, device=device)
        else:
            classify = fit_attentive(
                *given,
                names=tuple(class_names),
                num_heads=model.config.video.num_heads,
                epochs=epochs,
                lr=lr,
                seed=seed,
                device=device,
            )
        parts.append(
            torch.cat([classify(block.to(device)).cpu() for block in torch.split(seen[1].values, 256)])
        )
    how = f"{'Logistic regression on the feature' if kind == 'linear' else 'An attentive head on the tokens'} of the frozen"
    how += f" tower, {views_said(frames, 1, 1)}, trained on "
    how += f"{len(learned):,} clips" if shots is None else f"{shots} clips a class, mean of {draws} draws"
    results = [
        report(
            scores,
            seen[1].row,
            test,
            num_classes=len(class_names),
            several=False,
            how=f"{how}; {len(class_names)} classes.",
            broken=seen[1].broken,
            task=f"{kind}_probe",
        )
        for scores in parts
    ]
    first = results[0]
    if shots is None:
        return _with(first, first.metrics, train_missing=len(train) - len(learned))
    metrics = {name: sum(result.metrics[name] for result in results) / draws for name in first.metrics}
    tops = torch.tensor([result.metrics["top1"] for result in results], dtype=torch.float64)
    credit = torch.stack(
        [choice_credit(scores[seen[1].row[asked]], labels[1][asked]) for scores in parts]
    ).mean(dim=0)
    assert abs(float(credit.mean()) - metrics["top1"]) < 1e-9
    metrics |= {"top1_lowest": float(tops.min()), "top1_highest": float(tops.max())}
    return _with(first, metrics, train_missing=len(train) - len(learned), shots=shots, draws=draws)


def _with(result: Result, metrics: Mapping[str, float], **counts: int) -> Result:
    keep = {} if "draws" in counts else dict(result.credits)  # one draw's interval is not that of their mean
    return dataclasses.replace(result, metrics=metrics, credits=keep, counts={**result.counts, **counts})


def draw_shots(label: Tensor, shots: int, num_classes: int, generator: torch.Generator) -> Tensor:
    """Places of `shots` clips of each class, drawn without replacement: int64 `[shots * A]`."""
    chosen = []
    for number in range(num_classes):
        places = (label == number).nonzero()[:, 0]
        if len(places) < shots:
            raise HarvestError(f"class {number} has {len(places)} training clips, {shots} are asked for")
        chosen.append(places[torch.randperm(len(places), generator=generator)[:shots]])
    return torch.cat(chosen)


# ---- features, once ----------------------------------------------------------------------------------------------


def read_features(
    model: VideoTextModel,
    examples: Sequence[Example],
    *,
    kind: Kind,
    num_frames: int,
    batch_size: int,
    precision: Precision,
    workers: int,
    cache: Path | None,
    progress: OnProgress | None,
) -> Features:
    """Decode and encode every distinct clip once, or find it done in `cache`."""
    clip_of = clip_numbers(examples)
    num_clips = int(clip_of.max()) + 1
    path = None if cache is None else cache / f"{_key(model, examples, kind, num_frames, precision)}.npy"
    if path is not None and path.is_file():
        notes = json.loads(path.with_suffix(".json").read_text())
        values = torch.from_numpy(np.load(path, mmap_mode="c"))
        return Features(values, torch.tensor(notes["row"])[clip_of], notes["broken"])
    rows = torch.full((num_clips,), -1)
    broken: dict[str, str] = {}
    clip_at = dict(zip(examples, clip_of.tolist(), strict=True))
    parts: list[Tensor] = []
    done = 0

    def note(example: Example, reason: str) -> None:
        clip = clip_at[example]
        broken.update({e.id: reason for e, c in zip(examples, clip_of.tolist(), strict=True) if c == clip})

    rank, size = world_rank_size()
    read = eval_batches(
        examples,
        num_frames=num_frames,
        image_size=model.config.video.image_size,
        batch_size=batch_size,
        workers=workers,
        rank=rank,
        world=size,
        on_broken=note,
    )

    def encode(numbers: Tensor, video: Tensor) -> tuple[Tensor]:
        with evaluating(model, precision):
            features = model.video_features(video.to(model.log_scale.device))
        return ((features.pooled if kind == "linear" else features.tokens).half(),)

    for numbers, (feature,) in shared(read, encode, device=torch.device("cpu")):
        parts.append(feature.cpu())
        rows[numbers] = torch.arange(done, done + len(numbers))
        done += len(numbers)
        if progress is not None:
            progress(done, num_clips)
    share_broken(broken, examples)
    if not parts:
        name, reason = next(iter(broken.items()))
        raise HarvestError(f"none of the {num_clips} videos could be read; the first, {name!r}: {reason}")
    values = torch.cat(parts)
    if not values.isfinite().all():
        raise HarvestError("the features are not finite in half precision: the model's weights are broken")
    if path is not None and rank == 0:
        _keep(path, values, rows, broken)
    return Features(values, rows[clip_of], broken)


def _key(
    model: VideoTextModel, examples: Sequence[Example], kind: Kind, num_frames: int, precision: Precision
) -> str:
    """A name for the features of these clips by this model: other weights or other files have another."""
    digest = hashlib.sha256(json.dumps([kind, num_frames, precision, repr(model.config.video)]).encode())
    digest.update(digest_of(model.video).encode())
    for example in examples:
        path = Path(example.video)
        size = path.stat().st_size if path.is_file() else -1
        digest.update(json.dumps([example.video, example.start_s, example.end_s, size]).encode())
    return digest.hexdigest()[:24]


def _keep(path: Path, values: Tensor, rows: Tensor, broken: dict[str, str]) -> None:
    try:
        write_file(path.with_suffix(".json"), json.dumps({"row": rows.tolist(), "broken": broken}))
        with new_file(path) as part, part.open("wb") as file:  # last: it says that all the rest is there
            np.save(file, values.numpy(), allow_pickle=False)
    except OSError as error:
        raise HarvestError(f"cannot keep features in {path.parent}: {error}") from error


# ---- heads on features -------------------------------------------------------------------------------------------

Classify = Callable[[Tensor], Tensor]
"""From features `[b, …]` to probabilities `[b, A]`."""


def fit_linear(
    features: Tensor, label: Tensor, *, num_classes: int, seed: int, device: torch.device
) -> Classify:
    """Logistic regression on features `[n, D]`, each entry brought to mean 0 and deviation 1."""
    x = features.float().to(device)
    label = label.to(device)
    mean, deviation = x.mean(dim=0), x.std(dim=0, unbiased=False).clamp(min=1e-6)
    x = (x - mean) / deviation
    penalty = 0.01
    if len(x) >= 5 * num_classes:
        order = torch.randperm(len(x), generator=generator_for(seed)).to(device)
        held, rest = order[: len(x) // 5], order[len(x) // 5 :]
        found = []
        for candidate in PENALTIES:
            weight, bias = _logistic(x[rest], label[rest], num_classes, candidate)
            found.append(float(F.cross_entropy(x[held] @ weight.T + bias, label[held])))
        penalty = PENALTIES[found.index(min(found))]  # by likelihood: a count of hits is coarse on few clips
    weight, bias = _logistic(x, label, num_classes, penalty)
    return lambda rows: (((rows.float() - mean) / deviation) @ weight.T + bias).softmax(dim=-1)


def _logistic(x: Tensor, label: Tensor, num_classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    """Minimise mean cross-entropy + penalty / 2 * |weights|^2, which has one minimum, by L-BFGS."""
    weight = torch.zeros(num_classes, x.shape[1], device=x.device, requires_grad=True)
    bias = torch.zeros(num_classes, device=x.device, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=500,
        tolerance_grad=1e-6,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(x @ weight.T + bias, label) + penalty / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    solver.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def fit_attentive(
    tokens: Tensor,
    label: Tensor,
    *,
    names: tuple[str, ...],
    num_heads: int,
    epochs: int,
    lr: float,
    seed: int,
    device: torch.device,
    batch_size: int = 64,
) -> Classify:
    """An `AttentiveHead` on tokens `[n, K, D]`: AdamW, cosine to 0, weight decay 0.01."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = AttentiveHead(HeadConfig("attentive", names, tokens.shape[-1], num_heads=num_heads))
    head = head.to(device).train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=0.01)
    steps = epochs * -(-len(tokens) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(epochs):
        order = torch.randperm(len(tokens), generator=generator_for(seed, epoch))
        for places in torch.split(order, batch_size):
            scores = head(_features(tokens[places].to(device)))
            loss = F.cross_entropy(scores, label[places].to(device))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
    head.eval()

    def classify(rows: Tensor) -> Tensor:
        with torch.inference_mode():
            return head(_features(rows)).softmax(dim=-1)

    return classify


def _features(tokens: Tensor) -> VideoFeatures:
    return VideoFeatures(tokens.float(), torch.empty(0))
