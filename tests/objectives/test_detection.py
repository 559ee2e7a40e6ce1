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


def test_settings_that_cannot_be() -> None:
    with pytest.raises(HarvestError, match="it must be 0"):
        DetectionConfig(drop_ratio=0.5)
    with pytest.raises(HarvestError, match="not inside the picture"):
        Box((0.5, 0.0, 0.4, 1.0))
    with pytest.raises(HarvestError, match="not inside the picture"):
        Box((0.0, 0.0, 1.2, 1.0))
