"""Leakage: videos of a training set that a benchmark's test split holds too, by their ids."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from harvest.interfaces import Example, HarvestError

_YOUTUBE = re.compile(r"(?<![\w-])(?:v_)?([\w-]{11})(?![A-Za-z0-9-])")
_OTHER = re.compile(r"\b(?:video\d+|\d{5,})\b")


def video_ids(text: str) -> set[str]:
    """What may be the id of a video in a name, an id or an address: YouTube's eleven characters, numbers, `video12`.

    An id may be followed by `_` and times, as in `ID_000012_000022` and `ID_00:00:01.000_00:00:04.000`.
    """
    return {match[1] for match in _YOUTUBE.finditer(text) if _is_random(match[1])} | set(_OTHER.findall(text))


def _is_random(name: str) -> bool:
    """Not a word: eleven lower-case letters are one, ids have capitals or digits."""
    return not (name.isalpha() and (name.islower() or name.istitle()))


def without_videos_of(rows: Iterable[Example], path: Path) -> tuple[list[Example], set[str]]:
    """The rows whose video is not named in a benchmark's file, and the ids that are in both."""
    try:
        tested = video_ids(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise HarvestError(f"cannot read the ids to leave out from {path}: {error}") from error
    if not tested:
        raise HarvestError(f"{path} holds no ids of videos")
    kept: list[Example] = []
    shared: set[str] = set()
    for row in rows:
        both = tested & (video_ids(row.id) | video_ids(Path(row.video).name))
        shared |= both
        if not both:
            kept.append(row)
    return kept, shared
