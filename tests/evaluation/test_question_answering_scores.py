from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from harvest.data.video import read_clip
from harvest.evaluation import evaluate, fill_mask
from harvest.evaluation.settings import EvalSettings
from harvest.evaluation.tasks.masked_words import MaskedWordsTask
from harvest.evaluation.word_filling import masked_ids
from harvest.interfaces import Example, HarvestError
from harvest.model.folder import load_head, save_model
from harvest.model.heads import AnswerHead, HeadConfig, answer_features, answer_width
from harvest.model.tokenizer import Tokenizer
from harvest.parallel import generator_for
from harvest.tokens import mask_text

from .conftest import SENTENCES, World

ANSWERS = ["red", "blue", "very dark blue", "green star"]


@pytest.fixture
def questions(world: World) -> list[Example]:
    return [
        Example(e.id, e.video, question="the circle is [mask] and moves", answer=ANSWERS[n])
        for n, e in enumerate(world.examples)
    ]


def clip_of(world: World, number: int) -> torch.Tensor:
    return read_clip(world.examples[number].video, num_frames=4, image_size=32).frames


def mean_log_prob(world: World, video: torch.Tensor, sentence: str, answer: str) -> float:
    """The same score, written out for one clip and one answer."""
    words = world.tokenizer.words(answer)
    ids = masked_ids(world.model, world.tokenizer, sentence, num_hidden=len(words))[None]
    with torch.no_grad():
        states = world.model.fuse(world.model.encode_video(video[None]), world.model.encode_text(ids))
        log_probs = world.model.predict_words(
            states[(ids == world.model.mask_id)[:, : states.shape[1]]]
        ).log_softmax(dim=-1)
    return float(log_probs[range(len(words)), words].mean())


def test_masked_ids(world: World, tokenizer: Tokenizer) -> None:
    config = world.model.config.text
    plain = tokenizer(["a red circle moves"])[0]
    hidden = masked_ids(world.model, tokenizer, "a [MASK] circle moves")
    assert hidden.shape == plain.shape == (config.context_length,)
    assert (hidden != plain).nonzero().flatten().tolist() == [2]
    assert hidden[2] == world.model.mask_id
    twice = masked_ids(world.model, tokenizer, "a [mask] circle [mask]", num_hidden=2)
    assert (twice == world.model.mask_id).nonzero().flatten().tolist() == [2, 3, 5, 6]
    assert twice[7] == config.end_id


def test_long_sentences_keep_their_mask(world: World, tokenizer: Tokenizer) -> None:
    before = tokenizer.truncated
    for sentence in (
        "red " * 30 + "[mask] blue",
        "red [mask] " + "blue " * 30,
        "red " * 30 + "[mask] " + "blue " * 30,
    ):
        ids = masked_ids(world.model, tokenizer, sentence, num_hidden=3)
        assert (ids == world.model.mask_id).sum() == 3
        assert ids[0] == 0
        assert ids[-1] == world.model.config.text.end_id
    assert tokenizer.truncated == before + 3
    with pytest.raises(HarvestError, match="19 hidden words do not fit into the 18"):
        masked_ids(world.model, tokenizer, "[mask]", num_hidden=19)


def test_answers_of_several_words_against_loops(world: World, questions: list[Example]) -> None:
    assert {len(world.tokenizer.words(answer)) for answer in ANSWERS} == {1, 2, 3}
    right = []
    for number, example in enumerate(questions):
        scores = [
            mean_log_prob(world, clip_of(world, number), example.question or "", answer) for answer in ANSWERS
        ]
        right.append(max(range(4), key=scores.__getitem__))
    known = [
        dataclasses.replace(example, answer=ANSWERS[n].upper())
        for example, n in zip(questions, right, strict=True)
    ]
    wrong = [
        dataclasses.replace(example, answer=ANSWERS[(n + 1) % 4])
        for example, n in zip(questions, right, strict=True)
    ]
    for batch_size in (3, 8):
        for examples, expected in ((known, 1.0), (wrong, 0.0), (known[:2] + wrong[2:], 0.5)):
            result = evaluate(
                world.model,
                world.tokenizer,
                examples,
                task="qa",
                names=ANSWERS,
                settings=EvalSettings(batch_size=batch_size),
            )
            assert result.metrics["accuracy"] == expected
            assert result.metrics["top5"] == 1.0
            assert result.metrics["chance"] == 0.25
    assert result.counts["answers"] == 4


def test_several_questions_of_one_clip_and_the_default_prompt(world: World) -> None:
    video = world.examples[0].video
    sentences = ["Question: which colour? Answer: [mask]", "which colour?"]
    first, second = (
        evaluate(
            world.model,
            world.tokenizer,
            [
                Example("a", video, question=sentence, answer="red"),
                Example("b", video, question="[mask]", answer="blue"),
            ]
            * 2,
            task="qa",
        )
        for sentence in sentences
    )
    assert first == second
    assert first.counts["questions"] == 4
    assert first.counts["videos"] == 1
    assert first.metrics["commonest_answer"] == 0.5


def test_answers_not_listed_are_wrong_and_counted(world: World, questions: list[Example]) -> None:
    result = evaluate(world.model, world.tokenizer, questions, task="qa", names=["gold", "silver"])
    assert result.metrics["accuracy"] == 0.0
    assert result.counts["questions_with_unlisted_answer"] == 4


def test_missing_videos(world: World, questions: list[Example], tmp_path: Path) -> None:
    gone = Example("gone", str(tmp_path / "gone.mp4"), question="[mask]", answer="red")
    result = evaluate(world.model, world.tokenizer, [gone, *questions], task="qa")
    assert list(result.missing) == ["gone"]
    assert result.counts["questions"] == 4
    assert result.counts["examples_missing"] == 1


@pytest.fixture(scope="module")
def captions() -> list[str]:
    return [SENTENCES[0], SENTENCES[0], SENTENCES[1], SENTENCES[2]]


@pytest.fixture(scope="module")
def trained(world: World, captions: list[str]) -> World:
    """The model after learning the captions of the four clips by heart."""
    model = copy.deepcopy(world.model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    video = torch.stack([clip_of(world, number) for number in range(4)])
    ids = world.tokenizer(captions)
    maskable = model.text.maskable(ids)
    for step in range(100):
        masked, hidden = mask_text(
            ids, maskable=maskable, ratio=0.8, mask_id=model.mask_id, generator=generator_for(0, step)
        )
        states = model.fuse(model.encode_video(video), model.encode_text(masked))
        loss = nn.functional.cross_entropy(
            model.predict_words(states[hidden[:, : states.shape[1]]]), ids[hidden]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    examples = [dataclasses.replace(e, texts=(captions[n],)) for n, e in enumerate(world.examples)]
    return world._replace(model=model.eval(), examples=examples)


def test_masked_words_against_loops(trained: World, captions: list[str]) -> None:
    model, tokenizer = trained.model, trained.tokenizer
    others = [2, 2, 3, 0]  # the next clip with a different caption, after the last the first
    right: list[bool] = []
    other: list[bool] = []
    for number, caption in enumerate(captions):
        ids = tokenizer([caption])
        masked, hidden = mask_text(
            ids,
            maskable=model.text.maskable(ids),
            ratio=0.5,
            mask_id=model.mask_id,
            generator=generator_for(7, number),
        )
        for clip, credit in ((number, right), (others[number], other)):
            with torch.no_grad():
                video = model.encode_video(clip_of(trained, clip)[None])
                states = model.fuse(video, model.encode_text(masked))
                guessed = model.predict_words(states[hidden[:, : states.shape[1]]]).argmax(dim=-1)
            credit += (guessed == ids[hidden]).tolist()
    for batch_size in (1, 3, 4):
        result = evaluate(
            model,
            tokenizer,
            trained.examples,
            task=MaskedWordsTask(mask_ratio=0.5, seed=7),
            settings=EvalSettings(batch_size=batch_size),
        )
        assert result.metrics["right_clip"] == pytest.approx(sum(right) / len(right))
        assert result.metrics["other_clip"] == pytest.approx(sum(other) / len(other))
        assert result.counts["hidden_words"] == len(right)
    assert sum(right) > 0.8 * len(right)
    assert 0 < sum(other) < 0.8 * len(other)


def test_a_trained_model_fills_what_it_sees(trained: World) -> None:
    sentence = "a [mask] [mask] moves to the [mask]"
    seen = [
        [word for word, _ in fill_mask(trained.model, trained.tokenizer, clip_of(trained, n), sentence)]
        for n in (0, 2)
    ]
    assert seen == [["red", "circle", "left"], ["blue", "square", "right"]]
    examples = [
        Example("a", trained.examples[0].video, question="a [mask] moves to the left", answer="red circle"),
        Example("b", trained.examples[2].video, question="a [mask] moves to the right", answer="blue square"),
    ]
    assert evaluate(trained.model, trained.tokenizer, examples, task="qa").metrics["accuracy"] == 1.0


def test_masked_words_need_different_captions(world: World) -> None:
    same = [dataclasses.replace(example, texts=("a red circle",)) for example in world.examples]
    with pytest.raises(HarvestError, match="different captions"):
        evaluate(world.model, world.tokenizer, same, task="masked_words")
    bare = [dataclasses.replace(example, texts=()) for example in world.examples]
    with pytest.raises(HarvestError, match="no readable example has one"):
        evaluate(world.model, world.tokenizer, bare, task="masked_words")


def test_fill(world: World) -> None:
    filled = fill_mask(world.model, world.tokenizer, clip_of(world, 0), "a [mask] circle moves to the [mask]")
    assert len(filled) == 2
    for word, probability in filled:
        assert isinstance(word, str)
        assert 0 < probability <= 1
    with pytest.raises(HarvestError, match=r"no \[mask\]"):
        fill_mask(world.model, world.tokenizer, clip_of(world, 0), "a red circle")


def test_a_model_without_fusion_says_so(world: World, questions: list[Example]) -> None:
    for task, examples in (("qa", questions), ("masked_words", world.examples)):
        with pytest.raises(HarvestError, match="no fusion decoder"):
            evaluate(world.image_model, world.tokenizer, examples, task=task)  # type: ignore[arg-type]
    with pytest.raises(HarvestError, match="no fusion decoder"):
        fill_mask(world.image_model, world.tokenizer, clip_of(world, 0), "[mask]")


def test_bad_questions(world: World, questions: list[Example]) -> None:
    two_masks = [dataclasses.replace(example, question="[mask] or [mask]") for example in questions]
    with pytest.raises(HarvestError, match="this one has 2"):
        evaluate(world.model, world.tokenizer, two_masks, task="qa")
    with pytest.raises(HarvestError, match="two or more distinct answers"):
        evaluate(world.model, world.tokenizer, questions[:1], task="qa")
    with pytest.raises(HarvestError, match="'clip0' has no answer"):
        evaluate(world.model, world.tokenizer, [dataclasses.replace(questions[0], answer=None)], task="qa")


# ---------------------------------------------------------------------------------------------------------------
# With the head of a fine-tuned model


def answer_head(world: World, names: tuple[str, ...]) -> AnswerHead:
    torch.manual_seed(0)
    return AnswerHead(HeadConfig("answers", names, answer_width(world.model))).eval()


def test_a_head_answers(world: World) -> None:
    names = ("red", "dark blue", "green")
    head = answer_head(world, names)
    rows = [dataclasses.replace(e, texts=(), question="which colour?", answer="red") for e in world.examples]
    found = []
    for e in world.examples:
        clip = read_clip(e.video, num_frames=4, image_size=32).frames[None]
        ids = masked_ids(world.model, world.tokenizer, "Question: which colour? Answer: [mask]")[None]
        with torch.no_grad():
            features = answer_features(world.model, world.model.video_features(clip), ids)
            found.append(int(head(features).argmax()))
    rows = [dataclasses.replace(r, answer=names[n].upper()) for r, n in zip(rows, found, strict=True)]
    rows[3] = dataclasses.replace(rows[3], answer="violet")  # not in the vocabulary: wrong, and counted
    result = evaluate(world.model, world.tokenizer, rows, task="qa", head=head, names=names[::-1])
    assert result.metrics["accuracy"] == 0.75 and result.metrics["chance"] == pytest.approx(1 / 3)
    assert result.counts["questions_with_unlisted_answer"] == 1 and result.counts["videos"] == 4
    assert result.protocol.startswith("Fine-tuned head, one of 3 answers; 4 frames a video")
    with pytest.raises(HarvestError, match="trained with 3 answers, this set has 2, of which it knows 1"):
        evaluate(world.model, world.tokenizer, rows, task="qa", head=head, names=("red", "pink"))
    with pytest.raises(HarvestError, match="image: not a setting of qa"):
        evaluate(world.model, world.tokenizer, rows, task="qa", head=head, settings=EvalSettings(image=True))
    with pytest.raises(HarvestError, match="fine-tuned for it"):
        evaluate(world.model, world.tokenizer, rows, task="classification", head=head)


def test_a_head_of_answers_lives_in_the_folder(world: World, tmp_path: Path) -> None:
    head = answer_head(world, ("red", "blue"))
    save_model(tmp_path / "m", world.model, world.tokenizer, head=head)
    again = load_head(tmp_path / "m")
    features = torch.randn(2, head.config.width)
    assert again.config == head.config and again(features).equal(head(features))
