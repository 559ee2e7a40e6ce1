"""What one cell of a table means: a caption, several of them, a time, a label, a path. Nothing is taken for text that is not.

Every function raises HarvestError with what was expected and what came; the caller adds the file and the row.
"""

from __future__ import annotations

import ast
import datetime
import decimal
import json
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from harvest.interfaces import HarvestError

TEXTS = (
    *("texts", "captions", "options", "choices", "caption", "text", "sentence", "sentences", "description"),
    *("label_or_caption", "title", "name"),
)
"""Names of columns, or keys, that hold captions: of several the first counts."""
_MAX_TEXT = 2**20  # characters
_MAX_LABEL = 2**20
_MISSING = {"nan", "NaN", "None", "null", "NULL", "<NA>"}  # what str() makes of a missing value
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:[.,]\d+)?)", re.ASCII)
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
_PAGES = re.compile(
    r"https?://(www\.|m\.)?(youtube\.com/(watch|shorts|embed)|youtu\.be/|vimeo\.com/\d+|dailymotion\.com/video/"
    r"|bilibili\.com/video/)",
    re.IGNORECASE,
)


def is_blank(value: Any) -> bool:
    """Nothing, NaN, spaces, or what is written for a missing value: nan, None, null."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    return isinstance(value, str) and (not value.strip() or value.strip() in _MISSING)


def whole_text(text: str) -> str:
    """Without spaces around it, and with U+FFFD for half a surrogate pair, which JSON may hold and no text file may."""
    text = text.strip()
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def shown(value: Any) -> str:
    """A value for an error, in a length that can be read."""
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return f"{value!r:.80}"


def text_of(value: Any, what: str = "a caption") -> str:
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            raise HarvestError(f"{what} must be text, got {shown(value)} that are not UTF-8") from None
    if not isinstance(value, str):
        raise HarvestError(f"{what} must be text or a list of texts, got {shown(value)}")
    if len(value) > _MAX_TEXT:
        raise HarvestError(f"{what} has {len(value):,} characters: that is no text of a clip")
    return whole_text(value)


def texts_of(value: Any, what: str = "a caption") -> tuple[str, ...]:
    """The texts of a cell: one, a list, or a text that is the list of texts of JSON, Python or numpy. Blank ones go."""
    if is_blank(value):
        return ()
    if isinstance(value, bytes):
        value = text_of(value, what)
    if isinstance(value, str):
        listed = text_list(value)
        value = [_not_an_object(value, what)] if listed is None else listed
    if not isinstance(value, Sequence):
        raise HarvestError(f"{what} must be text or a list of texts, got {shown(value)}")
    return tuple(text_of(text, what) for text in value if not is_blank(text))


def text_list(text: str) -> list[str] | None:
    """The texts of a list as JSON, Python, pandas or numpy write it; None for a text that is no list.

    Raises HarvestError for what begins as a list of texts and is cut short, as numpy's of more than 1,000 are, and for
    a list of something else.
    """
    text = text.strip()
    if text.startswith("array(") and text.endswith(")"):
        text = text[len("array(") : -1].rpartition("]")[0] + "]"
    if not text.startswith("["):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return _written_list(text)
    if isinstance(value, list) and all(isinstance(item, str | None) for item in value):
        return [item for item in value if item is not None]
    raise HarvestError(f"expected text or a list of texts, got the list {text:.60}")


def _written_list(text: str) -> list[str] | None:
    items: list[str] = []
    place = 1
    while True:
        while place < len(text) and text[place] in " \t\r\n,":
            place += 1
        if text.startswith("None", place):
            place += len("None")
            continue
        if place < len(text) and text[place] == "]":
            return items if place + 1 == len(text) and items else None
        quoted = _QUOTED.match(text, place)
        if quoted is None:
            break
        try:
            items.append(ast.literal_eval(quoted[0].replace("\n", "\\n").replace("\r", "\\r")))
        except (ValueError, SyntaxError):
            break
        place = quoted.end()
    if not items:
        return None
    raise HarvestError(
        f"begins like a list of texts and is none from {text[place : place + 20]!r} on: {text:.60}"
    )


def _not_an_object(text: str, what: str) -> str:
    """The text, or that of bytes that pandas wrote, b'…'. HarvestError for an object or a list as a program writes it."""
    bare = text.strip()
    if not bare.startswith(("{", "[", "(", "b'", 'b"')) or not ("'" in bare or '"' in bare):
        return text
    value: Any = text
    with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
        value = ast.literal_eval(bare[:_MAX_TEXT])
    with suppress(ValueError, RecursionError):
        value = json.loads(bare[:_MAX_TEXT])
    if isinstance(value, bytes):
        return text_of(value, what)
    if not isinstance(value, str):
        raise HarvestError(f"{what} must be text, got the {type(value).__name__} {shown(bare)}")
    return text


def literal_of(value: Any, what: str) -> Any:
    """A list, as it is or as JSON or Python writes it (numbers and texts, nested): never evaluated."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value[:_MAX_TEXT])
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise HarvestError(f"{what} must be a list, got {value!r:.80}") from None


def time_of(value: Any, what: str) -> float | None:
    """Seconds: a number, "12.5", "[H:]MM:SS.mmm" or a duration of Parquet."""
    if is_blank(value):
        return None
    number = math.nan
    if isinstance(value, datetime.timedelta):
        number = value.total_seconds()
    elif isinstance(value, datetime.time):
        number = value.hour * 3600 + value.minute * 60 + value.second + value.microsecond / 1e6
    elif isinstance(value, int | float | decimal.Decimal) and not isinstance(value, bool):
        with suppress(OverflowError):
            number = float(value)
    elif isinstance(value, str):
        text = value.strip()
        clock = _CLOCK.fullmatch(text)
        if clock is not None and float(clock[2]) < 60 and float(clock[3].replace(",", ".")) < 60:
            number = int(clock[1] or 0) * 3600 + int(clock[2]) * 60 + float(clock[3].replace(",", "."))
        elif _NUMBER.fullmatch(text):
            number = float(text)
    if not math.isfinite(number) or number < 0:
        raise HarvestError(f"{what} must be seconds from 0 on or HH:MM:SS.mmm, got {shown(value)}")
    return number


def span_of(value: Any, what: str) -> tuple[float, float]:
    """Start and end: a list of two times, as it is or as text."""
    pair = literal_of(value, what)
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
        raise HarvestError(f"{what} must be a list of two times, got {shown(value)}")
    start, end = time_of(pair[0], what), time_of(pair[1], what)
    if start is None or end is None or end <= start:
        raise HarvestError(f"{what}: the end is not after the start: {shown(value)}")
    return start, end


def label_of(value: Any) -> int | None:
    """A class number from 0 on; 3.0 is 3, as pandas writes numbers beside missing ones."""
    if is_blank(value):
        return None
    label = -1
    if isinstance(value, int) and not isinstance(value, bool):
        label = value
    elif isinstance(value, float) and value.is_integer():
        label = int(value)
    elif isinstance(value, str) and re.fullmatch(r"\s*\d{1,18}(\.0*)?\s*", value, re.ASCII):
        label = int(value.strip().partition(".")[0])
    if not 0 <= label < 2**31:
        raise HarvestError(
            f"label must be a whole number from 0 on, got {shown(value)}: number the classes, or call the column caption"
        )
    return label


def labels_of(value: Any) -> tuple[int, ...]:
    """Several class numbers, sorted, each once."""
    if is_blank(value):
        return ()
    found = literal_of(value, "labels")
    if isinstance(found, str | bytes) or not isinstance(found, Sequence):
        raise HarvestError(f"labels must be a list of whole numbers, got {shown(value)}")
    labels = {label for label in map(label_of, found) if label is not None}
    if any(label >= _MAX_LABEL for label in labels):
        raise HarvestError(f"labels must be less than {_MAX_LABEL:,}, got {shown(value)}")
    return tuple(sorted(labels))


def id_of(value: Any) -> str | None:
    if is_blank(value):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise HarvestError(f"an id must be text or a number, got {shown(value)}")
    return whole_text(f"{value:g}" if isinstance(value, float) and value.is_integer() else str(value))


def video_of_cell(value: Any) -> str:
    """A path or an address, as written."""
    if is_blank(value):
        raise HarvestError("the video column is blank: give the path of a video")
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise HarvestError(f"the video must be a path or an address, got {shown(value)}")
    if "\0" in value or whole_text(value) != value.strip():
        raise HarvestError(f"the path {value!r:.80} holds what no path does")
    if _not_an_object(value, "the video") is not value:
        raise HarvestError(f"the video must be a path or an address, got bytes: {shown(value)}")
    if _PAGES.match(value):
        raise HarvestError(
            f"{value:.80} is the page of a video, not a video: download it and give its file, or --form and the folder"
            " of videos"
        )
    return value
