"""UMT stage 2 as an objective: what it trains and draws, its losses by brute force, the reference's defects, bad input."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from small import END, PAD, START, loss_and_gradients, small_batch, small_model, stage2_model
from torch import Tensor

from harvest.data.read_once import clip_numbers
from harvest.data.words import cut_padding
from harvest.interfaces import Batch, Example, HarvestError
from harvest.model.inflation import as_teacher
from harvest.objectives.contrast import contrast
from harvest.objectives.losses import negatives
from harvest.objectives.multimodal import Multimodal, MultimodalConfig
from harvest.tokens import words
from harvest.training.optim import OptimConfig, build_optimizer


def objective_of(layout: str = "bert", **settings: object) -> Multimodal:
    config = MultimodalConfig(**{"num_layers": 2, "drop_path": 0.0} | settings)
    teacher = as_teacher(small_model(fusion=False, num_frames=1, seed=1)) if config.needs_teacher else None
    torch.manual_seed(0)
    return Multimodal(config, stage2_model(layout), teacher, seed=0)


def picture(batch: Batch) -> Batch:
    return batch._replace(video=batch.video[:, :1].contiguous())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("layout", ["bert", "decoder"])
@pytest.mark.parametrize("keep", ["attention", "tube", "random"])
def test_every_loss_falls(layout: str, keep: str) -> None:
    """Defect 2 again: in the reference tube and random masks die in the first step."""
    objective = objective_of(layout, selector=keep)
    optimizer = build_optimizer(objective, OptimConfig(lr=3e-3, weight_decay=0.02))
    batch, first = small_batch(4), {}
    for step in range(12):
        losses = objective(batch if step % 3 else picture(batch), step % 3)
        last = losses.parts | {"total": losses.total.detach()}
        first.setdefault(step % 3, last)
        losses.total.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert last["total"] < first[2]["total"]
    assert set(first[0]) == {"alignment", "vtc", "vtm", "mlm", "total"}
    parts = torch.stack([value for name, value in last.items() if name != "total"])
    torch.testing.assert_close(parts.sum(), last["total"])


def test_weights_scale_the_losses() -> None:
    batch = small_batch(4)
    plain = objective_of()(batch, 0)
    weights = {"alignment_weight": 0.5, "contrastive_weight": 2.0, "matching_weight": 3.0}
    total = objective_of(**weights, masked_words_weight=0.25)(batch, 0).total
    expected = sum(
        weight * plain.parts[name]
        for name, weight in (("alignment", 0.5), ("vtc", 2.0), ("vtm", 3.0), ("mlm", 0.25))
    )
    torch.testing.assert_close(total, expected)


def test_an_image_is_a_clip_of_one_frame_and_shows_half() -> None:
    objective = objective_of()
    seen = []
    objective.model.video.register_forward_hook(lambda _m, args, out: seen.append(out.tokens.shape[1]))
    objective(small_batch(3), 0)
    objective(picture(small_batch(3)), 1)
    assert seen == [4 * 4, 8]  # 16 - int(16 * 0.8) places of each of 4 frames; 16 - int(16 * 0.5)


@pytest.mark.parametrize(
    ("off", "untrained"),
    [
        (
            {"contrastive_weight": 0.0},
            ("video.projection", "video.norm_pooled", "text.projection", "log_scale"),
        ),
        ({"matching_weight": 0.0}, ("fusion.head_match",)),
        ({"masked_words_weight": 0.0}, ("fusion.head_dense", "fusion.head_norm", "fusion.head_bias")),
        ({"matching_weight": 0.0, "masked_words_weight": 0.0}, ("fusion.",)),
        ({}, ()),
    ],
)
def test_what_trains_gets_a_gradient(off: dict, untrained: tuple[str, ...]) -> None:
    """DDP waits for the gradient of every parameter that trains."""
    for make in (lambda b: b, picture):
        objective = objective_of(**off)
        objective.train()
        objective(make(small_batch(3)), 0).total.backward()
        for name, parameter in objective.named_parameters():
            is_off = name.removeprefix("model.").startswith(untrained) if untrained else False
            is_off = is_off or (not off.get("masked_words_weight", 1) and name.endswith("mask_embedding"))
            assert (parameter.grad is not None) == parameter.requires_grad == (not is_off), name


def test_the_teacher_is_not_saved_or_trained() -> None:
    """In the reference it is inside the wrapped module: 86 M frozen values in buckets and in every checkpoint."""
    objective = objective_of()
    assert not any("teacher" in name for name in objective.state_dict())
    before = {k: t.clone() for k, t in objective.teaching.teacher.state_dict().items()}
    objective.train()
    objective(small_batch(2), 0).total.backward()
    assert not objective.teaching.teacher.training
    assert all(torch.equal(t, before[k]) for k, t in objective.teaching.teacher.state_dict().items())


def test_without_a_teacher_everything_is_seen() -> None:
    """How UMT fine-tunes for retrieval."""
    config = MultimodalConfig(alignment_weight=0, masked_words_weight=0, drop_ratio=0, image_drop_ratio=0)
    assert not config.needs_teacher
    objective = Multimodal(config, stage2_model("bert"), None, seed=0)
    assert objective(small_batch(3), 0).parts.keys() == {"vtc", "vtm"}
    assert dataclasses.replace(config, drop_ratio=0.5).needs_teacher  # which says what is kept
    assert not dataclasses.replace(config, drop_ratio=0.5, selector="tube").needs_teacher
    with pytest.raises(HarvestError, match="needs a teacher"):
        Multimodal(MultimodalConfig(num_layers=2), stage2_model("bert"), None, seed=0)


def test_a_step_is_a_function_of_seed_and_step() -> None:
    """Dropout too, which PyTorch draws from its global generators."""
    objective = objective_of(drop_path=0.5)
    objective.train()
    assert objective.model.text.config.dropout > 0
    batch = small_batch(3)
    torch.manual_seed(1)
    once = objective(batch, 1).total
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    assert objective(batch, 1).total == once
    assert torch.equal(state, torch.random.get_rng_state())
    assert objective(batch, 2).total != once
    objective.eval()
    assert objective(batch, 1).total != once  # without dropout


# ---- matching ----------------------------------------------------------------------------------------------------


def test_negatives_by_brute_force() -> None:
    scores = torch.tensor(
        [[5.0, 1.0, 0.0, 2.0], [0.0, 0.0, 1.0, 1.0], [0.0, 3.0, 9.0, 1.0], [1.0, 1.0, 1.0, 1.0]]
    )
    example = torch.tensor([7, 3, 9, 3])
    is_same = example[:, None] == example
    counts = torch.zeros(4, 4)
    for seed in range(4000):
        drawn = negatives(scores, is_same, generator=generator(seed))
        counts[torch.arange(4), drawn] += 1
    expected = scores.masked_fill(is_same, float("-inf")).softmax(dim=1)
    assert (counts[is_same] == 0).all()
    assert (counts / 4000 - expected).abs().max() < 0.03


def test_the_draw_is_multinomial_s() -> None:
    scores = torch.randn(6, 6, generator=generator(3))
    is_same = torch.eye(6, dtype=torch.bool)
    weights = scores.masked_fill(is_same, float("-inf")).softmax(dim=1)
    wanted = torch.multinomial(weights, 1, generator=generator(11))[:, 0]
    assert torch.equal(negatives(scores, is_same, generator=generator(11)), wanted)


def test_defect_7_one_video_or_a_batch_of_one_has_a_defined_loss() -> None:
    """The reference's constant of 1e-4 before the softmax does nothing: "invalid multinomial distribution"."""
    objective, batch = objective_of(), small_batch(3)
    one = Batch(*(tensor[:1] for tensor in batch))
    same = batch._replace(example=torch.zeros(3, dtype=torch.int64))
    for odd in (one, same):
        objective.zero_grad()
        losses = objective(odd, 0)
        assert losses.parts["vtm"] == 0 and torch.isfinite(losses.total)
        losses.total.backward()
        assert all(p.grad is not None for p in objective.parameters() if p.requires_grad)
        assert objective.model.fusion.head_match.weight.grad.abs().max() == 0


def test_negatives_at_a_low_temperature() -> None:
    """Weights of all but a row's own video underflow: the reference masks after the softmax and is left with zeros."""
    scores = torch.tensor([[1000.0, -900.0, -1000.0], [0.0, 1000.0, -1000.0], [0.0, 0.0, 1000.0]])
    is_same = torch.eye(3, dtype=torch.bool)
    assert scores.softmax(dim=1).masked_fill(is_same, 0).sum() == 0
    drawn = negatives(scores, is_same, generator=generator())
    assert drawn[0] == 1 and drawn[1] == 0 and drawn[2] in (0, 1)


def test_matching_by_brute_force() -> None:
    """Row by row through the model, with the drawn pairs."""
    objective, batch = objective_of(), small_batch(4)
    objective.eval()
    model = objective.model
    with torch.no_grad():
        video, text = model.encode_video(batch.video), model.encode_text(batch.text_ids[:, 0])
        found = objective.matching(video, text, batch.example, generator(5))
        scores = model.scores(video.pooled, text.pooled)
        is_same = batch.example[:, None] == batch.example
        draws = generator(5)
        wrong_clip = negatives(scores, is_same, generator=draws)
        wrong_text = negatives(scores.T, is_same, generator=draws)
        total = torch.zeros(())
        pairs = [(i, i, 1) for i in range(4)]
        pairs += [(int(c), i, 0) for i, c in enumerate(wrong_clip)]
        pairs += [(i, int(t), 0) for i, t in enumerate(wrong_text)]
        for clip, caption, label in pairs:
            assert label or batch.example[clip] != batch.example[caption]
            one = model.encode_video(batch.video[clip : clip + 1])
            said = model.encode_text(batch.text_ids[caption, :1])
            logits = model.match(model.fuse(one, said), said)
            total += F.cross_entropy(logits, torch.tensor([label])) / 12
    torch.testing.assert_close(found, total, atol=1e-5, rtol=1e-5)


def test_texts_that_share_a_video() -> None:
    """Neighbouring texts meet one video without copies: as if it stood beside each."""
    model, batch = stage2_model("bert").eval(), small_batch(4)
    with torch.no_grad():
        video, text = model.encode_video(batch.video[:2]), model.encode_text(batch.text_ids[:, 0])
        together = model.fuse(video, text)
        apart = model.fuse(video._replace(tokens=video.tokens.repeat_interleave(2, 0)), text)
        torch.testing.assert_close(together, apart)
        with pytest.raises(ValueError, match="4 rows cannot share 3 contexts"):
            model.fuse(video._replace(tokens=video.tokens[[0, 1, 0]]), text)


# ---- words -------------------------------------------------------------------------------------------------------


def test_defect_8_captions_without_a_maskable_word() -> None:
    """The reference's loss is NaN."""
    objective, batch = objective_of(), small_batch(3)
    empty = torch.full_like(batch.text_ids, PAD)
    empty[..., 0] = START
    losses = objective(batch._replace(text_ids=empty), 0)
    assert losses.parts["mlm"] == 0 and torch.isfinite(losses.total)
    losses.total.backward()
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)


def test_padding_changes_nothing() -> None:
    model, batch = stage2_model("bert").eval(), small_batch(3)
    ids = batch.text_ids[:, 0]
    longer = F.pad(ids, (0, 3), value=PAD)
    model.text.config = dataclasses.replace(model.text.config, context_length=12)
    grown = torch.cat([model.text.positions, torch.randn(3, model.text.positions.shape[1])])
    model.text.positions = torch.nn.Parameter(grown)

    def score(some: Tensor) -> Tensor:
        text = model.encode_text(some)
        return model.match(model.fuse(model.encode_video(batch.video), text), text)

    with torch.no_grad():
        torch.testing.assert_close(score(longer), score(ids))
        alone = torch.cat([score_one for score_one in (_alone(model, batch, i) for i in range(3))])
        torch.testing.assert_close(score(ids), alone, atol=1e-5, rtol=1e-5)


def _alone(model, batch: Batch, row: int) -> Tensor:
    text = model.encode_text(batch.text_ids[row, :1])
    return model.match(model.fuse(model.encode_video(batch.video[row : row + 1]), text), text)


# ---- defects of the reference that lie elsewhere in what this objective is given ---------------------------------


def test_defect_6_captions_of_one_video_are_positives_and_row_numbers_are_not() -> None:
    """The reference compares row numbers inside each corpus: five captions of a picture are negatives of each other."""
    one = [Example(id=f"a{i}", video="picture.jpg", texts=(str(i),)) for i in range(2)]
    two = [Example(id=f"b{i}", video=f"{i}.mp4", texts=(str(i),)) for i in range(2)]
    example = clip_numbers([*one, *two])
    assert example.tolist() == [0, 0, 1, 2]
    scores = torch.full((4, 4), -20.0)
    scores[:2, :2], scores[2, 2], scores[3, 3] = 20.0, 20.0, 20.0  # as good as can be
    found = contrast(
        lambda videos, texts: texts @ scores @ videos.T, torch.eye(4), torch.eye(4), example=example
    )
    assert found == pytest.approx(math.log(2) / 2, abs=1e-4)  # two share their mass
    objective = objective_of(
        matching_weight=0.0, masked_words_weight=0.0, alignment_weight=0.0, drop_ratio=0.0
    )
    batch = small_batch(4)
    losses = [
        objective(batch._replace(example=torch.tensor(rows)), 0).parts["vtc"]
        for rows in ([0, 0, 2, 3], [0, 1, 2, 3])
    ]
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"image_drop_ratio": 1.0}, "image_drop_ratio"),
        ({"text_mask_ratio": 1.5}, "text_mask_ratio"),
        ({"matching_weight": -1.0}, "matching_weight"),
        (
            {"alignment_weight": 0, "contrastive_weight": 0, "matching_weight": 0, "masked_words_weight": 0},
            "weights",
        ),
    ],
)
def test_wrong_settings(settings: dict, said: str) -> None:
    with pytest.raises(HarvestError, match=said):
        MultimodalConfig(**settings)


def test_a_model_that_lacks_a_head() -> None:
    image = small_model(fusion=False)
    config = MultimodalConfig(alignment_weight=0, drop_ratio=0, image_drop_ratio=0)
    with pytest.raises(HarvestError, match="matching head"):
        Multimodal(config, image, None, seed=0)
    with pytest.raises(HarvestError, match="fills in words"):
        Multimodal(dataclasses.replace(config, matching_weight=0), image, None, seed=0)


@pytest.mark.parametrize("weights", [{}, {"contrastive_weight": 0.0, "alignment_weight": 0.0}])
def test_hidden_words_by_a_fixed_number_of_places_are_the_same_loss(
    weights: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where the host does not wait to know their number."""
    found = []
    for is_fixed in (False, True):
        if is_fixed:
            monkeypatch.setattr(words, "_num_asked", lambda hidden, most: most)
        objective = objective_of(**weights)
        found.append(loss_and_gradients(objective, objective, small_batch(6)))
    exact, fixed = found
    for name, tensor in exact.items():
        torch.testing.assert_close(fixed[name], tensor, rtol=1e-5, atol=1e-6)


def test_a_batch_of_one_video_asks_for_no_match() -> None:
    objective = objective_of(alignment_weight=0.0, selector="random", masked_words_weight=0.0)
    batch = small_batch(4)
    batch = batch._replace(example=torch.zeros_like(batch.example))
    losses = objective(batch, 0)
    losses.total.backward()
    assert losses.parts["vtm"] == 0
    head = objective.model.fusion.head_match
    assert head is not None and (head.weight.grad == 0).all()


@pytest.mark.parametrize("layout", ["bert", "decoder"])
def test_a_loss_does_not_depend_on_padding(layout: str) -> None:
    """What workers cut is asked for by nobody, and draws of hidden words do not follow it."""
    batch = small_batch(4)
    batch.text_ids[..., 5], batch.text_ids[..., 6:] = END, PAD
    cut = batch._replace(text_ids=cut_padding(batch.text_ids, PAD))
    assert cut.text_ids.shape[-1] == 8 < batch.text_ids.shape[-1]
    objective = objective_of(layout).train()
    losses = [objective(given, 5) for given in (batch, cut)]
    assert losses[0].parts == losses[1].parts and losses[0].total == losses[1].total
