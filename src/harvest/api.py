"""What one does with a model, in one object: `harvest.load` opens it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from harvest.data.show import show
from harvest.evaluation import EvalSettings
from harvest.evaluation.clips import evaluating
from harvest.evaluation.embed import (
    Embeddings,
    Mode,
    cosines,
    default_frames,
    embed_texts,
    embed_videos,
    encode_clips,
    mode_of,
)
from harvest.evaluation.matching import need_matching, read_pairs, similarity_scale
from harvest.evaluation.task import Evaluation
from harvest.evaluation.tasks.question_answering import way_of_asking
from harvest.evaluation.tasks.recognition import TEMPLATES, embed_classes
from harvest.evaluation.word_filling import fill_mask, likeliest_words
from harvest.interfaces import Example, HarvestError
from harvest.model import prompt
from harvest.model.folder import Unfilled
from harvest.model.importing.pretrained import load_pretrained
from harvest.model.importing.tables import ImportReport
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_text import VideoTextModel
from harvest.parallel import Precision
from harvest.tokens import Selector, see

Source = str | Path


class VideoText:
    """A video-text model with its tokenizer.

    >>> model = harvest.load("runs/demo/model")                                   # doctest: +SKIP
    >>> videos = model.embed_videos(["a.mp4", "b.mp4"])                           # doctest: +SKIP
    >>> texts = model.embed_texts(["a red circle moves to the left"])             # doctest: +SKIP
    >>> model.similarity(texts, videos)                                           # doctest: +SKIP

    Vectors are of unit length, fp32 and on the CPU, whatever the model computes in. A file that cannot be read raises
    HarvestError with its name.
    """

    def __init__(
        self,
        model: VideoTextModel,
        tokenizer: Tokenizer,
        *,
        mode: Mode = "video",
        report: ImportReport | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.mode: Mode = mode
        self.report = report
        """What was used, ignored and new of the source, and what had to be assumed."""
        self.precision: Precision = "fp32"

    @property
    def num_frames(self) -> int:
        """The frames that a video is shown with."""
        return default_frames(self.model, self.mode)

    @property
    def image_size(self) -> int:
        """The side of a frame, in pixels; frames of any size become such squares as the model was trained."""
        return self.model.config.video.image_size

    @property
    def embed_dim(self) -> int:
        """The entries of a vector."""
        return self.model.config.text_tower.embed_dim

    @property
    def device(self) -> torch.device:
        return self.model.log_scale.device

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> VideoText:
        """Compute on another device, and in `torch.float32` or `torch.bfloat16` (by autocast); returns itself."""
        precisions: dict[torch.dtype, Precision] = {torch.float32: "fp32", torch.bfloat16: "bf16"}
        if dtype is not None and dtype not in precisions:
            raise HarvestError(f"dtype: expected torch.float32 or torch.bfloat16, got {dtype}")
        if device is not None:
            self.model.to(device)
        if dtype is not None:
            self.precision = precisions[dtype]
        return self

    # --- vectors -------------------------------------------------------------------------------------------------

    def embed_videos(
        self,
        paths: Sequence[Source],
        *,
        budget: int | None = None,
        selector: Selector = "motion",
        dim: int | None = None,
        batch_size: int = 16,
        workers: int = 0,
    ) -> Tensor:
        """Unit vectors of whole videos, fp32 `[len(paths), E]`.

        `budget` is how many tubelets of each video are seen, chosen as `selector` says; None sees all. `dim` is
        the number of first entries that are kept, for models trained with nested sizes: give `embed_texts` the same.
        """
        found = self._embed(
            _list_of(paths, "embed_videos", "paths"),
            budget=budget,
            selector=selector,
            dim=dim,
            batch_size=batch_size,
            workers=workers,
        )
        return found.pooled[found.row]

    def stream_videos(
        self, paths: Sequence[Source], *, batch_size: int = 16, workers: int = 0
    ) -> Iterator[tuple[Source, Tensor | HarvestError]]:
        """Each path with its unit vector `[E]`, or with why it cannot be read, for collections larger than memory."""
        for start in range(0, len(paths), batch_size):
            some = paths[start : start + batch_size]
            examples = [Example(id=str(n), video=str(path)) for n, path in enumerate(some)]
            try:
                found = self._read(examples, batch_size=batch_size, workers=workers)
            except HarvestError as error:  # none of them could be read
                yield from ((path, error) for path in some)
                continue
            for n, path in enumerate(some):
                row = int(found.row[n])
                yield path, found.pooled[row] if row >= 0 else HarvestError(found.broken[str(n)])

    def embed_images(self, images: Sequence[Source | Tensor], *, batch_size: int = 64) -> Tensor:
        """Unit vectors of pictures, files or uint8 `[3, H, W]`, fp32 `[len(images), E]`: clips of one frame."""
        _list_of(images, "embed_images", "pictures")
        return self._encode(images, num_frames=1, batch_size=batch_size)

    def embed_frames(self, clips: Sequence[Tensor], *, batch_size: int = 16) -> Tensor:
        """Unit vectors of decoded clips, each uint8 `[T, 3, H, W]` of any T, H and W: fp32 `[len(clips), E]`.

        Of more frames than `num_frames` those in the middle of equal segments are seen, as of files.
        """
        for clip in clips:
            if clip.ndim != 4:
                raise HarvestError(f"expected frames uint8 [T, 3, H, W], got {clip.dtype} {list(clip.shape)}")
        return self._encode(clips, num_frames=self.num_frames, batch_size=batch_size)

    def embed_texts(self, texts: Sequence[str], *, dim: int | None = None) -> Tensor:
        """Unit vectors of sentences, fp32 `[len(texts), E]`, or their first `dim` entries."""
        _list_of(texts, "embed_texts", "sentences")
        return embed_texts(self.model, self.tokenizer, texts, precision=self.precision, dim=dim)

    # --- what vectors and heads say ------------------------------------------------------------------------------

    def similarity(self, texts: Tensor, videos: Tensor) -> Tensor:
        """Cosines of vectors `[Q, E]` and `[n, E]`, fp32 `[Q, n]`, from -1 to 1."""
        return cosines(texts, videos)

    def classify(
        self, paths: Sequence[Source], names: Sequence[str], *, templates: Sequence[str] = TEMPLATES
    ) -> Tensor:
        """How likely each name is of each video, fp32 `[len(paths), len(names)]`, without training: rows sum to 1.

        Names are put into `templates` at {} and the vectors of a name's sentences averaged.
        """
        _list_of(names, "classify", "names")
        classes = embed_classes(
            self.model, self.tokenizer, names, templates=templates, precision=self.precision
        )
        scores = similarity_scale(self.model) * self.similarity(self.embed_videos(paths), classes)
        return scores.softmax(dim=1)

    def rerank(self, sentence: str, paths: Sequence[Source]) -> Tensor:
        """How well a sentence and each video go together, read side by side by the matching head: logits `[len(paths)]`.

        The head's log-odds and the scaled cosine, added. HarvestError for a model without such a head.
        """
        need_matching(self.model)
        examples, settings = _examples(_list_of(paths, "rerank", "paths")), self._settings
        given = Evaluation(self.model, self.tokenizer, examples, settings)
        videos = given.embed_videos(with_tokens=True)
        _check_read(videos, len(examples))
        asked = torch.ones(1, len(videos.pooled), dtype=torch.bool)
        logits = read_pairs(given, [sentence], videos, asked).logits
        cosine = self.similarity(self.embed_texts([sentence]), videos.pooled)[0]
        return (logits[:, 1] - logits[:, 0] + similarity_scale(self.model) * cosine)[videos.row]

    def answer(
        self, path: Source, question: str, answers: Sequence[str] | None = None, *, most: int = 5
    ) -> list[tuple[str, float]]:
        """The `most` likeliest answers to a question about a video, with their scores, the likeliest first.

        From a list of `answers`, by log-probability; without one, single words that the fusion decoder fills in at
        the place of the answer (or at the question's own `[mask]`), by probability.
        """
        frames = self._shown(path, self.num_frames)
        if answers is None:
            sentence = prompt.prompt(question)
            return likeliest_words(
                self.model,
                self.tokenizer,
                frames,
                sentence,
                most=most,
                mode=self.mode,
                precision=self.precision,
            )[0]
        listed = list(dict.fromkeys(_list_of(answers, "answer", "answers")))
        example = Example(id="question", video=str(path), question=question)
        given = Evaluation(self.model, self.tokenizer, [example], self._settings, listed)
        with evaluating(self.model, self.precision):
            scores = way_of_asking(given, listed)[0]([question], given.encode(frames[None]), [0])[0].float()
        best = scores.topk(min(most, len(listed)))
        return [
            (listed[n], score) for n, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def fill_mask(self, path: Source, sentence: str) -> list[tuple[str, float]]:
        """The likeliest word, with its probability, for each `[mask]` of a sentence about a video."""
        frames = self._shown(path, self.num_frames)
        return fill_mask(
            self.model, self.tokenizer, frames, sentence, mode=self.mode, precision=self.precision
        )

    # --- inside --------------------------------------------------------------------------------------------------

    @property
    def _settings(self) -> EvalSettings:
        return EvalSettings(image=self.mode == "image", precision=self.precision, workers=0)

    def _read(self, examples: Sequence[Example], **how: Any) -> Embeddings:
        return embed_videos(self.model, examples, mode=self.mode, precision=self.precision, **how)

    def _embed(
        self, paths: Sequence[Source], *, budget: int | None, selector: Selector, **how: Any
    ) -> Embeddings:
        found = self._read(_examples(paths), selection=see(budget, selector), **how)
        _check_read(found, len(paths))
        return found

    def _shown(self, clip: Source | Tensor, num_frames: int) -> Tensor:
        return show(clip, num_frames=num_frames, **self.model.config.video.squares)

    def _encode(self, clips: Sequence[Source | Tensor], *, num_frames: int, batch_size: int) -> Tensor:
        parts = [torch.empty(0, self.embed_dim)]
        for start in range(0, len(clips), batch_size):
            squares = [self._shown(clip, num_frames) for clip in clips[start : start + batch_size]]
            features = encode_clips(
                self.model, torch.stack(squares), mode=self.mode, precision=self.precision
            )
            parts.append(features.pooled.float().cpu())
        return torch.cat(parts)


def _list_of(values: Any, method: str, what: str) -> Any:
    """A list, not a single one, whose letters would be taken for many."""
    if isinstance(values, str | Path):
        raise HarvestError(f"{method} takes a list of {what}: [{str(values)!r}]")
    return values


def _examples(paths: Sequence[Source]) -> list[Example]:
    return [Example(id=str(path), video=str(path)) for path in paths]


def _check_read(found: Embeddings, count: int) -> None:
    if found.broken:
        name, reason = next(iter(found.broken.items()))
        raise HarvestError(f"{len(found.broken)} of {count} videos cannot be read; {name}: {reason}")


def load(
    source: Source,
    *,
    device: str | torch.device | Literal["auto"] = "auto",
    offline: bool = False,
    **options: Any,
) -> VideoText:
    """Open a model by name: `mini-image`, a run, a model folder, a hub name, or any weights that `harvest convert` takes.

    >>> harvest.load("openai/clip-vit-base-patch16")                              # doctest: +SKIP
    >>> harvest.load("weights.pt", preset="open_clip", head_width=80)             # doctest: +SKIP

    `options` are those of `harvest convert` (`harvest.model.importing.assembly.ImportOptions`): image_size, num_frames,
    context_length, vocabulary, clean, fit, and for a single file preset, activation, head_width, text_head_width,
    video_pooling, text_pooling, causal. `device` "auto" is the GPU where there is one. An image model sees a video as
    the mean of its frames. Load or fail: HarvestError says what does not fit, `.report` what was assumed.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with Unfilled():
        model, tokenizer, report = load_pretrained(source, offline=offline, **options)
    return VideoText(model.to(device), tokenizer, mode=mode_of(model), report=report)
