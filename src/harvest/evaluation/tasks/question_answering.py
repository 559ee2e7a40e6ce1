"""Questions about clips, answered from a closed list: by filling a hidden word, by a decoder, or by a fine-tuned head.

Shapes: b questions asked at once, Q questions, A answers, m words of an answer, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from harvest.data.labels import plain_answer
from harvest.data.read_once import clip_numbers
from harvest.evaluation.answer_ranking import rank_answers
from harvest.evaluation.clips import Rows
from harvest.evaluation.metrics import choice_credit
from harvest.evaluation.result import Credits, Result
from harvest.evaluation.task import Evaluation
from harvest.evaluation.word_filling import hidden_word_scores, masked_ids, need_fusion
from harvest.interfaces import Example, HarvestError, VideoFeatures
from harvest.model import prompt
from harvest.model.answers import encode_answers
from harvest.model.heads import AnswerHead, answer_features

TOP_K = 128
"""Answers that a decoder scores in full, those with the likeliest first words; of a shorter list, all."""

Ask = Callable[[list[str], VideoFeatures, list[int]], Tensor]
"""Scores `[b, A]` of questions, each about one clip of a batch."""


@dataclass(frozen=True)
class QuestionAnsweringTask:
    """Answer `Example.question` with one of a list of answers: the names, or the distinct answers of the examples.

    With the head of a fine-tuned model, whose answers names must equal; else with the decoder that a model has
    (UMT, after ALBEF); else by filling `[mask]`: a question without it is asked as "Question: … Answer: [mask]", and
    an answer of m tokens is scored with m hidden words in its place, by the mean log-probability of its tokens, as a sum
    would prefer short answers. A right answer that is not on the list is never given, and counted.
    """

    name: ClassVar[str] = "qa"
    scored_by: ClassVar[str] = "answers from a list"
    benchmarks: ClassVar[tuple[str, ...]] = ("qa", "count")
    names_in: ClassVar[str] = "answers"
    reads_head: ClassVar[bool] = True
    reads_groups: ClassVar[bool] = False

    def check(self, given: Evaluation) -> None:
        if given.head is not None:
            if not isinstance(given.head, AnswerHead):
                raise HarvestError("this model's head classifies clips: it was not fine-tuned for questions")
            given.refuse(self, "image")  # the head reads clips as videos
            _check_answers(given.head, given.names)
        elif given.model.answers is None:
            need_fusion(given.model)
        check_answered(given.examples)

    def score(self, given: Evaluation) -> Result:
        examples = given.examples
        wanted = [plain_answer(example.answer or "") for example in examples]
        if isinstance(given.head, AnswerHead):
            listed = [plain_answer(name) for name in given.head.config.names]
        else:
            listed = _closed_list(wanted, given.names)
        ask, how = way_of_asking(given, listed)

        def encode(rows: Rows, video: Tensor) -> tuple[Tensor, Tensor]:
            """The questions about these clips, and their scores; as many at a time as there are clips."""
            features = given.encode(video) if given.head is None else given.features(video)
            pairs = [(clip, place) for clip, places in enumerate(rows) for place in places]
            scores = []
            for start in range(0, len(pairs), len(rows)):
                some = pairs[start : start + len(rows)]
                questions = [examples[place].question or "" for _, place in some]
                scores.append(ask(questions, features, [clip for clip, _ in some]))
            return torch.tensor([place for _, place in pairs]), torch.cat(scores)

        found = given.collect(encode)
        places, scores = found.parts
        return _report(given, scores, places.tolist(), wanted, listed, how.format(len(listed)), found.broken)


def check_answered(examples: Sequence[Example]) -> None:
    """Raise HarvestError at the first example without a question or an answer."""
    for example in examples:
        if not example.question or not example.answer:
            raise HarvestError(
                f"example {example.id!r} has no {'answer' if example.question else 'question'}: both are needed"
                " (tar shards hold none: give the manifest that they were prepared from)"
            )


def _closed_list(wanted: Sequence[str], answers: Sequence[str] | None) -> list[str]:
    """The distinct answers to choose from; None: those that are wanted."""
    listed = list(dict.fromkeys(plain_answer(answer) for answer in (wanted if answers is None else answers)))
    if len(listed) < 2:
        raise HarvestError(
            f"question answering needs two or more distinct answers to choose from, got {listed}"
        )
    return listed


def _check_answers(head: AnswerHead, answers: Sequence[str] | None) -> None:
    """The answers must be those of the head, in any order: with fewer the task would be another."""
    own = {plain_answer(name) for name in head.config.names}
    other = own if answers is None else {plain_answer(answer) for answer in answers}
    if other != own:
        raise HarvestError(
            f"the model was trained with {len(own)} answers, this set has {len(other)}, of which it knows "
            f"{len(other & own)}: another vocabulary is another task"
        )


def way_of_asking(given: Evaluation, listed: Sequence[str]) -> tuple[Ask, str]:
    """How scores come about, and the words for it."""
    if given.head is not None:
        return _by_head(given), "Fine-tuned head, one of {} answers"
    if given.model.answers is not None:
        return _by_decoder(given, listed), "The likeliest of {} answers, scored word by word by the decoder"
    return _by_filling(given, listed), (
        "The masked answer filled by the fusion decoder, one of {} answers by the mean log-probability of its tokens"
    )


def _by_head(given: Evaluation) -> Ask:
    head, model = given.head, given.model
    assert isinstance(head, AnswerHead)
    encode = prompt.QuestionTokenizer(model.config.text_tower, given.words)

    def ask(questions: list[str], video: VideoFeatures, clips: list[int]) -> Tensor:
        ids = encode(questions).to(video.tokens.device)
        return head(answer_features(model, video.rows(clips), ids)).float()

    return ask


def _by_decoder(given: Evaluation, listed: Sequence[str]) -> Ask:
    model = given.model
    candidates = encode_answers(given.words, model.config.text_tower, listed)

    def ask(questions: list[str], video: VideoFeatures, clips: list[int]) -> Tensor:
        text = model.encode_text(given.words(questions).to(video.tokens.device))
        states = model.fuse(video.rows(clips), text)
        scores = rank_answers(model, states, text, candidates, top_k=TOP_K)
        return scores.clamp(min=torch.finfo(scores.dtype).min)  # not scored in full: behind all others

    return ask


def _by_filling(given: Evaluation, listed: Sequence[str]) -> Ask:
    model = given.model
    answer_ids = [given.words.words(answer) for answer in listed]
    for answer, ids in zip(listed, answer_ids, strict=True):
        if not ids:
            raise HarvestError(f"the answer {answer!r} has no words that the tokenizer knows")
    by_length: dict[
        int, tuple[list[int], Tensor]
    ] = {}  # m to the answers of m tokens, and their ids [A_m, m]
    for length in sorted({len(ids) for ids in answer_ids}):
        numbers = [number for number, ids in enumerate(answer_ids) if len(ids) == length]
        by_length[length] = numbers, torch.tensor([answer_ids[number] for number in numbers])

    def ask(questions: list[str], video: VideoFeatures, clips: list[int]) -> Tensor:
        device = video.tokens.device
        scores = torch.empty(len(questions), len(listed), device=device)
        sentences: dict[str, int] = {}
        texts = [sentences.setdefault(prompt.prompt(question), len(sentences)) for question in questions]
        for length, (candidates, candidate_ids) in by_length.items():
            ids = [masked_ids(model, given.words, sentence, num_hidden=length) for sentence in sentences]
            found = hidden_word_scores(model, video, torch.stack(ids), clips, texts)
            log_probs = found.log_softmax(dim=-1).view(len(questions), length, -1)
            # [b, m, V] at the tokens of every answer: [b, A_m, m]
            chosen = log_probs[:, torch.arange(length, device=device), candidate_ids.to(device)]
            scores[:, candidates] = chosen.mean(dim=-1)
        return scores

    return ask


def _count_cut(given: Evaluation) -> int:
    """Questions that are too long, in the form in which they are asked."""
    questions = [example.question or "" for example in given.examples]
    if given.head is None and given.model.answers is not None:
        return given.count_cut(questions)
    return given.count_cut(questions, prompt.QuestionTokenizer(given.model.config.text_tower, given.words))


def _report(
    given: Evaluation,
    scores: Tensor,
    asked: Sequence[int],
    wanted: Sequence[str],
    listed: Sequence[str],
    how: str,
    broken: dict[str, str],
) -> Result:
    """The figures of questions answered from a list: `scores` `[Q, A]` of the examples `asked`."""
    clip = clip_numbers(given.examples)[list(asked)]
    answers = [wanted[place] for place in asked]
    numbers_of = {answer: number for number, answer in enumerate(listed)}
    label = torch.tensor([numbers_of.get(answer, -1) for answer in answers])
    is_listed = label >= 0
    credit = choice_credit(scores, label.clamp(min=0)) * is_listed
    top5 = choice_credit(scores, label.clamp(min=0), k=min(5, len(listed))) * is_listed
    commonest = Counter(answers).most_common(1)[0][1]
    counted = {}
    if all(answer.isdecimal() for answer in {*listed, *answers}):
        counted["squared_error"] = squared_error(scores, [int(a) for a in listed], [int(a) for a in answers])
    return Result(
        QuestionAnsweringTask.name,
        given.settings.mode,
        f"{how}; {given.shown}.",
        metrics={
            "accuracy": float(credit.mean()),
            "top5": float(top5.mean()),
            "chance": 1 / len(listed),
            "commonest_answer": commonest / len(answers),
            **counted,
        },
        counts={
            "questions": len(answers),
            "answers": len(listed),
            "questions_with_unlisted_answer": int((~is_listed).sum()),
            "videos": len(torch.unique(clip)),
            "texts_cut": _count_cut(given),
            "examples_missing": len(given.examples) - len(asked),
        },
        credits={"accuracy": Credits(credit, clip), "top5": Credits(top5, clip)},
        missing=broken,
    )


def squared_error(scores: Tensor, numbers: Sequence[int], wanted: Sequence[int]) -> float:
    """The mean over rows of `[Q, A]` of the squared distance of the best answer, a number, to the true one; of equally
    good ones their mean."""
    is_best = (scores == scores.amax(dim=1, keepdim=True)).double()
    distance = torch.tensor(numbers, dtype=torch.float64) - torch.tensor(wanted, dtype=torch.float64)[:, None]
    return float(((distance.square() * is_best).sum(dim=1) / is_best.sum(dim=1)).mean())
