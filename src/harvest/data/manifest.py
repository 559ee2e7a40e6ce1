"""Manifests: which videos there are and what is said of them. Tables of our own columns, and training sets as published.

The columns of a table are recognised by name, whatever their order and case:

    the video      video, video_path, path, file, filename, filepath, file_name, clip, url, or one ending in _file_name
    what is said   texts, captions, options, choices, caption, text, sentence, sentences, description,
                   label_or_caption, title, name
    the rest       id | video_id | videoid | clip_id; start_s | start | start_time; end_s | end | end_time;
                   label (a whole number); labels (several of them); boxes; question; answer

Of several the first in this order counts. Several captions of one row are a list (in CSV as JSON or Python writes it),
or several rows name the same video. Times are seconds or HH:MM:SS.mmm. A file without a header, `path,caption` or
`path,label`, is known by its first line. WebVid's csv (videoid, name, page_dir, …) has no video column: its videos are
`<videos>/<page_dir>/<videoid>.mp4` or `<videos>/<videoid>.mp4`.

A file that has the columns of a known training set is read as that set (`data.forms`): its videos are looked for by
the names that downloaders give them, and rows without a video are left out and counted. Of other tables it is not
looked at whether the videos exist: a manifest may have ten million rows. An address (https://…, s3://…) stays as it is;
`harvest check --links` asks whether its video is still there.

A row that is wrong is left out and named (`Rows.left_out`). What would make many rows wrong without a sign is an error:
columns that look like times and are not used, a quote that is not closed.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from harvest.data import cells
from harvest.data.cells import (
    TEXTS,
    id_of,
    is_blank,
    label_of,
    labels_of,
    literal_of,
    shown,
    text_of,
    texts_of,
    time_of,
)
from harvest.data.columns import ColumnWriter
from harvest.data.forms import Entry, Form, Record, column_name, form_named, recognise
from harvest.data.manifest_rows import KeptRows
from harvest.data.manifest_rows import Rows as Rows
from harvest.data.sidecars import SUFFIXES as VIDEO_SUFFIXES
from harvest.data.sidecars import json_of, label_beside, texts_beside
from harvest.data.tables import PACKED, SUFFIXES, TableRow, VideoBytes, kind_of, table_rows
from harvest.data.video import VideoError
from harvest.data.video_folder import VideoFolder, expected_path
from harvest.files import new_file
from harvest.interfaces import Box, Example, HarvestError

VIDEO = ("video", "video_path", "path", "file", "filename", "filepath", "file_name", "clip", "url")
LINK = ("url", "contenturl", "video_url", "link")  # of the video, beside a column for its file
ID = ("id", "video_id", "videoid", "clip_id")
START = ("start_s", "start", "start_time")
END = ("end_s", "end", "end_time")
ROLES = ("video", "caption", "id", "start", "end", "label", "question", "answer", "ignore")
"""What a column can be said to be (`--columns caption=text,video=file`)."""

MAX_LEFT_OUT = 0.5
"""More wrong rows than this ratio, and the file is not what it is taken for."""

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_TIMES = re.compile(
    r"(^|[_ .-])(start|end|begin|stop|onset|offset|span|spans|timestamps?|timesteps?|timecodes?|framestamps?)([_ .-]|\d*$)"
    r"|^(start|end|stop|begin)(time|sec|s|ms|frame)",
    re.IGNORECASE,
)


def read_manifest(
    path: str | Path,
    *,
    videos: str | Path | None = None,
    captions_required: bool = True,
    form: str = "",
    columns: Sequence[str] = (),
    keep_links: bool = False,
) -> Rows:
    """The rows of a manifest, or of a training set's files, as Examples whose `video` can be opened from here.

    `path` is a file, a folder of files of one kind, or a pattern with *. `form` names the training set where it is not
    to be recognised; "table" reads by the general rules. `columns` says which column is what, as
    "caption=long_text" (`ROLES`).

    Paths of videos are relative to `videos` or, without it, to the manifest's folder (for WebVid's csv to the
    `videos` folder beside it, if there is one). An id that comes again gets `#2`, `#3`, … appended, so that
    ids are unique; without an id column the path as written is the id. A row whose caption is blank has no
    texts. `captions_required=False` reads tables of bare videos, for search.

    Raises HarvestError naming the file, and the row where more than `MAX_LEFT_OUT` of the rows are wrong.
    """
    path = Path(path)
    if (
        path.is_dir()
        and not any(path.glob("*.tar"))
        and form == ""
        and not any(map(_is_table, path.iterdir()))
    ):
        return _read_folder(path)
    parts = _parts(path)
    if videos is not None and not Path(videos).is_dir():
        raise HarvestError(f"the folder of videos {videos} does not exist (manifest {path})")
    has_folder = (path.parent / "videos").is_dir()
    asked = [str(path), str(videos), has_folder, captions_required, form, list(columns)]
    kept = None if keep_links else KeptRows(parts, asked)
    if kept is not None and (rows := kept.opened()) is not None:
        return rows

    def read(folder: Path | None) -> tuple[Rows, bool]:
        reader = _Reader(
            path, Path(videos) if videos is not None else None, captions_required, columns, folder
        )
        reader.form = form_named(form) if form not in ("", "table") else None
        reader.keep_links = keep_links
        for part in parts:
            reader.read(part, find_form=form == "" and not columns)
        return reader.finished(), reader.is_settled

    return read(None)[0] if kept is None or not kept.is_worth_it else kept.made(read)


def _is_table(path: Path) -> bool:
    return kind_of(path) in SUFFIXES and path.is_file()


def _read_folder(folder: Path) -> Rows:
    """Videos with .txt, .json or .cls of the same name beside them, up to three folders down."""
    rows, writer = Rows(name=folder.name), ColumnWriter()
    for here, inside, files in os.walk(folder):
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        if len(Path(here).relative_to(folder).parts) >= 3:
            inside.clear()
        for name in sorted(files):
            path = Path(here, name)
            if path.suffix[1:].lower() not in VIDEO_SUFFIXES or name.startswith("."):
                continue
            rows.num_read += 1
            beside = {s: path.with_suffix(s) for s in (".txt", ".json", ".cls")}
            said = {s: p.read_bytes() for s, p in beside.items() if p.is_file() and p.stat().st_size < 2**24}
            place = path.relative_to(folder).as_posix()
            try:
                about = json_of(said.get(".json"), place)
                texts = texts_beside(about, said.get(".txt"), place)
                label = label_beside(about, said.get(".cls"), place)
            except VideoError as error:
                rows.left_out[place] = error.reason
                continue
            if texts or label is not None:
                writer.append(Example(path.stem, str(path), texts, label))
            else:
                rows.left_out[place] = "no caption and no label beside it"
    if not len(writer):
        raise HarvestError(
            f"manifest {folder} does not exist (it is a folder): give a file ending in {', '.join(SUFFIXES)}, a folder of"
            " such files, or one of videos with .txt or .json beside them"
        )
    rows.arrays = writer.finish()[0]
    return rows


def _parts(path: Path) -> list[Path]:
    """The files of a manifest."""
    if path.suffix == ".tar" or (path.is_dir() and any(path.glob("*.tar"))):
        raise HarvestError(
            f"{path} are tar shards, which data.train, data.images and harvest evaluate read: here give the manifest"
            " that they were prepared from"
        )
    if path.is_dir():
        parts = sorted(filter(_is_table, path.iterdir()))
        if not parts or len({kind_of(part) for part in parts}) > 1:
            raise HarvestError(
                f"manifest {path} does not exist (it is a folder): give a file ending in {', '.join(SUFFIXES)}, or a"
                f" folder of files of one of these kinds"
            )
        return parts
    if not path.is_file() and "*" in path.name:
        parts = sorted(part for part in path.parent.glob(path.name) if kind_of(part) in SUFFIXES)
        if parts:
            return parts
    if not path.is_file():
        raise HarvestError(f"manifest {path} does not exist: give a file ending in {', '.join(SUFFIXES)}")
    if kind_of(path) not in SUFFIXES:
        raise HarvestError(
            f"manifest {path}: expected a name ending in {', '.join(SUFFIXES)}, also with {' or '.join(PACKED)}"
        )
    return [path]


def is_address(video: str) -> bool:
    """Is this the address of a video rather than a path?"""
    return _ADDRESS.match(video) is not None


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
    reader = _Reader(folder / "boxes", folder, False, ())
    return reader.example(TableRow("a row", 0, row))


# ---------------------------------------------------------------------------------------------------------------
# From rows to Examples


class _Reader:
    """What is known of one manifest: its folder, its form, the columns met, the ids given away."""

    def __init__(
        self,
        path: Path,
        videos: Path | None,
        captions_required: bool,
        columns: Sequence[str],
        folder: Path | None = None,
    ) -> None:
        self.path, self.videos, self.captions_required = path, videos, captions_required
        self.roles = _roles_of(columns)
        self.form: Form | None = None
        self.rows = Rows(name=path.name)
        self.folder = path if path.is_dir() else path.parent
        if videos is not None:
            self.folder = videos
        beside = path.parent / "videos"
        self.webvid_folder = beside if videos is None and beside.is_dir() else self.folder
        self.uses_pages: bool | None = None  # of WebVid's csv: videos lie in folders named by page_dir
        self.names: dict[
            tuple[str, ...], dict[str, str]
        ] = {}  # columns as written -> role or name -> as written
        self.writer = ColumnWriter(folder)
        self.entries: list[Entry] = []
        self.keep_links = False
        self.links: dict[int, str] = {}  # by row
        self.is_settled = True
        """Would the rows be the same, whatever videos are there later?"""

    def read(self, part: Path, *, find_form: bool) -> None:
        several = part != self.path
        rows = table_rows(part)
        early: list[TableRow] = []
        for row in rows:  # the first that can be read says what the file is
            early.append(row)
            if row.error is None:
                record = Record(row, part)
                self.form = recognise(record) if find_form else self.form
                self.rows.columns = self.rows.columns or [
                    name.strip().lower() for name in map(str, row.cells)
                ]
                break
        self.rows.form = self.form
        if self.form is not None and self.form.refusal:
            raise HarvestError(f"{part} is {self.form.title}: it {self.form.refusal}")
        for row in chain(early, rows):
            self.rows.num_read += 1
            place = f"{part.name}, {row.place}" if several else row.place
            try:
                if row.error is not None:
                    raise HarvestError(row.error)
                if self.form is not None and self.form.entries is not None:
                    self._read_entries(Record(row, part), self.form, place)
                else:
                    self.writer.append(self.example(row, part))
            except HarvestError as error:
                if isinstance(error, _WholeFile):
                    raise
                self._leave_out(place, str(error))

    def _leave_out(self, place: str, reason: str) -> None:
        self.rows.left_out[place] = reason

    def finished(self) -> Rows:
        rows = self.rows
        if self.form is not None and self.form.entries is not None:
            self._find_videos()
        if not rows.num_read:
            raise HarvestError(f"manifest {self.path} is empty: expected a row for each video")
        wrong = len(rows.left_out)
        if wrong and wrong > MAX_LEFT_OUT * max(rows.num_read, wrong + len(self.writer)):
            place, reason = next(iter(rows.left_out.items()))
            raise HarvestError(
                f"manifest {self.path}, {place}: {reason}"
                + (f" ({wrong:,} of {rows.num_read:,} rows are wrong)" if rows.num_read > 1 else "")
            )
        if self.captions_required and self.form is not None and not self.writer.says_something:
            raise HarvestError(
                f"manifest {self.path}: {self.form.title} has no captions here: they must come from elsewhere"
            )
        rows.arrays, repeated = self.writer.finish()
        rows.repeated = [rows.id_of(row) for row in repeated]
        rows.links = {rows.id_of(row): link for row, link in self.links.items()}
        return rows

    # ----------------------------------------------------------------------------------------- published sets

    def _read_entries(self, record: Record, form: Form, place: str) -> None:
        assert form.entries is not None
        try:
            for entry in form.entries(record):
                if isinstance(entry, HarvestError):
                    self._leave_out(f"{place}, {entry}".partition(": ")[0], str(entry).partition(": ")[2])
                elif entry.end_s is not None and entry.end_s <= entry.start_s:
                    self._leave_out(f"{place}, {entry.id}", "the end is not after the start")
                else:
                    self.entries.append(entry)
        except (TypeError, KeyError, AttributeError, ValueError, OverflowError) as error:
            raise HarvestError(f"not a row of {form.title} ({type(error).__name__}: {error})") from error

    def _find_videos(self) -> None:
        """Where the clips of a set are: a file cut already, else the whole video, else an address."""
        entries, self.is_settled = self.entries, False
        looked_for = [name for entry in entries for name in (*entry.cut, *entry.names)]
        folder = VideoFolder(self.folder, looked_for) if looked_for else None
        for entry in entries:
            cut = folder.find(entry.cut) if folder is not None else None
            whole = folder.find(entry.names) if folder is not None and cut is None else None
            video = cut or whole or entry.address
            if video is None:
                self.rows.missing[entry.id] = expected_path((*entry.cut, *entry.names)[0], self.folder)
                continue
            self.writer.append(
                Example(
                    entry.id,
                    video,
                    entry.texts,
                    entry.label,
                    start_s=0.0 if cut else entry.start_s,
                    end_s=None if cut else entry.end_s,
                )
            )
        if entries and not len(self.writer):
            assert self.form is not None
            first = entries[0]
            names = ", ".join(expected_path(name, None) for name in (*first.cut, *first.names))
            raise HarvestError(
                f"none of the {len(entries):,} clips of {self.path} ({self.form.title}) has a video in {self.folder}:"
                f" looked for {names}: give the folder of videos"
            )

    # ------------------------------------------------------------------------------------------------ tables

    def example(self, row: TableRow, part: Path | None = None) -> Example:
        columns = self._columns(tuple(str(key) for key in row.cells))

        def value(*names: str) -> Any:
            """What the row says in the first of these columns that there is."""
            name = next((name for name in names if name in columns), None)
            return None if name is None or is_blank(row.cells[columns[name]]) else row.cells[columns[name]]

        is_webvid = self._is_webvid(columns)
        if is_webvid:
            written = self._webvid_video(value("videoid"), value("page_dir"))
        else:
            written = value(*VIDEO)
        folder = self.webvid_folder if is_webvid else self.folder
        id = id_of(value(*ID))
        if isinstance(written, VideoBytes):
            own_id = written.name or f"row {row.number + 1}"
            inside = f"{part or self.path}#{row.number}/{written.column}"
            video = inside if written.is_there else self._path(folder, cells.video_of_cell(written.name))
        else:
            written = cells.video_of_cell(written)
            video = written if is_address(written) else self._path(folder, written)
            own_id = str(row.number + 1) if is_address(written) else written
        question, answer = value("question"), value("answer")
        example = Example(
            id=own_id if id is None else id,
            video=video,
            texts=texts_of(value(*TEXTS)),
            label=label_of(value("label")),
            start_s=time_of(value(*START), "start") or 0.0,
            end_s=time_of(value(*END), "end"),
            question=None if question is None else text_of(question, "a question"),
            answer=None if answer is None else text_of(_word(answer), "an answer"),
            labels=labels_of(value("labels")),
            boxes=_boxes(value("boxes")),
        )
        if self.keep_links:
            found = (value(name) for name in (*LINK, *VIDEO))
            link = next((v for v in found if isinstance(v, str) and is_address(v)), None)
            if link is not None:
                self.links[len(self.writer)] = link
        return example

    def _path(self, folder: Path, written: str) -> str:
        path = str(folder / written)
        if not written.isascii() and not os.path.exists(
            path
        ):  # the disk may have the other form of its letters
            for form in ("NFC", "NFD"):
                other = str(folder / unicodedata.normalize(form, written))  # type: ignore[arg-type]
                if os.path.exists(other):
                    return other
            self.is_settled = False
        return path

    def _columns(self, written: tuple[str, ...]) -> dict[str, str]:
        """The row's columns by their names in lower case. Looked at once for every set of columns."""
        if written in self.names:
            return self.names[written]
        columns: dict[str, str] = {}
        for name in written:
            if columns.setdefault(name.strip().lower(), name) != name and name.strip():
                raise HarvestError(f"two columns are called {name.strip().lower()!r}")
        found = ", ".join(name for name in written if name.strip()) or "none"
        columns = self._with_roles(columns, found)
        for name in list(columns):  # Hugging Face's VideoFolder: {feature}_file_name
            if name.endswith("_file_name") and not any(known in columns for known in VIDEO):
                columns["file_name"] = columns[name]
        if not self._is_webvid(columns) and not any(name in columns for name in VIDEO):
            raise _WholeFile(
                f"manifest {self.path}: no video column; found: {found}; expected one of: {', '.join(VIDEO)}, or --columns"
                " video=NAME"
            )
        says_something = any(name in columns for name in (*TEXTS, "label", "labels", "boxes", "question"))
        if self.captions_required and not says_something:
            raise _WholeFile(
                f"manifest {self.path}: no caption column; found: {found}; expected one of: {', '.join(TEXTS)} (or label,"
                " or question), or --columns caption=NAME"
            )
        self._check_times(columns)
        self.names[written] = columns
        return columns

    def _with_roles(self, columns: dict[str, str], found: str) -> dict[str, str]:
        """The columns with those that a role was given first, and its other columns out of the way."""
        groups = {"video": VIDEO, "caption": TEXTS, "id": ID, "start": START, "end": END}
        for role, names in self.roles.items():
            for name in names:
                if name.strip().lower() not in columns:
                    raise _WholeFile(f"manifest {self.path}: no column {name!r} for {role}; found: {found}")
            written = [columns.pop(name.strip().lower()) for name in names]
            for known in groups.get(role, ()):
                columns.pop(known, None)
            if role != "ignore":
                columns[groups.get(role, (role,))[0]] = written[0]
        return columns

    def _check_times(self, columns: Mapping[str, str]) -> None:
        """Raise where columns look like times of a clip and would not be used: then words get the whole video."""
        used = {next((n for n in names if n in columns), None) for names in (START, END)}
        form = self.form
        known = {"timestamp"} if form is not None and form.name == "lerobot" else set()
        unused = [
            written
            for name, written in columns.items()
            if name not in used | known | {*START, *END} and _TIMES.search(column_name(name))
        ]
        if unused:
            raise _WholeFile(
                f"manifest {self.path}: the columns {', '.join(unused)} look like the times of clips and are not used: say"
                " what they are, --columns start=NAME,end=NAME, or leave them out with --columns ignore="
                + "+".join(unused)
            )

    @staticmethod
    def _is_webvid(columns: Mapping[str, str]) -> bool:
        return "videoid" in columns and "page_dir" in columns and not any(name in columns for name in VIDEO)

    def _webvid_video(self, videoid: Any, page_dir: Any) -> str:
        id = id_of(videoid)
        if id is None:
            raise HarvestError("the videoid column is blank")
        flat, page = f"{id}.mp4", id_of(page_dir)
        if page is None:
            return flat
        if self.uses_pages is None and (self.webvid_folder / flat).exists():
            self.uses_pages = False
        if self.uses_pages is None and (self.webvid_folder / page).is_dir():
            self.uses_pages = True
        self.is_settled &= self.uses_pages is not None
        return flat if not self.uses_pages else f"{page}/{flat}"


def _roles_of(columns: Sequence[str]) -> dict[str, list[str]]:
    """ "caption=a", "ignore=b+c", or both in one text with a comma between, as role -> columns."""
    roles: dict[str, list[str]] = {}
    for part in ",".join(columns).split(",") if columns else ():
        role, mark, names = part.strip().partition("=")
        if role not in ROLES or not mark or not names:
            raise HarvestError(
                f"columns: expected ROLE=COLUMN with a role of {', '.join(ROLES)}, such as caption=text, got {part!r}"
            )
        roles.setdefault(role, []).extend(names.split("+") if role == "ignore" else [names])
    return roles


class _WholeFile(HarvestError):
    """Not the mistake of one row."""


def _word(answer: Any) -> Any:
    """Answers may be numbers: "how many?"."""
    return str(answer) if isinstance(answer, int) and not isinstance(answer, bool) else answer


def _boxes(value: Any) -> tuple[Box, ...]:
    if is_blank(value):
        return ()
    found = literal_of(value, "boxes")
    boxes = []
    for box in found if isinstance(found, list) else [found]:
        sides = box.get("sides") if isinstance(box, dict) else None
        if not isinstance(sides, list | tuple) or len(sides) != 4:
            raise HarvestError(
                f"boxes are a list of {{'sides': [left, top, right, bottom], 'labels': [...]}}, got {shown(box)}"
            )
        if not all(
            isinstance(side, int | float) and not isinstance(side, bool) and -1e9 < side < 1e9
            for side in sides
        ):
            raise HarvestError(f"the sides of a box must be numbers, got {shown(sides)}")
        left, top, right, bottom = map(float, sides)
        boxes.append(Box((left, top, right, bottom), labels_of(box.get("labels"))))
    return tuple(boxes)
