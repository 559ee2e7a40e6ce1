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
from harvest.evaluation.embed import Mode, default_frames, pool, read_clips
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
from harvest.interfaces import Example, HarvestError
from harvest.model.heads import AnswerHead, ClipHead, Head
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_text import NO_WORDS, VideoTextModel
from harvest.parallel import Precision
from harvest.progress import OnProgress, bar
from harvest.tokens import Selection, described

Task = Literal["retrieval", "choice", "recognition", "qa", "masked_words", "classification"]


def evaluate(
    model: VideoTextModel,
    tokenizer: Tokenizer | None,
    examples: Sequence[Example],
    *,
    task: Task,
    mode: Mode = "video",
    num_frames: int | None = None,
    batch_size: int = 32,
    precision: Precision = "fp32",
    workers: int = 0,
    selection: Selection | None = None,
    dim: int | None = None,
    progress: OnProgress | None = None,
    groups: Mapping[str, str] | None = None,
    class_names: Sequence[str] | None = None,
    templates: Sequence[str] = TEMPLATES,
    answers: Sequence[str] | None = None,
    with_dual_softmax: bool = False,
    rerank_top_k: int = 0,
    shared_captions: bool = False,
    with_matching: bool = False,
    mask_ratio: float = 0.15,
    seed: int = 0,
    head: Head | None = None,
    num_clips: int = 1,
    num_crops: int = 1,
    frame_order: FrameOrder = "forward",
) -> Result:
    """Evaluate without training on the task, or with the head of a fine-tuned model, on the device the model is on.

    Only "classification" does without a tokenizer: a model without a text tower has none.

    `mode` "image" is the image baseline: every frame alone, embeddings averaged. The video settings are those of
    `embed_videos` (`selection`: how many tubelets of a clip are seen, and which; `dim`: entries of an embedding);
    `progress` None shows a bar on a terminal. `frame_order` takes time from the clips (`motion_truth`). `with_dual_softmax`, `rerank_top_k` and `shared_captions` belong to "retrieval", `groups` and `with_matching` to "choice", `class_names` and
    `templates` to "recognition", `answers` and, if fine-tuned, `head` to "qa", `mask_ratio` and `seed` to "masked_words", `head` and the
    views, `num_clips` and `num_crops`, to "classification".
    """
    if task not in get_args(Task):
        raise HarvestError(f"unknown task {task!r}; there are {', '.join(get_args(Task))}")
    if dim is not None and task in ("qa", "masked_words"):
        raise HarvestError(f"dim shortens embeddings, and {task} compares none: it reads the fusion decoder")
    if rerank_top_k < 0 or (rerank_top_k and task != "retrieval") or (with_matching and task != "choice"):
        raise HarvestError(
            f"rerank_top_k, 0 or more, goes with retrieval and with_matching with choice; got {rerank_top_k} and "
            f"{with_matching} with {task}"
        )
    reads_pairs = rerank_top_k > 0 or with_matching
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

    settings: dict[str, Any] = {
        "num_frames": default_frames(model, mode) if num_frames is None else num_frames,
        "num_clips": num_clips,
        "num_crops": num_crops,
        "image_size": model.config.video.image_size,
        "precision": precision,
        "frame_order": frame_order,
    }
    if task == "recognition":
        settings["templates"] = list(templates)
    elif task == "retrieval":
        settings |= {"rerank_top_k": rerank_top_k, "shared_captions": shared_captions}
    elif task == "masked_words":
        settings |= {"mask_ratio": mask_ratio, "seed": seed}

    with ExitStack() as stack:
        if progress is None:
            progress = stack.enter_context(bar(f"evaluating {task}"))
        if task == "classification":
            if not isinstance(head, ClipHead) or mode == "image":
                raise HarvestError(
                    "classification needs the head of a model that was fine-tuned for it, which looks at clips as videos"
                )
            result = classification(
                model,
                head,
                examples,
                class_names=class_names,
                num_clips=num_clips,
                num_crops=num_crops,
                num_frames=num_frames,
                batch_size=batch_size,
                precision=precision,
                workers=workers,
                selection=selection,
                frame_order=frame_order,
                progress=progress,
            )
            return _with_settings(result, settings, selection, None)
        if tokenizer is None:  # all other tasks read words
            raise HarvestError(NO_WORDS)
        clips = read_clips(
            model,
            examples,
            mode=mode,
            num_frames=num_frames,
            batch_size=batch_size,
            precision=precision,
            workers=workers,
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
            with_matching=with_matching,
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
            with_dual_softmax=with_dual_softmax,
            rerank_top_k=rerank_top_k,
            shared_captions=shared_captions,
            precision=precision,
        )
    return _with_settings(result, settings, selection, dim)


def _with_settings(
    result: Result, settings: Mapping[str, Any], selection: Selection | None, dim: int | None
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
        settings={**settings, "seen": seen, "dim": dim, **result.settings},
    )
