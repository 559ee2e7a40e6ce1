"""What stands beside a video, in a tar or a folder: its caption in .txt or .json, its label in .cls."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from harvest.data.cells import TEXTS, label_of, texts_of, whole_text
from harvest.data.video import VideoError
from harvest.interfaces import HarvestError

SUFFIXES = ("mp4", "webm", "mkv", "avi", "mov", "m4v", "mpg", "mpeg", "ts", "flv", "3gp", "gif", "wmv")
"""Of videos, without the dot: of several members of a sample the first in this order is the video."""
_NAMES = (
    "vlm_caption",
    "cap",
    "prompt",
    *TEXTS,
)  # of captions in json; a title is no caption where one of these is


def json_of(data: bytes | None, id: str) -> Mapping[str, Any]:
    if data is None:
        return {}
    try:
        said = json.loads(decoded(data))
    except (ValueError, RecursionError):
        raise VideoError(id, "its json cannot be read") from None
    return said if isinstance(said, dict) else {}


def decoded(data: bytes) -> str:
    """Text of tars from everywhere: UTF-8, UTF-16 with its mark or else, as nearly always, Windows-1252."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def texts_beside(said: Mapping[str, Any], txt: bytes | None, id: str) -> tuple[str, ...]:
    """Of `texts` in the json, the .txt and the json's other names of captions the first that says something."""
    try:
        texts = texts_of(said.get("texts"))
        if not texts and txt is not None:
            texts = tuple(text for text in (whole_text(decoded(txt)),) if text)
        return texts or next((found for name in _NAMES if (found := texts_of(said.get(name)))), ())
    except HarvestError as error:
        raise VideoError(id, f"its caption cannot be read: {error}") from error


def label_beside(said: Mapping[str, Any], cls: bytes | None, id: str) -> int | None:
    try:
        return label_of(said.get("label") if cls is None else decoded(cls).strip())
    except HarvestError as error:
        if cls is None:
            return None  # in a json of others `label` may be a word
        raise VideoError(id, f"its .cls: {error}") from error
