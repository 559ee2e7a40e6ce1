from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from small import small_batch, small_model

from harvest.interfaces import Box, Example, HarvestError
from harvest.model.regions import region_features
from harvest.objectives.detection import BoxTable, Detection, DetectionConfig, mirror

NAMES = ("stands", "sits", "talks")
PLAIN = DetectionConfig(flip=False, drop_path=0.0)
CLIPS = [
    Example("a", "a.mp4", boxes=(Box((0.1, 0.1, 0.5, 0.9), (0, 2)), Box((0.5, 0.2, 0.9, 0.8), (1,)))),
    Example("b", "b.mp4", boxes=(Box((0.0, 0.0, 1.0, 1.0), ()),)),
    Example("c", "c.mp4", boxes=(Box((0.3, 0.3, 0.6, 0.6), (2,)),)),
]


def objective(**changes: object) -> Detection:
    torch.manual_seed(0)
    config = dataclasses.replace(PLAIN, **changes)
    return Detection(config, small_model(fusion=False), NAMES, CLIPS, seed=5)


def batch():
    return small_batch(4)._replace(example=torch.tensor([2, 0, 0, 1]))


def test_a_table_gives_the_boxes_of_a_batch() -> None:
    boxes, actions, owner = BoxTable(CLIPS, 3).of(torch.tensor([2, 0, 1]))
    assert owner.tolist() == [0, 1, 1, 2]
    assert actions.tolist() == [[0, 0, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]]
    torch.testing.assert_close(boxes[1], torch.tensor([0.1, 0.1, 0.5, 0.9]))


def test_the_loss_is_a_yes_or_no_for_every_action_of_every_box() -> None:
    one = objective().train()
    losses = one(batch(), 0)
    boxes, actions, owner = one.table.of(batch().example)
    tokens = one.model.video.features(batch().video).tokens
    scores = one.head(region_features(tokens, 16, boxes, owner))
    torch.testing.assert_close(losses.total, F.binary_cross_entropy_with_logits(scores, actions.float()))
    losses.total.backward()
    training = {name for name, p in one.named_parameters() if p.requires_grad}
    assert training == {name for name, p in one.named_parameters() if p.grad is not None}
    assert not any(name.startswith("table.") for name in one.state_dict())


def test_mirrored_clips_have_mirrored_boxes() -> None:
    boxes = torch.tensor([[0.1, 0.2, 0.4, 0.9]])
    assert mirror(boxes)[0].tolist() == pytest.approx([0.6, 0.2, 0.9, 0.9])
    torch.testing.assert_close(mirror(mirror(boxes)), boxes)
    one = objective(flip=True).train()
    seen = []
    forward = one.model.video.features
    one.model.video.features = lambda video, *a, **k: seen.append(video) or forward(video, *a, **k)
    for step in range(6):
        one(batch(), step)
    plain = batch().video
    flips = [[v.equal(p.flip(-1)) for v, p in zip(video, plain, strict=True)] for video in seen]
    assert {True, False} == {f for row in flips for f in row}
    assert one(batch(), 2).total.equal(one(batch(), 2).total)
    seen.clear()
    one.sided = list(range(len(one.head.config.names)))  # every action says left or right
    for step in range(6):
        one(batch(), step)
    flips = [[v.equal(p.flip(-1)) for v, p in zip(video, plain, strict=True)] for video in seen]
    assert {row[3] for row in flips} == {True, False}  # of a clip without actions
    assert not any(any(row[:3]) for row in flips)


def test_settings_that_cannot_be() -> None:
    with pytest.raises(HarvestError, match="it must be 0"):
        DetectionConfig(drop_ratio=0.5)
    with pytest.raises(HarvestError, match="not inside the picture"):
        Box((0.5, 0.0, 0.4, 1.0))
    with pytest.raises(HarvestError, match="not inside the picture"):
        Box((0.0, 0.0, 1.2, 1.0))


def test_it_learns_what_is_done_where() -> None:
    """Two boxes a clip, one of them bright: what the box says must come from where the box is."""
    generator = torch.Generator().manual_seed(0)
    sides = ((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0))
    bright = torch.randint(2, (16,), generator=generator).tolist()
    clips = [
        Example(str(n), f"{n}.mp4", boxes=tuple(Box(s, (int(half == side),)) for half, s in enumerate(sides)))
        for n, side in enumerate(bright)
    ]
    video = torch.randint(100, (16, 4, 3, 16, 16), generator=generator, dtype=torch.uint8)
    for n, side in enumerate(bright):
        video[n, ..., 8 * side : 8 * side + 8] += 120
    torch.manual_seed(0)
    one = Detection(PLAIN, small_model(fusion=False), ("is dark", "is bright"), clips, seed=0).train()
    rows = small_batch(16)._replace(video=video, example=torch.arange(16))
    optimizer = torch.optim.AdamW([p for p in one.parameters() if p.requires_grad], lr=3e-3)
    for step in range(60):
        loss = one(rows, step).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(loss.detach()) < 0.15
    boxes, actions, owner = one.table.of(rows.example)
    tokens = one.model.video.features(video).tokens
    said = one.head(region_features(tokens, 16, boxes, owner)).argmax(dim=1)
    assert (said == actions.argmax(dim=1)).float().mean() > 0.95
