from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from small import small_batch, small_model

from harvest.interfaces import HarvestError
from harvest.objectives.question_answering import QuestionAnswering, QuestionAnsweringConfig

NAMES = ("a", "b", "c")


def objective(**changes: object) -> QuestionAnswering:
    torch.manual_seed(0)
    config = dataclasses.replace(QuestionAnsweringConfig(head_dropout=0.0), **changes)
    return QuestionAnswering(config, small_model(), NAMES, seed=5)


def batch(model) -> object:
    rows = small_batch(6)
    ids = rows.text_ids.clone()
    ids[:, :, 1] = model.mask_id  # where the answer stands
    return rows._replace(text_ids=ids, label=torch.arange(6) % 3)


def test_the_head_reads_the_hidden_word_the_clip_and_the_question() -> None:
    one = objective().train()
    rows = batch(one.model)
    losses = one(rows, 0)
    model = one.model
    seen, text = model.video.features(rows.video), model.encode_text(rows.text_ids[:, 0])
    features = torch.cat([model.fuse(seen, text)[:, 1], seen.pooled, text.pooled], dim=1)
    scores = one.head(features)
    torch.testing.assert_close(losses.total, F.cross_entropy(scores, rows.label))
    assert losses.parts["right"] == (scores.argmax(1) == rows.label).float().mean()


@pytest.mark.parametrize("text_tower", ["trained", "frozen"])
def test_all_that_trains_gets_a_gradient(text_tower: str) -> None:
    one = objective(text_tower=text_tower).train()
    one(batch(one.model), 0).total.backward()
    training = {name for name, p in one.named_parameters() if p.requires_grad}
    assert training == {name for name, p in one.named_parameters() if p.grad is not None}
    assert ("model.text.words.weight" in training) == (text_tower == "trained")
    assert "model.text.mask_embedding" in training and "model.fusion.blocks.0.mlp.up.weight" in training


def test_dropout_is_a_function_of_the_step() -> None:
    one = objective(head_dropout=0.5, drop_path=0.3).train()
    rows = batch(one.model)
    torch.manual_seed(1)
    first = one(rows, 3).total
    torch.manual_seed(2)
    assert one(rows, 3).total.equal(first) and not one(rows, 4).total.equal(first)
    one.eval()
    assert one(rows, 3).total.equal(one(rows, 4).total)


def test_a_model_without_fusion_is_refused() -> None:
    with pytest.raises(HarvestError, match="reads the fusion decoder"):
        QuestionAnswering(QuestionAnsweringConfig(), small_model(fusion=False), NAMES, seed=0)
    with pytest.raises(HarvestError, match="head_dropout"):
        QuestionAnsweringConfig(head_dropout=1.0)
