"""Filling hidden words with the fusion decoder: question answering, masked captions, and single sentences.

Shapes: B clips, L words, m hidden words, V vocabulary, A answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from harvest.data.labels import plain_answer
from harvest.evaluation.embed import Clips, Mode, encode_clips, evaluating
from harvest.evaluation.metrics import choice_credit
from harvest.evaluation.result import Credits, Result
from harvest.interfaces import Example, HarvestError, TextFeatures, VideoFeatures
from harvest.model import prompt
from harvest.model.heads import AnswerHead, answer_features
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_text import VideoTextModel
from harvest.parallel import Precision, generator_for
from harvest.tokens import mask_text

_PAIRS = 64  # clips and captions fused at a time


class _Masked(NamedTuple):
    caption: str
    ids: Tensor  # [L], words hidden
    words: Tensor  # [L], the hidden words where they were, -1 elsewhere


def question_answering(
    model: VideoTextModel,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    clips: Clips,
    *,
    answers: Sequence[str] | None = None,
    precision: Precision = "fp32",
) -> Result:
    """Answer `Example.question` with one of a list of answers by filling `[mask]` in it.

    A question without `[mask]` is asked as "Question: … Answer: [mask]". An answer of m tokens is scored with m
    hidden words in the mask's place, by the mean log-probability of its tokens: a sum would prefer short answers.
    `answers` None takes the distinct answers of the examples. A right answer that is not on the list is never
    given, and counted.
    """
    need_fusion(model)
    check_answered(examples)
    wanted, listed = closed_list(examples, answers)
    answer_ids = [tokenizer.words(answer) for answer in listed]
    for answer, ids in zip(listed, answer_ids, strict=True):
        if not ids:
            raise HarvestError(f"the answer {answer!r} has no words that the tokenizer knows")
    by_length: dict[
        int, tuple[list[int], Tensor]
    ] = {}  # m to the answers of m tokens: numbers and ids [A_m, m]
    for length in sorted({len(ids) for ids in answer_ids}):
        numbers = [number for number, ids in enumerate(answer_ids) if len(ids) == length]
        by_length[length] = numbers, torch.tensor([answer_ids[number] for number in numbers])

    asked: list[int] = []
    parts: list[Tensor] = []
    stretch: list[int] = []
    for places, rows, stretches, video in asked_of(clips):
        questions = [prompt.prompt(examples[place].question or "") for place in places]
        scores = torch.empty(len(places), len(listed))
        for length, (candidates, candidate_ids) in by_length.items():
            log_probs = _hidden_log_probs(model, tokenizer, video, rows, questions, length, precision)
            # [b, m, V] at the tokens of every answer: [b, A_m, m]
            chosen = log_probs[:, torch.arange(length), candidate_ids]
            scores[:, candidates] = chosen.mean(dim=-1)
        parts.append(scores)
        asked += places
        stretch += stretches

    return report_answers(
        torch.cat(parts),
        asked,
        torch.tensor(stretch),
        examples=examples,
        clips=clips,
        wanted=wanted,
        listed=listed,
        how="The masked answer filled by the fusion decoder, one of {} answers by the mean log-probability of its tokens",
    )


def answer_with_head(
    model: VideoTextModel,
    tokenizer: Tokenizer,
    head: AnswerHead,
    examples: Sequence[Example],
    clips: Clips,
    *,
    answers: Sequence[str] | None = None,
    precision: Precision = "fp32",
) -> Result:
    """Answer `Example.question` with one of the answers a head was trained with; `clips` are not projected.

    `answers`, where given, must be the same list in whatever order: with fewer the task would be another. A right
    answer that is not on it is never given, and counted.
    """
    check_answered(examples)
    listed = [plain_answer(name) for name in head.config.names]
    if answers is not None and {plain_answer(answer) for answer in answers} != set(listed):
        other = {plain_answer(answer) for answer in answers}
        raise HarvestError(
            f"the model was trained with {len(listed)} answers, this set has {len(other)}, of which it knows "
            f"{len(other & set(listed))}: another vocabulary is another task"
        )
    wanted = [plain_answer(example.answer or "") for example in examples]
    encode = prompt.QuestionTokenizer(model.config.text_tower, tokenizer)
    asked: list[int] = []
    parts: list[Tensor] = []
    stretch: list[int] = []
    for places, rows, stretches, video in asked_of(clips):
        with evaluating(model, precision):
            ids = encode([examples[place].question or "" for place in places]).to(model.log_scale.device)
            shown = VideoFeatures(video.tokens[rows], video.pooled[rows])
            parts.append(head(answer_features(model, shown, ids)).float().cpu())
        asked += places
        stretch += stretches
    return report_answers(
        torch.cat(parts),
        asked,
        torch.tensor(stretch),
        examples=examples,
        clips=clips,
        wanted=wanted,
        listed=listed,
        how="Fine-tuned head, one of {} answers",
    )


def asked_of(clips: Clips) -> Iterator[tuple[list[int], list[int], list[int], VideoFeatures]]:
    """Who is asked, some at a time: places of examples, the rows of the features they are shown, their stretches."""
    num_clips = 0
    for users, video in clips.batches:
        pairs = [(clip, place) for clip, places in enumerate(users) for place in places]
        # As many questions at a time as there are clips in the batch, however many a clip has.
        for start in range(0, len(pairs), len(users)):
            some = pairs[start : start + len(users)]
            rows = [clip for clip, _ in some]
            yield [place for _, place in some], rows, [num_clips + clip for clip in rows], video
        num_clips += len(users)


def closed_list(examples: Sequence[Example], answers: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """The answer of every example, and the distinct answers to choose from (None: those of the examples)."""
    wanted = [plain_answer(example.answer or "") for example in examples]
    listed = list(dict.fromkeys(plain_answer(answer) for answer in (wanted if answers is None else answers)))
    if len(listed) < 2:
        raise HarvestError(
            f"question answering needs two or more distinct answers to choose from, got {listed}"
        )
    return wanted, listed


def report_answers(
    scores: Tensor,
    asked: list[int],
    stretch: Tensor,
    *,
    examples: Sequence[Example],
    clips: Clips,
    wanted: list[str],
    listed: list[str],
    how: str,
) -> Result:
    """The figures of questions answered from a list: `scores` `[Q, A]` of the examples `asked`, of the clips `stretch`."""
    given = [wanted[place] for place in asked]
    numbers_of = {answer: number for number, answer in enumerate(listed)}
    label = torch.tensor([numbers_of.get(answer, -1) for answer in given])
    is_listed = label >= 0
    credit = choice_credit(scores, label.clamp(min=0)) * is_listed
    top5 = choice_credit(scores, label.clamp(min=0), k=min(5, len(listed))) * is_listed
    commonest = Counter(given).most_common(1)[0][1]
    counted = {}
    if all(answer.isdecimal() for answer in {*listed, *given}):
        counted["squared_error"] = squared_error(scores, [int(a) for a in listed], [int(a) for a in given])
    return Result(
        task="qa",
        mode=clips.mode,
        protocol=(
            f"{how.format(len(listed))}; {clips.num_frames} frames a video, "
            f"{'each encoded alone (image baseline)' if clips.mode == 'image' else 'encoded together'}."
        ),
        metrics={
            "accuracy": float(credit.mean()),
            "top5": float(top5.mean()),
            "chance": 1 / len(listed),
            "commonest_answer": commonest / len(given),
            **counted,
        },
        counts={
            "questions": len(given),
            "answers": len(listed),
            "questions_with_unlisted_answer": int((~is_listed).sum()),
            "videos": len(torch.unique(stretch)),
            "examples_missing": len(examples) - len(asked),
        },
        credits={"accuracy": Credits(credit, stretch), "top5": Credits(top5, stretch)},
        missing=clips.broken,
    )


def squared_error(scores: Tensor, numbers: Sequence[int], wanted: Sequence[int]) -> float:
    """The mean over rows of `[Q, A]` of the squared distance of the best answer, a number, to the true one; of equally
    good ones their mean."""
    is_best = (scores == scores.amax(dim=1, keepdim=True)).double()
    distance = torch.tensor(numbers, dtype=torch.float64) - torch.tensor(wanted, dtype=torch.float64)[:, None]
    return float(((distance.square() * is_best).sum(dim=1) / is_best.sum(dim=1)).mean())


def masked_words(
    model: VideoTextModel,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    clips: Clips,
    *,
    ratio: float = 0.15,
    seed: int = 0,
    precision: Precision = "fp32",
) -> Result:
    """How many hidden words of captions are filled rightly with the right clip, and with another clip?

    Of every clip's first caption each word is hidden with probability `ratio`, at least one. The other clip is the
    next one of the list with a different caption, after the last the first.
    """
    need_fusion(model)
    asked: list[_Masked] = []
    right: list[Tensor] = []
    other: dict[int, Tensor] = {}
    waiting: list[int] = []  # clips whose other clip has not come yet
    opening: list[
        tuple[str, VideoFeatures]
    ] = []  # the first clip and the first that differs, for those left at the end

    for users, video in clips.batches:
        pairs: list[tuple[int, int]] = []  # clip of this batch, caption to fill with it as the other clip
        own: list[int] = []
        numbers: list[int] = []
        for clip, places in enumerate(users):
            captioned = [place for place in places if examples[place].texts]
            if not captioned:
                continue
            caption = examples[captioned[0]].texts[0]
            ids = tokenizer([caption])
            is_maskable = model.text.maskable(ids)
            masked, hidden = mask_text(
                ids,
                maskable=is_maskable,
                ratio=ratio,
                mask_id=model.mask_id,
                generator=generator_for(seed, captioned[0]),
            )
            if not hidden.any():
                continue
            pairs += [(clip, number) for number in waiting if asked[number].caption != caption]
            waiting = [number for number in waiting if asked[number].caption == caption]
            waiting.append(len(asked))
            if len(opening) < 2 and all(caption != known for known, _ in opening):
                opening.append((caption, video.rows(slice(clip, clip + 1))))
            own.append(clip)
            numbers.append(len(asked))
            asked.append(_Masked(caption, masked[0], ids[0].masked_fill(~hidden[0], -1)))
        right += _word_credit(model, video, own, [asked[number] for number in numbers], precision)
        found = _word_credit(
            model, video, [clip for clip, _ in pairs], [asked[number] for _, number in pairs], precision
        )
        other.update(zip((number for _, number in pairs), found, strict=True))

    if not asked:
        raise HarvestError("masked words need captions: no readable example has one")
    if len(opening) < 2:
        raise HarvestError(
            f"masked words need two clips with different captions; all are {asked[0].caption!r}"
        )
    for number in waiting:
        video = next(clip for caption, clip in opening if caption != asked[number].caption)
        other[number] = _word_credit(model, video, [0], [asked[number]], precision)[0]

    clip_of_word = torch.cat([torch.full((len(credit),), number) for number, credit in enumerate(right)])
    right_credit = torch.cat(right)
    other_credit = torch.cat([other[number] for number in range(len(asked))])
    return Result(
        task="masked_words",
        mode=clips.mode,
        protocol=(
            f"Words of each clip's first caption hidden with probability {ratio:g}, at least one, and filled by the "
            f"fusion decoder with the right clip and with the next clip of another caption; {clips.num_frames} "
            "frames a video."
        ),
        metrics={"right_clip": float(right_credit.mean()), "other_clip": float(other_credit.mean())},
        counts={
            "captions": len(asked),
            "hidden_words": len(right_credit),
            "examples_missing": sum(example.id in clips.broken for example in examples),
        },
        credits={
            "right_clip": Credits(right_credit, clip_of_word),
            "other_clip": Credits(other_credit, clip_of_word),
        },
        missing=clips.broken,
    )


def fill_mask(
    model: VideoTextModel,
    tokenizer: Tokenizer,
    video: Tensor,
    sentence: str,
    *,
    mode: Mode = "video",
    precision: Precision = "fp32",
) -> list[tuple[str, float]]:
    """The likeliest word, and its probability, at every `[mask]` of a sentence, shown one clip `[T, 3, H, W]`."""
    need_fusion(model)
    if not prompt.has_mask(sentence):
        raise HarvestError(f"there is no [mask] to fill in {sentence!r}")
    features = encode_clips(model, video[None], mode=mode, precision=precision)
    log_probs = _hidden_log_probs(model, tokenizer, features, [0], [sentence], 1, precision)[0]
    best = log_probs.max(dim=-1)
    return [
        (tokenizer.decode([number]), value)
        for number, value in zip(best.indices.tolist(), best.values.exp().tolist(), strict=True)
    ]


def masked_ids(model: VideoTextModel, tokenizer: Tokenizer, sentence: str, *, num_hidden: int = 1) -> Tensor:
    """Ids `[L]` of a sentence with `num_hidden` hidden words in place of every `[mask]` (`model.prompt`)."""
    return prompt.masked_ids(
        model.config.text_tower, tokenizer, sentence, mask_id=model.mask_id, num_hidden=num_hidden
    )


def need_fusion(model: VideoTextModel) -> None:
    """Raise HarvestError for a model that cannot fill in words."""
    if model.fusion is None:
        raise HarvestError(
            "this model cannot fill in words: it has no fusion decoder. Post-train it with masked words first "
            "(an image model has none), or ask for retrieval, choice or recognition, which need only embeddings."
        )


def check_answered(examples: Sequence[Example]) -> None:
    """Raise HarvestError at the first example without a question or an answer."""
    for example in examples:
        if not example.question or not example.answer:
            raise HarvestError(
                f"example {example.id!r} has no {'answer' if example.question else 'question'}: both are needed"
            )


def _hidden_log_probs(
    model: VideoTextModel,
    tokenizer: Tokenizer,
    video: VideoFeatures,
    clips: list[int],
    sentences: list[str],
    num_hidden: int,
    precision: Precision,
) -> Tensor:
    """Log-probabilities at the hidden words of sentences, row by row with clips of a batch: fp32 `[b, m, V]`, on the CPU.

    All sentences have equally many masks. A sentence is encoded once, however many clips it is asked of.
    """
    numbers: dict[str, int] = {}
    place = [numbers.setdefault(sentence, len(numbers)) for sentence in sentences]
    ids = torch.stack([masked_ids(model, tokenizer, sentence, num_hidden=num_hidden) for sentence in numbers])
    states_scores = _word_scores(model, video, clips, ids, place, precision)
    return states_scores.log_softmax(dim=-1).view(len(sentences), -1, states_scores.shape[-1])


def _word_scores(
    model: VideoTextModel,
    video: VideoFeatures,
    clips: list[int],
    text_ids: Tensor,
    texts: list[int],
    precision: Precision,
) -> Tensor:
    """Vocabulary scores at every hidden word, fp32 `[M, V]`, on the CPU: clip `clips[i]` with text `texts[i]`."""
    with evaluating(model, precision):
        device = model.log_scale.device
        text_ids = text_ids.to(device)
        text = model.encode_text(text_ids)
        rows = TextFeatures(*(part[texts] for part in text))
        states = model.fuse(video.rows(clips), rows)
        hidden = (text_ids[texts] == model.mask_id)[:, : states.shape[1]]  # padding common to all is left out
        return model.predict_words(states[hidden]).float().cpu()


def _word_credit(
    model: VideoTextModel, video: VideoFeatures, clips: list[int], asked: list[_Masked], precision: Precision
) -> list[Tensor]:
    """For every caption, shown the clip of the same place in `clips`, the credit, 0 to 1, at its hidden words."""
    credit: list[Tensor] = []
    for start in range(0, len(clips), _PAIRS):
        some = asked[start : start + _PAIRS]
        ids = torch.stack([masked.ids for masked in some])
        words = torch.stack([masked.words for masked in some])
        scores = _word_scores(
            model, video, clips[start : start + _PAIRS], ids, list(range(len(some))), precision
        )
        found = choice_credit(scores, words[words >= 0])
        credit += torch.split(found, (words >= 0).sum(dim=1).tolist())
    return credit
