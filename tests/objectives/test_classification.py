from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import small_batch, small_model

from harvest.interfaces import HarvestError
from harvest.objectives.classification import (
    Classification,
    ClassificationConfig,
    Mix,
    apply_mix,
    draw_mix,
    erase,
    targets,
)
from harvest.parallel import World
from harvest.recipes import tiny
from harvest.training.prepare import prepare

PLAIN = ClassificationConfig(mixup=0.0, cutmix=0.0, random_erasing=0.0, drop_path=0.0, head_scale=1.0)
NAMES = ("a", "b", "c")


def objective(**changes: object) -> Classification:
    torch.manual_seed(0)
    several = bool(changes.pop("several", False))
    config = dataclasses.replace(PLAIN, **changes)
    return Classification(config, small_model(), NAMES, several=several, seed=5)


def batch(clips: int = 6):
    return small_batch(clips)._replace(label=torch.arange(clips) % 3)


def test_the_plain_loss_is_smoothed_cross_entropy() -> None:
    one = objective().train()
    losses = one(batch(), 0)
    features = one.model.video.features(batch().video)
    scores = one.head(features)
    expected = F.cross_entropy(scores, batch().label, label_smoothing=0.1)
    torch.testing.assert_close(losses.total, expected)
    assert losses.parts["top1"] == (scores.argmax(1) == batch().label).float().mean()


@pytest.mark.parametrize("head", ["linear", "attentive"])
def test_all_that_trains_gets_a_gradient_and_nothing_else_trains(head: str) -> None:
    one = objective(head=head).train()
    one(batch(), 0).total.backward()
    training = {name for name, p in one.named_parameters() if p.requires_grad}
    assert training == {name for name, p in one.named_parameters() if p.grad is not None}
    assert not any(name.startswith(("model.text", "model.fusion", "model.log_scale")) for name in training)
    assert "head.linear.weight" in training and "model.video.patches.weight" in training


def test_several_labels_are_so_many_yes_and_no() -> None:
    one = objective(several=True).train()
    label = torch.tensor([[1, 0], [1, 1], [0, 1], [0, 0], [1, 0], [0, 1]], dtype=torch.uint8)
    losses = one(batch()._replace(label=label), 0)
    scores = one.head(one.model.video.features(batch().video))
    wanted = F.pad(label.float(), (0, 1))  # class c occurs nowhere
    torch.testing.assert_close(losses.total, F.binary_cross_entropy_with_logits(scores, wanted))


def test_draws_are_a_function_of_seed_and_step() -> None:
    config = dict(mixup=0.8, cutmix=1.0, random_erasing=0.5, drop_path=0.3, head_dropout=0.3)
    one, other = objective(**config).train(), objective(**config).train()
    assert one(batch(), 3).total.equal(other(batch(), 3).total)
    assert len({float(one(batch(), step).total.detach()) for step in range(6)}) == 6
    one.eval()
    assert one(batch(), 3).total.equal(one(batch(), 4).total)  # nothing is drawn in a test


def test_mixing_by_hand() -> None:
    video = torch.arange(2.0).view(2, 1, 1, 1, 1).expand(2, 1, 3, 4, 4)
    target = targets(torch.tensor([0, 1]), 2, smoothing=0.0)
    mixed, said = apply_mix(video, target, Mix(0.75, None))
    assert mixed[0].unique().tolist() == [0.25] and mixed[1].unique().tolist() == [0.75]
    assert said.tolist() == [[0.75, 0.25], [0.25, 0.75]]
    cut, said = apply_mix(video, target, Mix(1 - 4 / 16, (0, 2, 1, 3)))
    assert cut[0, 0, 0].tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert cut[1, 0, 0, 0].tolist() == [1, 0, 0, 1] and said.tolist() == [[0.75, 0.25], [0.25, 0.75]]


def test_the_share_of_a_cut_is_what_is_left() -> None:
    for seed in range(50):
        mix = draw_mix((20, 30), mixup=0.0, cutmix=1.0, draws=np.random.default_rng(seed))
        top, bottom, left, right = mix.box
        assert 0 <= top <= bottom <= 20 and 0 <= left <= right <= 30
        assert mix.share == pytest.approx(1 - (bottom - top) * (right - left) / 600)
    kinds = [
        draw_mix((9, 9), mixup=0.8, cutmix=1.0, draws=np.random.default_rng(s)).box is None
        for s in range(200)
    ]
    assert 70 < sum(kinds) < 130
    shares = [draw_mix((9, 9), mixup=0.8, cutmix=0, draws=np.random.default_rng(s)).share for s in range(400)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.05) and np.std(shares) == pytest.approx(0.31, abs=0.03)


def test_erasing_takes_one_box_of_all_frames() -> None:
    video = torch.full((200, 2, 3, 16, 16), 9.0)
    noise = torch.Generator().manual_seed(1)
    out = erase(video, chance=0.25, generator=torch.Generator().manual_seed(0), noise=noise)
    gone = out != 9
    assert gone.any(dim=2).equal(gone.all(dim=2)) and gone[:, 0].equal(gone[:, 1])
    share = gone[:, 0, 0].float().mean(dim=(1, 2))
    assert 30 < int((share > 0).sum()) < 70
    erased = share[share > 0]
    assert erased.min() > 0.01 and erased.max() < 0.4 and erased.std() > 0.03
    assert video.unique().tolist() == [9.0]


def test_targets_by_hand() -> None:
    assert targets(torch.tensor([1]), 4, smoothing=0.2)[0].tolist() == pytest.approx([0.05, 0.85, 0.05, 0.05])


def test_pictures_without_labels_are_refused_before_the_first_step(tmp_path: Path) -> None:
    config = tiny("mini-actions")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, images="mini-world/stills"))
    with pytest.raises(HarvestError, match=r"data\.images"):
        prepare(config, tmp_path, World())


@pytest.mark.parametrize(
    "change", [{"mixup": -1.0}, {"label_smoothing": 1.0}, {"random_erasing": 2.0}, {"drop_path": -0.1}]
)
def test_settings_that_cannot_be(change: dict) -> None:
    with pytest.raises(HarvestError, match=next(iter(change))):
        ClassificationConfig(**change)
