from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small import small_batch, small_model

from harvest.interfaces import HarvestError
from harvest.objectives.multiple_choice import MultipleChoice, MultipleChoiceConfig


def test_the_loss_is_over_a_clips_own_options() -> None:
    model = small_model()
    one = MultipleChoice(MultipleChoiceConfig(others_weight=0.5), model, seed=0).train()
    batch = small_batch(4, captions=3)._replace(label=torch.tensor([0, 2, 1, 1]))
    losses = one(batch, 0)
    video, text = (
        model.encode_video(batch.video).pooled,
        model.encode_text(batch.text_ids.flatten(0, 1)).pooled,
    )
    scores = model.log_scale.exp() * video @ text.T
    own = torch.stack([scores[b, 3 * b : 3 * b + 3] for b in range(4)])
    choice = F.cross_entropy(own, batch.label)
    others = F.cross_entropy(scores, torch.tensor([0, 5, 7, 10]))
    torch.testing.assert_close(losses.total, choice + 0.5 * others)
    torch.testing.assert_close(losses.parts["choice"], choice.detach())
    losses.total.backward()
    training = {name for name, p in one.named_parameters() if p.requires_grad}
    assert training == {name for name, p in one.named_parameters() if p.grad is not None}
    assert not any(name.startswith("model.fusion") for name in training)


def test_settings_that_cannot_be() -> None:
    with pytest.raises(HarvestError, match="must be more than 0"):
        MultipleChoiceConfig(choice_weight=0.0)
    with pytest.raises(HarvestError, match="drop_path"):
        MultipleChoiceConfig(drop_path=1.0)
