"""One door to every evaluation: a model, a manifest and the name of a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Literal, get_args

from harvest.data.labels import check_labels, class_names_of
from harvest.data.sampling import FrameOrder
from harvest.evaluation.answer_ranking import answer_ranking
from harvest.evaluation.choice import check_options, choice
from harvest.evaluation.classification import classification
from harvest.evaluation.embed import default_frames, pool, read_clips
from harvest.evaluation.matching import need_matching
from harvest.evaluation.question_answering import (
    answer_with_head,
    check_answered,
    masked_words,
    need_fusion,
    question_answering,
)
from harvest.evaluation.recognition import TEMPLATES, recognition
from harvest.evaluation.result import Result
from harvest.evaluation.retrieval import retrieval
from harvest.evaluation.settings import DEFAULT, EvalSettings
from harvest.interfaces import Example, HarvestError, OnProgress
from harvest.model.heads import AnswerHead, ClipHead, Head
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_text import NO_TEXT_TOWER, VideoTextModel
from harvest.progress import bar
from harvest.tokens import Selection, described

Task = Literal["retrieval", "choice", "recognition", "qa", "masked_words", "classification"]

_VIEWS, _OF_RETRIEVAL = ("num_clips", "num_crops"), ("dual_softmax", "rerank_top_k")
_USELESS: dict[Task, tuple[str, ...]] = {
    "retrieval": (*_VIEWS, "matching"),
    "choice": (*_VIEWS, *_OF_RETRIEVAL),
    "recognition": (*_VIEWS, *_OF_RETRIEVAL, "matching"),
    # These read the fusion decoder, which compares no embeddings.
    "qa": (*_VIEWS, *_OF_RETRIEVAL, "matching", "dim"),
    "masked_words": (*_VIEWS, *_OF_RETRIEVAL, "matching", "dim"),
    # The head looks at clips as videos.
    "classification": (*_OF_RETRIEVAL, "matching", "dim", "image"),
}
"""Settings that a task has no use for."""


def evaluate(
    model: VideoTextModel,
    tokenizer: Tokenizer | None,
    examples: Sequence[Example],
    *,
    task: Task,
    settings: EvalSettings = DEFAULT,
    frame_order: FrameOrder = "forward",
    progress: OnProgress | None = None,
    groups: Mapping[str, str] | None = None,
    class_names: Sequence[str] | None = None,
    templates: Sequence[str] = TEMPLATES,
    answers: Sequence[str] | None = None,
    shared_captions: bool = False,
    mask_ratio: float = 0.15,
    seed: int = 0,
    head: Head | None = None,
) -> Result:
    """Evaluate without training on the task, or with the head of a fine-tuned model, on the device the model is on.

    Only "classification" does without a tokenizer: a model without a text tower has none.

    `frame_order` takes time from the clips (`motion_truth`); `progress` None shows a bar on a terminal.
    `shared_captions` belongs to "retrieval", `groups` to "choice", `class_names` and `templates` to "recognition",
    `answers` and, if fine-tuned, `head` to "qa", `mask_ratio` and `seed` to "masked_words", `head` to "classification".
    A setting that a task has no use for is refused.
    """
    if task not in get_args(Task):
        raise HarvestError(f"unknown task {task!r}; there are {', '.join(get_args(Task))}")
    settings.refuse(task, *_USELESS[task])
    mode, precision, selection, dim = settings.mode, settings.precision, settings.selection, settings.dim
    reads_pairs = settings.rerank_top_k > 0 or settings.matching
    if reads_pairs:
        need_matching(model)  # before the videos are encoded
    if task in ("qa", "masked_words"):
        if task == "masked_words" or model.answers is None:
            need_fusion(model)
        if task == "qa":
            check_answered(examples)
    elif task == "choice":
        check_options(examples)
    elif task == "recognition":
        class_names = class_names_of(examples) if class_names is None else class_names
        check_labels(examples, len(class_names))

    told: dict[str, Any] = {
        "num_frames": default_frames(model, mode) if settings.num_frames is None else settings.num_frames,
        "num_clips": settings.num_clips,
        "num_crops": settings.num_crops,
        "image_size": model.config.video.image_size,
        "precision": precision,
        "frame_order": frame_order,
    }
    if task == "recognition":
        told["templates"] = list(templates)
    elif task == "retrieval":
        told |= {"rerank_top_k": settings.rerank_top_k, "shared_captions": shared_captions}
    elif task == "masked_words":
        told |= {"mask_ratio": mask_ratio, "seed": seed}

    with ExitStack() as stack:
        if progress is None:
            progress = stack.enter_context(bar(f"evaluating {task}"))
        if task == "classification":
            if not isinstance(head, ClipHead):
                raise HarvestError("classification needs the head of a model that was fine-tuned for it")
            result = classification(
                model,
                head,
                examples,
                class_names=class_names,
                settings=settings,
                frame_order=frame_order,
                progress=progress,
            )
            return _with_settings(result, told, selection, None)
        if tokenizer is None:  # all other tasks read words
            raise HarvestError(NO_TEXT_TOWER)
        clips = read_clips(
            model,
            examples,
            mode=mode,
            num_frames=settings.num_frames,
            batch_size=settings.batch_size,
            precision=precision,
            workers=settings.workers,
            selection=selection,
            for_head=task == "qa" and head is not None,
            with_tokens=reads_pairs or task in ("qa", "masked_words"),
            frame_order=frame_order,
            progress=progress,
        )
        if task == "qa" and head is not None:
            if not isinstance(head, AnswerHead):
                raise HarvestError(
                    "this model's head tells classes of clips apart: it was not fine-tuned for questions"
                )
            result = answer_with_head(
                model, tokenizer, head, examples, clips, answers=answers, precision=precision
            )
        elif task == "qa":
            by = question_answering if model.answers is None else answer_ranking
            result = by(model, tokenizer, examples, clips, answers=answers, precision=precision)
        elif task == "masked_words":
            result = masked_words(
                model, tokenizer, examples, clips, ratio=mask_ratio, seed=seed, precision=precision
            )
        else:
            videos = pool(clips, num_examples=len(examples), dim=dim, with_tokens=reads_pairs)
    if task == "choice":
        result = choice(
            model,
            tokenizer,
            examples,
            videos,
            groups=groups,
            with_matching=settings.matching,
            precision=precision,
        )
    elif task == "recognition":
        result = recognition(
            model,
            tokenizer,
            examples,
            videos,
            class_names=class_names,
            templates=templates,
            precision=precision,
        )
    elif task == "retrieval":
        result = retrieval(
            model,
            tokenizer,
            examples,
            videos,
            with_dual_softmax=settings.dual_softmax,
            rerank_top_k=settings.rerank_top_k,
            shared_captions=shared_captions,
            precision=precision,
        )
    return _with_settings(result, told, selection, dim)


def _with_settings(
    result: Result, told: Mapping[str, Any], selection: Selection | None, dim: int | None
) -> Result:
    said = [result.protocol]
    if selection is not None:
        said.append(f"Of each clip {described(selection)}.")
    if dim is not None:
        said.append(f"The first {dim} entries of each embedding.")
    seen = None if selection is None else described(selection)
    return replace(
        result,
        protocol=" ".join(said),
        settings={**told, "seen": seen, "dim": dim, **result.settings},
    )
