"""Manifests: which videos there are and what is said of them. JSONL, CSV, TSV, Parquet and WebVid's own csv.

A manifest is a table. Its columns are recognised by name, whatever their order and case:

    the video      video, video_path, path, file, filename, filepath, file_name, clip, url
    what is said   texts, captions, options, choices, caption, text, sentence, sentences, description,
                   label_or_caption, title, name
    the rest       id | video_id | videoid | clip_id; start_s | start | start_time; end_s | end | end_time;
                   label (a whole number); labels (several of them); boxes; question; answer

Of several the first in this order counts. Several captions of one row are a list (in CSV a JSON list,
`["a dog", "a dog runs"]`), or several rows name the same video. WebVid's csv (videoid, name, page_dir, …) has no
video column: its videos are `<videos>/<page_dir>/<videoid>.mp4` or `<videos>/<videoid>.mp4`.

Whether the videos exist is not looked at here: a manifest may have ten million rows. An address (https://…, s3://…)
stays as it is; `harvest check --links` asks whether its video is still there.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from harvest.files import new_file
from harvest.interfaces import Box, Example, HarvestError

VIDEO = ("video", "video_path", "path", "file", "filename", "filepath", "file_name", "clip", "url")
LINK = ("url", "contenturl", "video_url", "link")  # of the video, beside a column for its file
TEXTS = tuple(
    [
        "texts",
        "captions",
        "options",
        "choices",
        "caption",
        "text",
        "sentence",
        "sentences",
        "description",
        "label_or_caption",
        "title",
        "name",
    ]
)
ID = ("id", "video_id", "videoid", "clip_id")
START = ("start_s", "start", "start_time")
END = ("end_s", "end", "end_time")
SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")


def read_manifest(
    path: str | Path, *, videos: str | Path | None = None, captions_required: bool = True
) -> list[Example]:
    """Every row of a manifest as an Example whose `video` can be opened from here.

    Paths of videos are relative to `videos` or, without it, to the manifest's folder (for WebVid's csv to the
    `videos` folder beside it, if there is one). An id that comes again gets `#2`, `#3`, … appended, so that
    ids are unique; without an id column the path as written is the id. A row whose caption is blank has no
    texts. `captions_required=False` reads tables of bare videos, for search.

    Raises HarvestError naming the file, and the row where it is one row's mistake.
    """
    path = Path(path)
    if path.suffix == ".tar" or (path.is_dir() and any(path.glob("*.tar"))):
        raise HarvestError(
            f"{path} are tar shards, which data.train, data.images and harvest evaluate read: here give the manifest"
            " that they were prepared from"
        )
    if not path.is_file():
        hint = " (it is a folder)" if path.is_dir() else ""
        raise HarvestError(
            f"manifest {path} does not exist{hint}: give a file ending in {', '.join(SUFFIXES)}"
        )
    if path.suffix.lower() not in SUFFIXES:
        raise HarvestError(f"manifest {path}: expected a name ending in {', '.join(SUFFIXES)}")
    if videos is not None and not Path(videos).is_dir():
        raise HarvestError(f"the folder of videos {videos} does not exist (manifest {path})")
    reader = _Rows(path, Path(videos) if videos is not None else None, captions_required)
    examples = [reader.example(place, row) for place, row in _rows(path)]
    if not examples:
        raise HarvestError(f"manifest {path} is empty: expected a row for each video")
    return examples


def columns_of(path: str | Path) -> list[str]:
    """The names of a manifest's columns, in lower case, as its first row has them."""
    for _, row in _rows(Path(path)):
        return [str(name).strip().lower() for name in row]
    return []


def is_address(video: str) -> bool:
    """Is this the address of a video rather than a path?"""
    return "://" in video


def links_of(path: str | Path) -> list[str | None]:
    """The address that each row of a manifest gives for its video, if it gives one."""
    found = []
    for _, row in _rows(Path(path)):
        values = {str(name).strip().lower(): str(value).strip() for name, value in row.items() if value}
        links = (values[name] for name in (*LINK, *VIDEO) if is_address(values.get(name, "")))
        found.append(next(links, None))
    return found


def write_manifest(path: str | Path, examples: Iterable[Example]) -> None:
    """Write JSONL, whole or not at all. Videos under the manifest's folder are written relative to it."""
    path = Path(path)
    folder = path.parent.absolute()
    try:
        with new_file(path) as part, open(part, "w", encoding="utf-8") as file:
            for example in examples:
                file.write(json.dumps(_row_of(example, folder), ensure_ascii=False) + "\n")
    except OSError as error:
        raise HarvestError(f"cannot write manifest {path}: {error}") from error


def _row_of(example: Example, folder: Path) -> dict[str, Any]:
    video = Path(example.video)
    if is_address(example.video):
        name = example.video
    elif video.is_absolute():
        inside = video.is_relative_to(folder)
        name = video.relative_to(folder).as_posix() if inside else video.as_posix()
    else:  # relative to where we stand, as read_manifest gives it for a relative manifest
        name = Path(os.path.relpath(video.absolute(), folder)).as_posix()
    row: dict[str, Any] = {"id": example.id, "video": name}
    if example.texts:
        row["texts"] = list(example.texts)
    if example.start_s:
        row["start_s"] = example.start_s
    for key in ("end_s", "label", "question", "answer"):
        if getattr(example, key) is not None:
            row[key] = getattr(example, key)
    if example.labels:
        row["labels"] = list(example.labels)
    if example.boxes:
        row["boxes"] = [{"sides": box.sides, "labels": box.labels} for box in example.boxes]
    return row


def boxed_example(row: Mapping[str, Any], folder: Path) -> Example:
    """A row with boxes as an Example, its video relative to `folder`."""
    return _Rows(folder / "boxes", folder, False).example("a row", row)


# ---------------------------------------------------------------------------------------------------------------
# Rows of each format: (how to name the row in an error, column -> value)


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    suffix = path.suffix.lower()
    try:
        if suffix in (".csv", ".tsv"):
            yield from _csv_rows(path, "\t" if suffix == ".tsv" else ",")
        elif suffix == ".parquet":
            yield from _parquet_rows(path)
        else:
            yield from _jsonl_rows(path)
    except UnicodeDecodeError as error:
        raise HarvestError(
            f"manifest {path} is not UTF-8 text (byte {error.object[error.start]:#04x} at {error.start} of the"
            " part read): save it as UTF-8"
        ) from error
    except OSError as error:
        raise HarvestError(f"manifest {path} cannot be read: {error}") from error


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise HarvestError(
                    f"manifest {path}, line {number}: not JSON ({error.msg} at column {error.colno}): expected one"
                    ' object a line, like {"video": "a.mp4", "caption": "a dog runs"}'
                ) from error
            if not isinstance(row, dict):
                raise HarvestError(
                    f"manifest {path}, line {number}: expected an object {{…}}, got {type(row).__name__}"
                )
            yield f"line {number}", row


def _csv_rows(path: Path, delimiter: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter)
        try:
            header = next(reader, None)
            if header is None:
                return
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise HarvestError(
                        f"manifest {path}, line {reader.line_num}: expected {len(header)} columns"
                        f" ({', '.join(header)}), got {len(cells)}: put text that holds a {delimiter!r} in quotes"
                    )
                yield f"line {reader.line_num}", dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise HarvestError(f"manifest {path}, line {reader.line_num}: {error}") from error


def _parquet_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise HarvestError(
            f"manifest {path}: reading Parquet needs pyarrow: pip install 'harvest-video[parquet]'"
        ) from error
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except pyarrow.ArrowException as error:
        raise HarvestError(f"manifest {path} is not a Parquet file: {error}") from error


# ---------------------------------------------------------------------------------------------------------------
# From a row to an Example


class _Rows:
    """What is known of one manifest: its folder, its columns, the ids that were given away."""

    def __init__(self, path: Path, videos: Path | None, captions_required: bool) -> None:
        self.path, self.captions_required = path, captions_required
        self.folder = path.parent if videos is None else videos
        if videos is None and (path.parent / "videos").is_dir():
            self.webvid_folder = path.parent / "videos"
        else:
            self.webvid_folder = self.folder
        self.uses_pages: bool | None = None  # of WebVid's csv: videos lie in folders named by page_dir
        self.names: dict[
            tuple[str, ...], dict[str, str]
        ] = {}  # of each set of columns: lower case -> as written
        self.ids = _Ids()

    def example(self, place: str, row: Mapping[str, Any]) -> Example:
        columns = self._columns(place, tuple(str(key) for key in row))

        def value(*names: str) -> Any:
            """What the row says in the first of these columns that there is."""
            name = next((name for name in names if name in columns), None)
            return None if name is None or _is_blank(row[columns[name]]) else row[columns[name]]

        if self._is_webvid(columns):
            written = self._webvid_video(place, value("videoid"), value("page_dir"))
        else:
            written = value(*VIDEO)
            if written is None:
                raise HarvestError(f"{self._at(place)}: the video column is blank: give the path of a video")
            written = str(written)
        folder = self.webvid_folder if self._is_webvid(columns) else self.folder
        id = value(*ID)
        start_s = self._number(place, "start", value(*START))
        question, answer = value("question"), value("answer")
        try:
            return Example(
                id=self.ids.unique(str(written if id is None else id)),
                video=written if is_address(written) else str(folder / written),
                texts=self._texts(place, value(*TEXTS)),
                label=self._label(place, value("label")),
                start_s=0.0 if start_s is None else start_s,
                end_s=self._number(place, "end", value(*END)),
                question=None if question is None else whole_text(str(question)),
                answer=None if answer is None else whole_text(str(answer)),
                labels=self._labels(place, value("labels")),
                boxes=self._boxes(place, value("boxes")),
            )
        except HarvestError as error:
            raise (
                error if str(self.path) in str(error) else HarvestError(f"{self._at(place)}: {error}")
            ) from error

    def _at(self, place: str) -> str:
        return f"manifest {self.path}, {place}"

    def _columns(self, place: str, written: tuple[str, ...]) -> dict[str, str]:
        """The row's columns by their names in lower case. Looked at once for every set of columns."""
        if written in self.names:
            return self.names[written]
        columns: dict[str, str] = {}
        for name in written:
            columns.setdefault(name.strip().lower(), name)
        found = ", ".join(written) or "none"
        if not self._is_webvid(columns) and not any(name in columns for name in VIDEO):
            raise HarvestError(
                f"{self._at(place)}: no video column; found: {found}; expected one of: {', '.join(VIDEO)}"
            )
        says_something = any(name in columns for name in (*TEXTS, "label", "labels", "boxes", "question"))
        if self.captions_required and not says_something:
            raise HarvestError(
                f"{self._at(place)}: no caption column; found: {found}; expected one of: {', '.join(TEXTS)}"
                " (or label, or question)"
            )
        self.names[written] = columns
        return columns

    @staticmethod
    def _is_webvid(columns: Mapping[str, str]) -> bool:
        return "videoid" in columns and "page_dir" in columns and not any(name in columns for name in VIDEO)

    def _webvid_video(self, place: str, videoid: Any, page_dir: Any) -> str:
        if videoid is None:
            raise HarvestError(f"{self._at(place)}: the videoid column is blank")
        flat = f"{videoid}.mp4"
        if page_dir is None:
            return flat
        if self.uses_pages is None and (self.webvid_folder / flat).exists():
            self.uses_pages = False
        if self.uses_pages is None and (self.webvid_folder / str(page_dir)).is_dir():
            self.uses_pages = True
        return flat if not self.uses_pages else f"{page_dir}/{flat}"

    def _texts(self, place: str, value: Any) -> tuple[str, ...]:
        if value is None:
            return ()
        if isinstance(value, str) and value.lstrip().startswith("["):
            with suppress(json.JSONDecodeError):  # a caption may happen to begin with a bracket
                value = json.loads(value)
        if isinstance(value, str):
            return (whole_text(value),)
        if isinstance(value, Sequence):
            return tuple(whole_text(str(text)) for text in value if not _is_blank(text))
        raise HarvestError(f"{self._at(place)}: a caption must be text or a list of texts, got {value!r}")

    def _label(self, place: str, value: Any) -> int | None:
        if value is None:
            return None
        label: int | None
        try:
            label = int(value)
        except (TypeError, ValueError):
            label = None
        if label is None or (isinstance(value, float) and label != value):
            raise HarvestError(
                f"{self._at(place)}: label must be a whole number, got {value!r}: number the classes, or call the"
                " column caption"
            )
        return label

    def _labels(self, place: str, value: Any) -> tuple[int, ...]:
        if isinstance(value, str) and value.lstrip().startswith("["):
            with suppress(json.JSONDecodeError):
                value = json.loads(value)
        if value is None:
            return ()
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise HarvestError(f"{self._at(place)}: labels must be a list of whole numbers, got {value!r}")
        found = [self._label(place, label) for label in value]
        return tuple(sorted({label for label in found if label is not None}))

    def _boxes(self, place: str, value: Any) -> tuple[Box, ...]:
        if isinstance(value, str):
            with suppress(json.JSONDecodeError):
                value = json.loads(value)
        if value is None:
            return ()
        boxes = []
        for box in value if isinstance(value, list) else [value]:
            sides = box.get("sides") if isinstance(box, dict) else None
            if not isinstance(sides, Sequence) or len(sides) != 4:
                raise HarvestError(
                    f"{self._at(place)}: boxes are a list of {{'sides': [left, top, right, bottom], 'labels': [...]}}, got"
                    f" {box!r:.100}"
                )
            left, top, right, bottom = (float(side) for side in sides)
            boxes.append(Box((left, top, right, bottom), self._labels(place, box.get("labels"))))
        return tuple(boxes)

    def _number(self, place: str, name: str, value: Any) -> float | None:
        if value is None:
            return None
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number) or number < 0:
            raise HarvestError(f"{self._at(place)}: {name} must be seconds from 0 on, got {value!r}")
        return number


class _Ids:
    """The ids that were given away. One that comes again gets `#2`, `#3`, …"""

    def __init__(self) -> None:
        self.times_given: dict[str, int] = {}

    def unique(self, id: str) -> str:
        times = self.times_given.get(id, 0) + 1
        self.times_given[id] = times
        if times == 1:
            return id
        candidate = f"{id}#{times}"
        return self.unique(candidate) if candidate in self.times_given else self._given(candidate)

    def _given(self, id: str) -> str:
        self.times_given[id] = 1
        return id


def with_unique_ids(examples: Iterable[Example]) -> list[Example]:
    """Rows of several manifests, in which an id that comes again gets `#2`, `#3`, … as in one."""
    ids = _Ids()
    named = ((ids.unique(example.id), example) for example in examples)
    return [example if id == example.id else replace(example, id=id) for id, example in named]


def whole_text(text: str) -> str:
    """Without blanks around it, and with U+FFFD for half a character, as captions cut at so many UTF-16 units have it:
    JSON may hold that, and no file of text may."""
    text = text.strip()
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _is_blank(value: Any) -> bool:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    return isinstance(value, str) and not value.strip()
