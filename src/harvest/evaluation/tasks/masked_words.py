"""Hidden words of captions, predicted with the right clip and with another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor

from harvest.evaluation.clips import Rows, clip_batches, evaluating
from harvest.evaluation.metrics import choice_credit
from harvest.evaluation.result import Credits, Result
from harvest.evaluation.task import Evaluation
from harvest.evaluation.word_filling import hidden_word_scores, need_fusion
from harvest.interfaces import HarvestError, VideoFeatures
from harvest.parallel import generator_for, merge_over_ranks
from harvest.ranges import Range, check_ranges
from harvest.tokens import mask_text

_PAIRS = 64  # clips and captions fused at a time


class _Caption(NamedTuple):
    text: str
    ids: Tensor  # [L], words hidden
    words: Tensor  # [L], the hidden words where they were, -1 elsewhere


@dataclass(frozen=True)
class MaskedWordsTask:
    """How many hidden words of captions are filled rightly with the right clip, and with another clip?

    Of every clip's first caption each word is hidden with a probability, at least one. The other clip is the next one of
    the list with a different caption, after the last the first.
    """

    name: ClassVar[str] = "masked_words"
    scored_by: ClassVar[str] = "words filled in"
    benchmarks: ClassVar[tuple[str, ...]] = ()
    names_in: ClassVar[str] = ""
    reads_head: ClassVar[bool] = False
    reads_groups: ClassVar[bool] = False

    mask_ratio: Annotated[float, Range(above=0, most=1)] = 0.15
    """The probability that a word is hidden."""
    seed: int = 0
    """Of which words are hidden."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def check(self, given: Evaluation) -> None:
        need_fusion(given.model)

    def score(self, given: Evaluation) -> Result:
        captions: list[_Caption] = []
        right: dict[int, Tensor] = {}  # credits of a caption's hidden words, where this process computes them
        other: dict[int, Tensor] = {}
        waiting: list[int] = []  # captions whose other clip has not come yet
        opening: list[
            tuple[str, VideoFeatures | None]
        ] = []  # the first clip, and the first with another caption
        encoded: dict[
            int, VideoFeatures
        ] = {}  # batches of this process, by their first row, until they are scored
        broken: dict[str, str] = {}

        def encode(rows: Rows, video: Tensor) -> tuple[Tensor, ...]:
            encoded[rows[0][0]] = given.encode(video)
            return ()

        for rows, _ in clip_batches(given.model, given.examples, encode, given.reading, broken):
            video = encoded.pop(rows[0][0], None)  # None: another process scores this batch
            own: list[tuple[int, int]] = []  # clip of this batch, and its caption
            others: list[
                tuple[int, int]
            ] = []  # clip of this batch, and a caption to fill with it as the other clip
            for clip, places in enumerate(rows):
                caption = self._caption(given, places)
                if caption is None:
                    continue
                others += [(clip, number) for number in waiting if captions[number].text != caption.text]
                waiting = [number for number in waiting if captions[number].text == caption.text]
                waiting.append(len(captions))
                if len(opening) < 2 and all(caption.text != text for text, _ in opening):
                    shown = None if video is None else video.rows(slice(clip, clip + 1))
                    opening.append((caption.text, shown))
                own.append((clip, len(captions)))
                captions.append(caption)
            if video is not None:
                right |= _credits(given, video, own, captions)
                other |= _credits(given, video, others, captions)
        if not captions:
            raise HarvestError("masked words need captions: no readable example has one")
        if len(opening) < 2:
            raise HarvestError(
                f"masked words need two clips with different captions; all are {captions[0].text!r}"
            )
        last = captions[-1].text  # that of all captions that still wait
        first = next(clip for text, clip in opening if text != last)
        if first is not None:
            other |= _credits(given, first, [(0, number) for number in waiting], captions)
        return self._report(given, captions, merge_over_ranks(right), merge_over_ranks(other), broken)

    def _caption(self, given: Evaluation, places: Sequence[int]) -> _Caption | None:
        """The first caption of a clip with some of its words hidden; None where it has none that can be."""
        place = next((place for place in places if given.examples[place].texts), None)
        if place is None:
            return None
        text = given.examples[place].texts[0]
        ids = given.words([text])
        masked, hidden = mask_text(
            ids,
            maskable=given.model.text.maskable(ids),
            ratio=self.mask_ratio,
            mask_id=given.model.mask_id,
            generator=generator_for(self.seed, place),
        )
        return _Caption(text, masked[0], ids[0].masked_fill(~hidden[0], -1)) if hidden.any() else None

    def _report(
        self,
        given: Evaluation,
        captions: Sequence[_Caption],
        right: Mapping[int, Tensor],
        other: Mapping[int, Tensor],
        broken: Mapping[str, str],
    ) -> Result:
        num_captions = len(captions)
        caption_of = torch.cat([torch.full((len(right[n]),), n) for n in range(num_captions)])
        credits = {
            name: Credits(torch.cat([found[n] for n in range(num_captions)]), caption_of)
            for name, found in (("right_clip", right), ("other_clip", other))
        }
        return Result(
            self.name,
            given.settings.mode,
            f"Words of each clip's first caption hidden with probability {self.mask_ratio:g}, at least one, and filled by"
            " the fusion decoder with the right clip and with the next clip of another caption;"
            f" {given.reading.num_frames} frames a video.",
            metrics={name: float(credit.values.mean()) for name, credit in credits.items()},
            counts={
                "captions": num_captions,
                "hidden_words": len(caption_of),
                "texts_cut": given.count_cut(caption.text for caption in captions),
                "examples_missing": len(broken),
            },
            missing=broken,
            credits=credits,
        )


def _credits(
    given: Evaluation, video: VideoFeatures, pairs: Sequence[tuple[int, int]], captions: Sequence[_Caption]
) -> dict[int, Tensor]:
    """For the captions of pairs (clip of a batch, caption) the credit, 0 to 1, at each of their hidden words."""
    found: dict[int, Tensor] = {}
    for start in range(0, len(pairs), _PAIRS):
        some = pairs[start : start + _PAIRS]
        ids = torch.stack([captions[number].ids for _, number in some])
        words = torch.stack([captions[number].words for _, number in some])
        with evaluating(given.model, given.settings.precision):
            scores = hidden_word_scores(
                given.model, video, ids, [clip for clip, _ in some], list(range(len(some)))
            ).cpu()
        credit = choice_credit(scores, words[words >= 0])
        parts = torch.split(credit, (words >= 0).sum(dim=1).tolist())
        found |= {number: part for (_, number), part in zip(some, parts, strict=True)}
    return found
