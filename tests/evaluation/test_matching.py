"""Re-ranking and multiple choice by the matching head, and answers ranked by the decoder: fixtures and brute force."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harvest.data.video import read_clip
from harvest.evaluation import evaluate
from harvest.evaluation.answer_ranking import rank_answers
from harvest.evaluation.embed import Embeddings, cosines, embed_texts, embed_videos, encode_clips
from harvest.evaluation.matching import best, read_pairs, reranked
from harvest.evaluation.metrics import ranks
from harvest.evaluation.task import Evaluation
from harvest.evaluation.tasks.multiple_choice import MultipleChoiceTask
from harvest.evaluation.tasks.retrieval import RetrievalTask, reranked_ranks
from harvest.interfaces import Example, HarvestError
from harvest.model.answers import AnswerIds, encode_answers
from harvest.model.fusion import FusionConfig
from harvest.model.joining import with_answers
from harvest.model.text_encoder import TextEncoderConfig
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_encoder import VideoEncoderConfig
from harvest.model.video_text import ModelConfig, VideoTextModel

sys.path.append(str(Path(__file__).parent.parent / "model"))
SHARED = Path(__file__).resolve().parents[3] / "shared"
SIZES = {"width": 16, "depth": 2, "num_heads": 2, "mlp_width": 32, "embed_dim": 12}


def make_model(tokenizer: Tokenizer, layout: str = "bert") -> VideoTextModel:
    is_bert = layout == "bert"
    text = TextEncoderConfig(
        vocab_size=tokenizer.core.get_vocab_size(), context_length=20, start_id=0, end_id=1, pad_id=2, **SIZES
    )
    if is_bert:
        text = dataclasses.replace(text, causal=False, norms="after", pooling="first")
    fusion = FusionConfig(
        depth=1, num_heads=2, layout="bert" if is_bert else "decoder", tied_words=is_bert, matches=True
    )
    torch.manual_seed(0)
    model = VideoTextModel(
        ModelConfig(
            VideoEncoderConfig(image_size=32, patch_size=8, num_frames=4, **SIZES | {"width": 24}),
            text,
            fusion,
        )
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and name != "log_scale":
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model.eval()


@pytest.fixture(params=["bert", "decoder"])
def model(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> VideoTextModel:
    return make_model(tokenizer, request.param)


def examples_of(videos: list[Path]) -> list[Example]:
    said = (
        "a red circle moves to the left",
        "a blue square",
        "a green star goes up",
        "a white ring stays still",
    )
    return [
        Example(id=str(i), video=str(path), texts=(text, *(["a star"] if i == 2 else [])))
        for i, (path, text) in enumerate(zip(videos, said, strict=True))
    ]


def match_one(model: VideoTextModel, tokenizer: Tokenizer, tokens: torch.Tensor, text: str) -> float:
    """One pair alone, straightforwardly: the probability's logit."""
    said = model.encode_text(tokenizer([text]))
    from harvest.interfaces import VideoFeatures

    return float(model.match(model.fuse(VideoFeatures(tokens[None], torch.empty(0)), said), said)[0, 1])


# ---- retrieval ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_every_pair_is_read_as_if_alone(
    model: VideoTextModel, tokenizer: Tokenizer, videos: list[Path]
) -> None:
    examples = examples_of(videos)
    found = embed_videos(model, examples, with_tokens=True)
    texts = [text for example in examples for text in example.texts]
    is_asked = torch.rand(5, 4, generator=torch.Generator().manual_seed(0)) < 0.6
    read = read_pairs(Evaluation(model, tokenizer, examples), texts, found, is_asked)
    assert len(read.logits) == int(is_asked.sum())
    for text, video, logits in zip(read.texts.tolist(), read.videos.tolist(), read.logits, strict=True):
        assert is_asked[text, video]
        wanted = match_one(model, tokenizer, found.tokens[video], texts[text])
        assert float(logits[1]) == pytest.approx(wanted, abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
def test_reranked_figures_by_brute_force(
    model: VideoTextModel, tokenizer: Tokenizer, videos: list[Path], top_k: int
) -> None:
    examples = examples_of(videos)
    found = embed_videos(model, examples, with_tokens=True)
    texts, owner = [], []
    for row, example in enumerate(examples):
        texts += example.texts
        owner += [row] * len(example.texts)
    cosine = cosines(embed_texts(model, tokenizer, texts), found.pooled)
    pairs = torch.tensor([[match_one(model, tokenizer, t, text) for t in found.tokens] for text in texts])

    def places(cosine_row: torch.Tensor, match_row: torch.Tensor) -> list[int]:
        near = cosine_row.argsort(descending=True).tolist()
        return sorted(near[:top_k], key=lambda i: -float(match_row[i])) + near[top_k:]

    t2v, v2t = reranked_ranks(
        Evaluation(model, tokenizer, examples),
        texts,
        found,
        embed_texts(model, tokenizer, texts),
        torch.tensor(owner),
        top_k=top_k,
    )
    for row in range(5):
        assert t2v.expected()[row] == 1 + places(cosine[row], pairs[row]).index(owner[row])
    for video in range(4):
        order = places(cosine[:, video], pairs[:, video])
        assert v2t.expected()[video] == 1 + min(order.index(i) for i in range(5) if owner[i] == video)
    result = evaluate(model, tokenizer, examples, task=RetrievalTask(rerank_top_k=top_k))
    assert result.metrics["t2v_r1.reranked"] == float(t2v.hits_at(1).mean())
    assert result.metrics["t2v_r1"] == float(
        ranks(cosine, torch.tensor(owner)[:, None] == torch.arange(4)).hits_at(1).mean()
    )
    assert "matching head" in result.protocol


def test_defect_28_what_is_not_reranked_keeps_its_order() -> None:
    """In the reference all of it is -100 (at W ranks -100 W): ties among everything behind the first k."""
    cosine = torch.tensor([[0.9, 0.5, 0.4, -0.3]])
    matches = torch.tensor([[-7.0, -3.0, 0.0, 0.0]])
    scores = reranked(cosine, matches, best(cosine, 2))
    assert scores.argsort(descending=True).tolist() == [[1, 0, 2, 3]]
    assert len(scores.unique()) == 4


@pytest.mark.skipif(not (SHARED / "fixtures").is_dir(), reason="no shared fixtures")
def test_the_reference_s_reranking() -> None:
    """`umt_stage2: eval.*_rerank`: -100 where the reference did not look."""
    from test_parity_umt2 import load

    fixture = load_file(SHARED / "fixtures" / "umt_stage2.safetensors")
    model, _, _ = load(fixture, "sd.", text_head_width=12)
    with torch.no_grad():
        video = model.encode_video(fixture["image"])
        text = model.encode_text(fixture["input_ids"])
    cosine = text.pooled @ video.pooled.T
    one_by_one = torch.arange(4)
    found = Embeddings(video.pooled, one_by_one, one_by_one, {}, video.tokens)

    class Ids:
        def __call__(self, texts: list[str]) -> torch.Tensor:
            return fixture["input_ids"][[int(text) for text in texts]]

    for wanted, is_chosen in (
        (fixture["eval.t2i_rerank"], best(cosine, 2)),
        (fixture["eval.i2t_rerank"].T, best(cosine.T, 2).T),
    ):
        assert torch.equal(wanted != -100, is_chosen)
        read = read_pairs(Evaluation(model, Ids(), []), list("0123"), found, is_chosen)
        ours = torch.full_like(wanted, -100)
        ours[read.texts, read.videos] = read.logits[:, 1]
        torch.testing.assert_close(ours, wanted, atol=2e-5, rtol=1e-5)


# ---- multiple choice ---------------------------------------------------------------------------------------------


@torch.no_grad()
def test_choice_by_the_matching_head(model: VideoTextModel, tokenizer: Tokenizer, videos: list[Path]) -> None:
    options = (("a red circle", "a blue square", "a star"), ("a ring", "a circle"), ("a star", "a red star"))
    examples = [
        Example(id=str(i), video=str(videos[i % 2]), texts=texts, label=i % 2)
        for i, texts in enumerate(options)
    ]
    result = evaluate(model, tokenizer, examples, task=MultipleChoiceTask(matching=True))
    found = embed_videos(model, examples, with_tokens=True)
    scale = float(model.log_scale.exp())
    right = {"matching": 0.0, "mixture": 0.0}
    for place, example in enumerate(examples):
        row = int(found.row[place])
        said = model.encode_text(tokenizer(list(example.texts)))
        from harvest.interfaces import VideoFeatures

        shown = VideoFeatures(found.tokens[row : row + 1], torch.empty(0))
        match = model.match(model.fuse(shown, said), said).softmax(dim=1)[:, 1]
        near = (said.pooled @ found.pooled[row] * scale).softmax(dim=0)
        right["matching"] += float(match.argmax() == example.label) / 3
        right["mixture"] += float((0.7 * match + 0.3 * near).argmax() == example.label) / 3
    for name, value in right.items():
        assert result.metrics[f"accuracy.{name}"] == pytest.approx(value)
        assert f"accuracy.{name}" in result.intervals
    assert "accuracy" in result.metrics and "0.7" in result.protocol


def test_models_without_a_matching_head_say_so(world) -> None:
    for task in (RetrievalTask(rerank_top_k=2), MultipleChoiceTask(matching=True)):
        examples = [dataclasses.replace(e, texts=("a", "b"), label=0) for e in world.examples]
        with pytest.raises(HarvestError, match="no matching head"):
            evaluate(world.model, world.tokenizer, examples, task=task)


# ---- answers -----------------------------------------------------------------------------------------------------


def questions(videos: list[Path]) -> list[Example]:
    answers = ("red", "very dark blue", "the shape is red", "blue")
    return [
        Example(id=str(i), video=str(path), question="which colour?", answer=answer)
        for i, (path, answer) in enumerate(zip(videos, answers, strict=True))
    ]


@torch.no_grad()
@pytest.mark.parametrize("top_k", [2, 128])
def test_answers_are_ranked_by_the_likelihood_of_all_their_words(
    model: VideoTextModel, tokenizer: Tokenizer, videos: list[Path], top_k: int
) -> None:
    model, _ = with_answers(model)
    examples = questions(videos)
    answers = ["red", "very dark blue", "the shape is red", "blue"]
    ids = encode_answers(tokenizer, model.config.text_tower, answers)
    text = model.encode_text(tokenizer(["which colour?"] * 4))
    frames = [read_clip(e.video, num_frames=4, image_size=32).frames for e in examples]
    states = model.fuse(encode_clips(model, torch.stack(frames)), text)
    found = rank_answers(model, states, text, ids, top_k=top_k)
    assert (found > float("-inf")).sum(dim=1).tolist() == [min(top_k, 4)] * 4
    for question in range(4):
        for number in range(4):
            words = ids.ids[number][ids.mask[number]]
            total, first = 0.0, 0.0
            for place in range(1, len(words)):  # word after word, from the start
                one = type(text)(*(part[question : question + 1] for part in text))
                scores = model.decode_answers(states[question : question + 1], one, words[None, :place])[
                    0, -1
                ]
                log_prob = float(scores.log_softmax(dim=0)[words[place]])
                first = first or log_prob
                total += log_prob
            if found[question, number] > float("-inf"):
                assert float(found[question, number]) == pytest.approx(total, abs=1e-4)
    result = evaluate(model, tokenizer, examples, task="qa")
    if top_k == 128:
        right = (found.argmax(dim=1) == torch.arange(4)).float().mean()
        assert result.metrics["accuracy"] == pytest.approx(float(right))
    assert result.counts["answers"] == 4 and "word by word" in result.protocol
    unlisted = evaluate(model, tokenizer, examples, task="qa", names=["red", "blue"])
    assert unlisted.counts["questions_with_unlisted_answer"] == 2


@pytest.mark.skipif(not (SHARED / "fixtures").is_dir(), reason="no shared fixtures")
@torch.no_grad()
def test_defect_5_the_first_word_counts_once() -> None:
    """`umt_qa_mc: rank.*`: the order of the reference changes by its double count; ours is the one without."""
    from test_parity_umt2 import load

    fixture = load_file(SHARED / "fixtures" / "umt_qa_mc.safetensors")
    meta = json.loads((SHARED / "fixtures" / "umt_qa_mc_meta.json").read_text())
    model, _, _ = load(fixture, "sd.", head_width=12)
    text = model.encode_text(fixture["q.input_ids"])
    states = model.fuse(model.encode_video(fixture["image"]), text)
    ids = fixture["cand.input_ids"]
    found = rank_answers(model, states, text, AnswerIds(ids, ids != 0), top_k=128)
    torch.testing.assert_close(found[0], -fixture["rank.seq_nll_q0"], atol=2e-5, rtol=1e-5)
    order = found[0].argsort(descending=True).tolist()
    assert order == meta["rank_q0_without_double_count"] != meta["rank_q0_as_coded"]


def test_defect_1_questions_run_from_training_to_scores(
    model: VideoTextModel, tokenizer: Tokenizer, videos: list[Path]
) -> None:
    """Every question-answering run of the reference dies with a TypeError."""
    from harvest.interfaces import Batch
    from harvest.objectives.answer_decoding import AnswerDecoding, AnswerDecodingConfig

    model, new = with_answers(model)
    # The video is wider than the text: what reads it is new, all the rest starts from the fusion.
    assert new and all("video.key_value." in name or "video_in." in name for name in new)
    answers = encode_answers(tokenizer, model.config.text_tower, ["red", "very dark blue", "blue"])
    objective = AnswerDecoding(AnswerDecodingConfig(drop_path=0.1), model, answers, seed=0).train()
    ids = tokenizer(["which colour?", "the shape is"])[:, None]
    batch = Batch(
        torch.randint(256, (2, 4, 3, 32, 32), dtype=torch.uint8),
        ids,
        torch.arange(2),
        ids[..., 0],
        torch.tensor([1, 0]),
    )
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(10):
        loss = objective(batch, 0).total
        loss.backward()
        assert all((p.grad is not None) == p.requires_grad for p in objective.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_answers_that_cannot_be_said(tokenizer: Tokenizer, model: VideoTextModel) -> None:
    with pytest.raises(HarvestError, match="has no words"):
        encode_answers(tokenizer, model.config.text_tower, ["red", " "])
    with pytest.raises(HarvestError, match="too long"):
        encode_answers(tokenizer, model.config.text_tower, ["red " * 30])
