"""What the demo's page shows of clips: filmstrips, hits of searches, words filled in."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import torch
from torch import Tensor

from harvest.data.miniworld import MOTIONS
from harvest.data.video import read_clip, write_pictures
from harvest.demo.page import Blank, Found, Guess, Search
from harvest.demo.scores import BLANKS, NUM_FOUND, Material, MiniWorldRow, Scores
from harvest.evaluation.word_filling import likeliest_words
from harvest.interfaces import Example
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_text import VideoTextModel
from harvest.parallel import Precision


def filmstrip(frames: Tensor) -> str:
    """Frames uint8 `[T, 3, H, W]` side by side, as the data: URI of a JPEG of twice their size.

    JPEG halves the resolution of colours, so that at twice the size every pixel keeps its own.
    """
    row = torch.cat(list(frames), dim=-1)  # [3, H, T * W]
    twice = row.repeat_interleave(2, -2).repeat_interleave(2, -1)
    return "data:image/jpeg;base64," + base64.b64encode(write_pictures(twice[None], quality=80)[0]).decode(
        "ascii"
    )


def show_searches(material: Material, image: Scores, video: Scores, *, image_size: int) -> list[Search]:
    examples = [row.example for row in material.retrieval]

    def found(order: Sequence[int], right: int) -> list[Found]:
        return [
            Found(_strip(examples[place], image_size), examples[place].texts[0], place == right)
            for place in order[:NUM_FOUND]
        ]

    searches = []
    for number, right in enumerate(material.queries):
        by_image, by_video = image.found[number].tolist(), video.found[number].tolist()
        searches.append(
            Search(
                sentence=examples[right].texts[0],
                image=found(by_image, right),
                video=found(by_video, right),
                image_rank=by_image.index(right) + 1,
                video_rank=by_video.index(right) + 1,
            )
        )
    return searches


def fill_blanks(
    model: VideoTextModel, tokenizer: Tokenizer, questions: Sequence[MiniWorldRow], precision: Precision
) -> list[Blank]:
    """The first questions of each kind, filled with their own clip and with that of the next one of their form and another answer."""
    if model.fusion is None:
        return []
    size, blanks = model.config.video.image_size, []
    for kind, number in BLANKS.items():
        rows = [row for row in questions if row.about["kind"] == kind]
        for place, own in enumerate(rows[:number]):
            asked = own.example
            others = [
                row
                for row in rows[place + 1 :] + rows[:place]
                if row.example.answer != asked.answer and _word_before(row.example) == _word_before(asked)
            ]
            if not others or not asked.question or not asked.answer:
                continue
            guesses = []
            for row in (own, others[0]):
                top = likeliest_words(
                    model, tokenizer, _frames(row.example, model), asked.question, most=3, precision=precision
                )[0]
                guesses.append([Guess(word, 100 * share, is_right(word, row)) for word, share in top])
            other = others[0].example
            blanks.append(
                Blank(
                    sentence=asked.question,
                    word=asked.answer,
                    own_strip=_strip(asked, size),
                    own=guesses[0],
                    other_strip=_strip(other, size),
                    other_sentence=(other.question or "").replace("[mask]", other.answer or ""),
                    other_word=other.answer or "",
                    other=guesses[1],
                )
            )
    return blanks


def is_right(word: str, row: MiniWorldRow) -> bool:
    """Whether a word says what the clip of a question shows: its answer, or a word that means the same there."""
    answer = row.example.answer
    phrases = {tuple(phrase.split()) for phrase in MOTIONS[row.about["motion"]].phrases}
    swapped = {
        tuple(word if part == answer else part for part in phrase) for phrase in phrases if answer in phrase
    }
    return word == answer or bool(swapped & phrases)


def _word_before(example: Example) -> str:
    """The word before the hidden one: questions that share it can be answered with each other's words."""
    return (example.question or "").split("[mask]")[0].split()[-1]


def _frames(example: Example, model: VideoTextModel) -> Tensor:
    video = model.config.video
    return read_clip(example.video, num_frames=video.num_frames, **video.squares).frames


def _strip(example: Example, image_size: int) -> str:
    return filmstrip(read_clip(example.video, num_frames=8, image_size=image_size).frames)
