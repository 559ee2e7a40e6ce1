from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Callable
from unittest.mock import patch

import pytest
import torch
from small import END, PAD, START, WORDS, encoded_captions, small_batch, small_model, with_rows
from torch import Tensor
from torch.nn import functional as F

from harvest.interfaces import Batch, HarvestError, Losses
from harvest.model.joining import with_answers
from harvest.model.video_text import VideoTextModel
from harvest.objectives.contrast import contrast
from harvest.objectives.image_text import ImageTextConfig, ImageTextPretraining
from harvest.objectives.post_pretraining import PostPretraining, PostPretrainingConfig
from harvest.tokens import Selection


def objective(model=None, **settings) -> PostPretraining:
    made = PostPretraining(PostPretrainingConfig(**settings), model or small_model(), seed=3)
    return made.train()


def seen_by(made: PostPretraining, method: str, run: Callable[[], object]) -> list:
    """Arguments that `run` hands to a method of the model."""
    calls: list = []
    inner = getattr(made.model, method)
    with patch.object(made.model, method, lambda *a: (calls.append(a), inner(*a))[1]):
        run()
    return calls


def keeps(made: PostPretraining, step: int, batch: Batch) -> Tensor:
    [(_, keep)] = seen_by(made, "encode_video", lambda: made(batch, step))
    return keep


def test_nested_sizes_each_add_their_contrastive_loss() -> None:
    batch = small_batch(5)
    plain = objective(masked_words_weight=0.0, drop_ratio=0.0)
    nested = objective(masked_words_weight=0.0, drop_ratio=0.0, dims=(3, 6))
    found = nested(batch, 0)
    whole = plain(batch, 0)
    assert found.parts.keys() == {"vtc", "vtc_3", "vtc_6"}
    torch.testing.assert_close(found.parts["vtc"], whole.total.detach())
    torch.testing.assert_close(found.total, torch.stack(list(found.parts.values())).mean())
    model = nested.model
    videos = F.normalize(model.encode_video(batch.video).pooled[:, :3], dim=1)
    texts = F.normalize(model.encode_text(batch.text_ids.flatten(0, 1)).pooled[:, :3], dim=1)
    expected = contrast(model.scores, videos, texts, example=batch.example)
    torch.testing.assert_close(found.parts["vtc_3"], expected.detach())
    for wrong in (0, 12):
        with pytest.raises(HarvestError, match=r"objective\.dims: expected 1 to 11"):
            objective(dims=(wrong,))


@pytest.mark.parametrize("masked_words_weight", [0.0, 1.0])
def test_what_no_loss_reaches_is_not_trained(masked_words_weight: float) -> None:
    """Of a model with all parts: DDP would wait for a gradient of each that trains."""
    whole = small_model().config
    assert whole.fusion is not None
    fusion = dataclasses.replace(whole.fusion, matches=True)
    torch.manual_seed(0)
    model, _ = with_answers(VideoTextModel(dataclasses.replace(whole, fusion=fusion)))
    made = objective(model, masked_words_weight=masked_words_weight)
    made(small_batch(4), 0).total.backward()
    trained = {name for name, p in made.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in made.named_parameters() if p.grad is not None}
    assert any(name.startswith("model.fusion.") for name in trained) == (masked_words_weight > 0)


def test_motion_and_a_budget_choose_what_is_seen() -> None:
    batch = small_batch(4)
    video = batch.video[:, :1].repeat(1, 4, 1, 1, 1)
    video[:, ::2, :, :4, 4:8] = 255 - video[:, ::2, :, :4, 4:8]  # place 1 alone changes, at every time
    made = objective(selector="motion", budget=8, random_ratio=0.5, masked_words_weight=0.0)
    keep = keeps(made, 5, batch._replace(video=video))
    assert keep.shape == (4, 8)
    assert all({1, 17, 33, 49} <= set(row.tolist()) for row in keep)


def test_the_model_s_own_attention_guides() -> None:
    batch, made = small_batch(3), objective(selector="attention", budget=8, masked_words_weight=0.0)
    losses = made(batch, 2)
    losses.total.backward()
    assert torch.isfinite(losses.total)


def test_run_length_sees_what_does_not_repeat() -> None:
    """Clips of different lengths in one batch: the loss of a still clip is that of its first frame's tubelets."""
    batch = small_batch(4)
    video = batch.video.clone()
    video[1:3] = video[1:3, :1]  # two still clips
    made = objective(selector="run_length")
    packed = keeps(made, 0, batch._replace(video=video))
    assert packed.groups == ((2, 16), (2, 64)) and packed.clips.tolist() == [1, 2, 0, 3]
    losses = made(batch._replace(video=video), 0)
    losses.total.backward()
    assert torch.isfinite(losses.total) and losses.parts.keys() == {"vtc", "mlm", "words_right"}
    whole = objective(drop_ratio=0.0)(batch, 0)
    torch.testing.assert_close(made(batch, 0).total, whole.total, atol=1e-5, rtol=1e-5)  # all of it changes


def test_merging_is_not_for_training() -> None:
    with pytest.raises(HarvestError, match="selector merge is for models in use"):
        objective(selector="merge", budget=32)(small_batch(2), 0)


def test_a_budget_larger_than_a_clip_is_refused() -> None:
    with pytest.raises(HarvestError, match="a budget of 65 tubelets is more than a clip has"):
        objective(budget=65)(small_batch(2), 0)
    for wrong in ({"budget": 0}, {"random_ratio": -0.5}):
        with pytest.raises(HarvestError, match="expected"):
            objective(**wrong)


def test_tubelets_are_dropped_per_clip_fresh_each_step_exactly_as_many() -> None:
    batch = small_batch(6)
    made = objective(drop_ratio=0.9)
    keep = keeps(made, 5, batch)
    assert keep.shape == (6, 64 - int(0.9 * 64))
    assert all(len(set(row.tolist())) == keep.shape[1] for row in keep)
    assert keep.min() >= 0 and keep.max() < 64
    assert len({tuple(row.tolist()) for row in keep}) == 6
    assert not torch.equal(keep, keeps(made, 6, batch))
    assert torch.equal(keep, keeps(objective(drop_ratio=0.9), 5, batch))
    other_seed = PostPretraining(PostPretrainingConfig(), small_model(), seed=4)
    assert not torch.equal(keep, keeps(other_seed, 5, batch))


def test_draws_leave_the_global_generator_alone() -> None:
    made, batch = objective(), small_batch(3)
    before = torch.get_rng_state()
    made(batch, 1)
    assert torch.equal(before, torch.get_rng_state())


def test_ranks_draw_differently() -> None:
    with patch("harvest.objectives.seen.world_rank_size", lambda: (1, 2)):
        other = keeps(objective(), 5, small_batch(3))
    assert not torch.equal(other, keeps(objective(), 5, small_batch(3)))


def test_the_tuning_stage_sees_all() -> None:
    made = objective()
    made.selection = Selection(drop_ratio=0.0)
    assert keeps(made, 0, small_batch(3)) is None


def test_a_step_repeats_itself() -> None:
    first, again = (objective()(small_batch(4), 7) for _ in range(2))
    assert torch.equal(first.total, again.total) and first.parts.keys() == {"vtc", "mlm", "words_right"}


def test_words_are_hidden_where_they_may_be_and_filled_there_alone() -> None:
    batch, made = small_batch(6), objective(text_mask_ratio=0.4)
    texts = seen_by(made, "encode_text", lambda: made(batch, 2))
    clean, masked = texts[0][0], texts[1][0]
    assert torch.equal(clean, batch.text_ids.flatten(0, 1))
    hidden = masked == made.model.mask_id
    assert made.model.mask_id == WORDS and hidden.any(dim=1).all()
    assert torch.equal(masked[~hidden], clean[~hidden])
    assert not torch.isin(clean[hidden], torch.tensor([START, END, PAD])).any()
    [(states,)] = seen_by(made, "predict_words", lambda: made(batch, 2))
    assert len(states) == hidden.sum()


def test_masked_words_loss_by_brute_force() -> None:
    """The mean over hidden positions of the cross-entropy of all words at all positions."""
    batch, made = small_batch(5), objective(contrastive_weight=0.0, drop_ratio=0.0)
    masked = seen_by(made, "encode_text", lambda: made(batch, 4))[1][0]
    model = made.model
    states = model.fuse(model.encode_video(batch.video), model.encode_text(masked))
    words = model.predict_words(states.flatten(0, 1)).view(*states.shape[:2], -1).log_softmax(-1)
    losses, rights = [], []
    for b, n in (masked == model.mask_id).nonzero().tolist():
        target = batch.text_ids[b, 0, n]
        losses.append(-words[b, n, target])
        rights.append(words[b, n].argmax() == target)
    found = made(batch, 4)
    torch.testing.assert_close(found.parts["mlm"], torch.stack(losses).mean().detach())
    torch.testing.assert_close(found.total, found.parts["mlm"])
    torch.testing.assert_close(found.parts["words_right"], torch.stack(rights).float().mean())


def test_contrastive_loss_by_brute_force() -> None:
    """Clips 0 and 1 are one video: each of their captions is a positive of both."""
    batch = small_batch(4, captions=2)
    made = objective(small_model(fusion=False), masked_words_weight=0.0, drop_ratio=0.0)
    video = made.model.encode_video(batch.video).pooled
    text = made.model.encode_text(batch.text_ids.flatten(0, 1)).pooled
    scores = made.model.log_scale.exp() * text @ video.T
    clip_of_text = batch.example.repeat_interleave(2)
    terms = []
    for table, mine, others in (
        (scores, clip_of_text, batch.example),
        (scores.T, batch.example, clip_of_text),
    ):
        rows = [-table[i].log_softmax(0)[others == mine[i]].mean() for i in range(len(table))]
        terms.append(torch.stack(rows).mean())
    torch.testing.assert_close(made(batch, 0).total, sum(terms) / 2)


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_loss_weights(weight: float) -> None:
    losses = objective(contrastive_weight=weight, masked_words_weight=0.5)(small_batch(4), 1)
    torch.testing.assert_close(
        losses.total.detach(), weight * losses.parts["vtc"] + 0.5 * losses.parts["mlm"]
    )


def test_a_caption_without_words_asks_nothing() -> None:
    batch = small_batch(2)
    batch.text_ids[:] = PAD
    batch.text_ids[..., 0], batch.text_ids[..., 1] = START, END
    losses = objective()(batch, 0)
    losses.total.backward()
    assert losses.parts["mlm"] == 0 and losses.parts["words_right"] == 0 and losses.total.isfinite()


# ---- what trains -------------------------------------------------------------------------------------------------


def trained(made: PostPretraining, batch: Batch) -> set[str]:
    made(batch, 0).total.backward()
    return {name for name, p in made.model.named_parameters() if p.grad is not None and p.grad.any()}


def test_with_a_frozen_text_tower_only_the_mask_embedding_of_it_trains() -> None:
    made = objective()
    names = {name for name, _ in made.model.named_parameters()}
    expected = {n for n in names if not n.startswith("text.")} | {"text.mask_embedding"}
    assert trained(made, small_batch(6)) == expected
    assert {n for n, p in made.model.named_parameters() if p.requires_grad} == expected


def test_without_masked_words_the_mask_embedding_stays() -> None:
    made = objective(small_model(fusion=False), masked_words_weight=0.0)
    names = {name for name, _ in made.model.named_parameters()}
    assert trained(made, small_batch(6)) == {n for n in names if not n.startswith("text.")}
    assert not made.model.text.mask_embedding.requires_grad


def test_a_trained_text_tower_trains_whole() -> None:
    made = objective(text_tower="trained")
    assert trained(made, small_batch(12)) == {name for name, _ in made.model.named_parameters()}


def test_the_image_text_objective_trains_all_but_what_it_lacks() -> None:
    made = ImageTextPretraining(ImageTextConfig(), small_model(fusion=False, num_frames=1), seed=0)
    names = {name for name, _ in made.model.named_parameters()}
    assert trained(made, small_batch(8, captions=2)) == names - {"text.mask_embedding"}  # hides no word


# ---- the cache of captions ---------------------------------------------------------------------------------------


def with_gradients(made: PostPretraining, batch: Batch) -> tuple[Losses, dict[str, Tensor]]:
    losses = made(batch, 2)
    losses.total.backward()
    return losses, {n: p.grad for n, p in made.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("captions", [1, 2])
def test_cached_captions_give_the_same_loss_and_gradients(captions: int) -> None:
    batch = small_batch(6, captions=captions)
    plain, cached = objective(), objective(cache_texts=True)
    cached.captions = encoded_captions(cached.model, batch)
    shuffled = batch.rows([3, 0, 5, 1])  # a cache is looked up by the caption's number
    a, a_gradients = with_gradients(plain, shuffled)
    b, b_gradients = with_gradients(cached, with_rows(shuffled, cached.captions))
    torch.testing.assert_close(a.total, b.total, atol=1e-6, rtol=1e-6)
    assert a_gradients.keys() == b_gradients.keys()
    for name, gradient in a_gradients.items():
        torch.testing.assert_close(gradient, b_gradients[name], atol=1e-6, rtol=1e-5, msg=name)


def test_a_cache_is_used_and_not_saved() -> None:
    batch, made = small_batch(3), objective(cache_texts=True)
    made.captions = encoded_captions(made.model, batch)
    names, batch = set(made.state_dict()), with_rows(batch, made.captions)
    assert len(seen_by(made, "encode_text", lambda: made(batch, 0))) == 1  # the masked ones
    assert set(made.state_dict()) == names == set(objective().state_dict())


def test_a_bank_of_cached_captions_joins_as_negatives() -> None:
    """The clip-to-text half sees batch and bank, the text-to-clip half the batch alone; own captions stay positives."""
    world, made = small_batch(8), objective(cache_texts=True, text_bank=5, masked_words_weight=0.0)
    made.captions = encoded_captions(made.model, world)
    batch = world.rows(slice(3))
    bank, again = made._bank(7), made._bank(7)
    assert bank is not None and again is not None and bank.pooled.shape == (5, 12)
    assert torch.equal(bank.pooled, again.pooled) and not torch.equal(bank.pooled, made._bank(8).pooled)
    video = made.model.encode_video(batch.video, keeps(made, 7, batch)).pooled
    texts = torch.cat([made.captions.pooled(torch.arange(3)), bank.pooled])
    owner, clips = [*batch.example.tolist(), *bank.example.tolist()], batch.example.tolist()
    scores = made.model.scores(video, texts).double()
    v2t = t2v = 0.0
    for place, clip in enumerate(clips):
        own = [row for row, whose in enumerate(owner) if whose == clip]
        v2t -= scores[:, place].log_softmax(0)[own].mean().item() / 3
    asked = [row for row, whose in enumerate(owner) if whose in clips]
    assert len(asked) < len(owner)  # some of the bank are nobody's here
    for row in asked:
        own = [place for place, clip in enumerate(clips) if clip == owner[row]]
        t2v -= scores[row].log_softmax(0)[own].mean().item() / len(asked)
    assert made(batch, 7).total.item() == pytest.approx((v2t + t2v) / 2, abs=1e-5)


def test_words_are_hidden_in_a_share_of_the_clips() -> None:
    made, batch = objective(masked_words_ratio=0.25), small_batch(8)
    [(texts,)] = [call for call in seen_by(made, "encode_text", lambda: made(batch, 0)) if len(call[0]) != 8]
    assert len(texts) == 2
    assert len(keeps(made, 0, batch)) == 8  # all clips learn from their captions


@pytest.mark.parametrize(
    "settings", [{"text_bank": 4}, {"masked_words_ratio": 0.0}, {"masked_words_ratio": 1.5}]
)
def test_impossible_settings_of_bank_and_share(settings: dict) -> None:
    with pytest.raises(HarvestError, match=next(iter(settings))):
        PostPretrainingConfig(**settings)


# ---- limits ------------------------------------------------------------------------------------------------------


def test_the_scale_is_held_at_100() -> None:
    model = small_model(fusion=False)
    vectors = torch.nn.functional.normalize(
        torch.randn(3, 12, generator=torch.Generator().manual_seed(0)), dim=1
    )
    with torch.no_grad():
        model.log_scale.fill_(9.0)
    torch.testing.assert_close(
        model.scores(vectors, vectors), 100 * vectors @ vectors.T, rtol=1e-4, atol=1e-4
    )
    assert model.log_scale.exp() > 100
    with torch.no_grad():
        model.log_scale.fill_(math.log(20))
    torch.testing.assert_close(model.scores(vectors, vectors), 20 * vectors @ vectors.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"drop_ratio": 1.0}, "drop_ratio"),
        ({"drop_ratio": -0.1}, "drop_ratio"),
        ({"text_mask_ratio": 1.5}, "text_mask_ratio"),
        ({"cache_texts": True, "text_tower": "trained"}, "cache_texts"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(HarvestError, match=message):
        PostPretrainingConfig(**settings)


def gradients_of(made: PostPretraining, batch: Batch, step: int = 5) -> tuple[Losses, dict[str, Tensor]]:
    made.zero_grad(set_to_none=True)
    losses = made(batch, step)
    losses.total.backward()
    return losses, {name: p.grad for name, p in made.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "settings", [{}, {"text_tower": "trained"}, {"masked_words_ratio": 0.3}, {"masked_words_weight": 0.0}]
)
def test_a_batch_in_chunks_has_the_gradients_of_the_whole(settings: dict) -> None:
    """256 clips in chunks of 16, with dropping and hidden words: the same draws, the same gradients."""
    batch = small_batch(256, captions=2)
    whole, expected = gradients_of(objective(drop_ratio=0.5, **settings), batch)
    losses, found = gradients_of(objective(drop_ratio=0.5, chunk_clips=16, **settings), batch)
    torch.testing.assert_close(losses.total, whole.total)
    assert losses.parts.keys() == whole.parts.keys() and found.keys() == expected.keys()
    for name, part in whole.parts.items():
        torch.testing.assert_close(losses.parts[name], part, rtol=1e-5, atol=1e-6)
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()), msg=name
        )
    assert sum(bool(gradient.any()) for gradient in expected.values()) > 20


class Saved:
    """What autograd holds of a tensor, for as long as it does."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def kept_for_backward(made: PostPretraining, batch: Batch) -> int:
    """Bytes of tensors that the forward pass leaves for the backward pass, the batch itself and the weights aside."""
    known = {t.untyped_storage().data_ptr() for t in (*batch, *made.parameters(), *made.buffers())}
    alive: weakref.WeakSet[Saved] = weakref.WeakSet()

    def pack(tensor: Tensor) -> Saved:
        saved = Saved(tensor)
        alive.add(saved)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        losses = made(batch, 0)
    assert losses.total.requires_grad
    storages = {saved.tensor.untyped_storage().data_ptr(): saved.tensor.untyped_storage() for saved in alive}
    return sum(storage.nbytes() for address, storage in storages.items() if address not in known)


def test_chunks_keep_little_of_the_forward_pass() -> None:
    def of(clips: int, **settings: int) -> int:
        return kept_for_backward(objective(drop_ratio=0.5, **settings), small_batch(clips))

    more_whole = of(64) - of(32)
    more_in_chunks = of(64, chunk_clips=16) - of(32, chunk_clips=16)
    assert more_in_chunks < 0.1 * more_whole
    with pytest.raises(HarvestError, match="chunk_clips"):
        PostPretrainingConfig(chunk_clips=-1)


def test_the_sigmoid_loss_starts_where_siglip_does_and_is_kept_with_the_model() -> None:
    made = objective(small_model(fusion=False), contrastive_loss="sigmoid", masked_words_weight=0.0)
    model, batch = made.model, small_batch(6)
    assert model.score_bias is not None and model.config.score_bias
    assert model.score_bias.item() == -10 and model.log_scale.exp().item() == pytest.approx(10)
    made(batch, 0).total.backward()
    assert model.score_bias.grad is not None and model.score_bias.grad != 0
    with torch.no_grad():
        model.score_bias.fill_(-3.0)
    opened = VideoTextModel(model.config)  # as a model folder is opened
    opened.load_state_dict(model.state_dict())
    videos, texts = model.encode_video(batch.video).pooled, model.encode_text(batch.text_ids[:, 0]).pooled
    assert torch.equal(opened.scores(videos, texts), model.scores(videos, texts))
    again = objective(opened, contrastive_loss="sigmoid", masked_words_weight=0.0)
    assert again.model.score_bias is not None and again.model.score_bias.item() == -3
