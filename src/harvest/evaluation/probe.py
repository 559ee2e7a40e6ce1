"""What does a frozen tower know? A head is trained on its features, which are computed once.

Linear: multinomial logistic regression on a clip's feature, solved to the end; nothing about it is drawn. Attentive:
a learned query over all tokens, trained by AdamW. Few-shot: either on k clips a class, drawn several times.

Shapes: n clips, K tokens, D width, A classes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harvest.data.labels import check_labels
from harvest.data.read_once import clip_numbers
from harvest.evaluation.clips import Collected, ReadSettings, Rows, collect
from harvest.evaluation.metrics import choice_credit
from harvest.evaluation.result import Result
from harvest.evaluation.tasks.classification import report, views_said
from harvest.files import new_file, write_file
from harvest.interfaces import Example, HarvestError, OnProgress, VideoFeatures
from harvest.model.folder import digest_of
from harvest.model.heads import AttentiveHead, HeadConfig
from harvest.model.video_text import VideoTextModel
from harvest.parallel import Precision, generator_for, world_rank_size
from harvest.ranges import Range, check_ranges
from harvest.settings import read_settings

Kind = Literal["linear", "attentive"]
PENALTIES = tuple(10.0**power for power in range(-5, 2))


@dataclass(frozen=True)
class ProbeConfig:
    """What is trained on the frozen features, on how many clips, and how these are read."""

    kind: Kind = "linear"
    """linear: logistic regression on a clip's feature. attentive: a learned query over all tokens."""
    shots: Annotated[int | None, Range(least=1)] = None
    """Learn from this many clips of each class; the figures are means over draws."""
    draws: Annotated[int, Range(least=1)] = 5
    """Times that these clips are drawn."""
    epochs: Annotated[int, Range(least=1)] = 20
    """Of the attentive probe."""
    lr: Annotated[float, Range(above=0)] = 1e-3
    """Of the attentive probe."""
    seed: int = 0
    num_frames: Annotated[int | None, Range(least=1)] = None
    """Frames per clip; without it the model's own number."""
    batch_size: Annotated[int, Range(least=1)] = 32
    """Clips encoded at once."""
    precision: Precision = "fp32"
    workers: Annotated[int, Range(least=0)] = 0
    """Processes that decode; with 0 this one does."""
    cache: Path | None = None
    """Folder in which features are kept for the next probe of the same model and clips."""

    def __post_init__(self) -> None:
        check_ranges(self)


def probe(
    model: VideoTextModel,
    train: Sequence[Example],
    test: Sequence[Example],
    *,
    class_names: Sequence[str],
    config: ProbeConfig | None = None,
    progress: OnProgress | None = None,
) -> Result:
    """Train a head on the frozen tower's features of `train` and score it on `test`, one middle view a clip.

    The penalty of the linear probe is the likeliest of `PENALTIES` on a fifth of the training clips (all of them train
    in the end); with fewer than 5 clips a class it is 0.01.
    """
    config = config or ProbeConfig()
    _check_sets(train, test, num_classes=len(class_names))
    frames = model.config.video.num_frames if config.num_frames is None else config.num_frames
    reading = ReadSettings(
        frames,
        batch_size=config.batch_size,
        precision=config.precision,
        workers=config.workers,
        progress=progress,
    )
    learned, asked = (
        read_features(model, examples, kind=config.kind, reading=reading, cache=config.cache)
        for examples in (train, test)
    )
    labels, test_labels = (
        torch.tensor([-1 if e.label is None else e.label for e in examples]) for examples in (train, test)
    )
    parts = [
        torch.cat(
            [classify(block.to(model.log_scale.device)).cpu() for block in torch.split(asked.parts[0], 256)]
        )
        for classify in _classifiers(model, config, class_names, learned, labels)
    ]
    what = (
        "Logistic regression on the feature" if config.kind == "linear" else "An attentive head on the tokens"
    )
    num = len(learned.asked)
    of = (
        f"{num:,} clips"
        if config.shots is None
        else f"{config.shots} clips a class, mean of {config.draws} draws"
    )
    how = f"{what} of the frozen tower, {views_said(frames, 1, 1)}, trained on {of}; {len(class_names)} classes."
    results = [
        report(
            scores,
            asked.row,
            test,
            num_classes=len(class_names),
            several=False,
            how=how,
            broken=asked.broken,
            task=f"{config.kind}_probe",
            scored_by=f"{config.kind} probe",
        )
        for scores in parts
    ]
    first = results[0]
    counts = {"train_missing": len(train) - num, "rows": len(test), "rows_scored": len(asked.asked)}
    if config.shots is None:
        return _with(first, first.metrics, **counts)
    metrics = {name: sum(result.metrics[name] for result in results) / config.draws for name in first.metrics}
    tops = torch.tensor([result.metrics["top1"] for result in results], dtype=torch.float64)
    credit = torch.stack(
        [choice_credit(scores[asked.row[asked.asked]], test_labels[asked.asked]) for scores in parts]
    ).mean(dim=0)
    assert abs(float(credit.mean()) - metrics["top1"]) < 1e-9
    metrics |= {"top1_lowest": float(tops.min()), "top1_highest": float(tops.max())}
    return _with(first, metrics, **counts, shots=config.shots, draws=config.draws)


def _classifiers(
    model: VideoTextModel, config: ProbeConfig, class_names: Sequence[str], learned: Collected, labels: Tensor
) -> Iterator[Classify]:
    """A head trained on the features of each draw of clips; one on all of them where none are drawn."""
    device = model.log_scale.device
    for draw in range(1 if config.shots is None else config.draws):
        places = torch.tensor(learned.asked)
        if config.shots is not None:
            generator = generator_for(config.seed, draw)
            places = places[draw_shots(labels[places], config.shots, len(class_names), generator)]
        given = learned.parts[0][learned.row[places]], labels[places]
        if config.kind == "linear":
            yield fit_linear(*given, num_classes=len(class_names), seed=config.seed, device=device)
            continue
        yield fit_attentive(
            *given,
            names=tuple(class_names),
            num_heads=model.config.video.num_heads,
            epochs=config.epochs,
            lr=config.lr,
            seed=config.seed,
            device=device,
        )


def _check_sets(train: Sequence[Example], test: Sequence[Example], *, num_classes: int) -> None:
    for examples in (train, test):
        check_labels(examples, num_classes)
    if any(e.labels for e in (*train, *test)):
        raise HarvestError("probes tell one class a clip: rows with a list of labels have no place in them")
    both = {(e.video, e.start_s, e.end_s) for e in train} & {(e.video, e.start_s, e.end_s) for e in test}
    if both:
        raise HarvestError(
            f"{len(both)} clips are in the training and in the test set (first: {min(both)[0]}): a probe would know them"
        )


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


class _Notes(NamedTuple):
    """What lies beside stored features."""

    row: list[int]
    broken: dict[str, str]


def read_features(
    model: VideoTextModel,
    examples: Sequence[Example],
    *,
    kind: Kind,
    reading: ReadSettings,
    cache: Path | None,
) -> Collected:
    """Features fp16 `[n, D]`, or `[n, K, D]` of an attentive probe, of every distinct clip, once, or as `cache` has them."""
    path = None
    if cache is not None:
        path = cache / f"{_key(model, examples, kind, reading.num_frames, reading.precision)}.npy"
    clip_of = clip_numbers(examples)
    if path is not None and path.is_file():
        notes: _Notes = read_settings(_Notes, path.with_suffix(".json"))
        try:
            values = torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
        except (OSError, ValueError) as error:
            raise HarvestError(f"{path} cannot be read: {error}. Remove it: it is made anew") from error
        row = torch.tensor(notes.row)[clip_of]
        return Collected((values,), row, torch.empty(0, dtype=torch.int64), notes.broken)

    def encode(rows: Rows, video: Tensor) -> tuple[Tensor]:
        features = model.video_features(video)
        return ((features.pooled if kind == "linear" else features.tokens).half(),)

    found = collect(model, examples, encode, reading)
    if path is not None and world_rank_size()[0] == 0:
        row = torch.full((int(clip_of.max()) + 1,), -1)
        row[clip_of] = found.row
        _keep(path, found.parts[0], row, found.broken)
    return found


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
