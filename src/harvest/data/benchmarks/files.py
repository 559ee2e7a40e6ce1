"""Annotation files as they are: finding them, reading their rows, and saying what is wrong with them.

Text is UTF-8, tables are CSV or TSV with a header, JSON is a list or an object; nothing is unpickled. A file that
is not what it should be is compared with what all the benchmarks' files look like, and the error names the
likeliest.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from harvest.interfaces import HarvestError
from harvest.settings import parse

_HEAD = 2**16  # of a file to recognise it by, characters


@dataclass(frozen=True)
class Published:
    """What a paper or the official site says a split holds, by the names of `BenchmarkData.counts`."""

    counts: Mapping[str, int]
    source: str


@dataclass(frozen=True)
class SplitFiles:
    """One split: the files it is read from and what it should hold."""

    files: tuple[str, ...]
    """What is needed: of `a.txt + a.json | b.json`, forms of the same thing, the first that is there whole is read."""
    published: Published


def split(files: str | tuple[str, ...], source: str, **counts: int) -> SplitFiles:
    """A split read from one file, from `a & b` or from several, each with its forms as in `SplitFiles.files`."""
    return SplitFiles(
        tuple(files.split(" & ")) if isinstance(files, str) else files, Published(counts, source)
    )


class Files:
    """The folder of the annotation files of one benchmark, of which those of one split are needed."""

    def __init__(self, folder: str | Path, name: str, origin: str, split: SplitFiles) -> None:
        """`name` of the benchmark, and `origin` of its files, for errors."""
        self.folder, self.name, self.origin, self.split = Path(folder), name, origin, split
        if not self.folder.is_dir():
            what = "is a file" if self.folder.exists() else "does not exist"
            raise HarvestError(
                f"{name}: the annotations {self.folder} should be a folder and {what}; they come from"
                f" {origin}"
            )

    def need(self, place: int = 0) -> list[Path]:
        """The files of the first form of `split.files[place]` that is there whole."""
        forms = self.split.files[place].split(" | ")
        for form in forms:
            paths = [self.folder / name for name in form.split(" + ")]
            if all(path.is_file() for path in paths):
                return paths
        raise self.lacks(" or ".join(form.replace(" + ", " and ") for form in forms))

    def path(self, place: int = 0) -> Path:
        return self.need(place)[0]

    def error(self, place: object, says: str) -> HarvestError:
        """The error for a row or file: the benchmark, the place and what is wrong there."""
        return HarvestError(f"{self.name}: {place}: {says}")

    def lacks(self, what: str) -> HarvestError:
        """The error for files that are not there: what they are, where they come from, and what is there instead."""
        held = sorted(path for path in self.folder.iterdir() if path.is_file())
        return HarvestError(
            f"{self.name} needs {what} in {self.folder}; it comes from {self.origin}. {_held(held)}"
        )

    def optional(self, *names: str) -> Path | None:
        return next((self.folder / name for name in names if (self.folder / name).is_file()), None)

    def wrong(self, path: Path, expected: str, found: str) -> HarvestError:
        """The error for a file that is not what it should be."""
        likely = looks_like(path)
        hint = f"; it looks like {likely}" if likely else ""
        return HarvestError(f"{self.name}: {path}: expected {expected}, found {found}{hint}")

    def text(self, path: Path) -> str:
        try:
            return path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            raise HarvestError(
                f"{self.name}: {path}, line {line}: not UTF-8 text (byte {error.object[error.start]:#04x}):"
                " save it as UTF-8, since guessing would change captions"
            ) from error
        except OSError as error:
            raise HarvestError(f"{self.name}: {path} cannot be read: {error}") from error

    def lines(self, path: Path) -> list[tuple[str, str]]:
        """The lines that are not blank: (how to name the line in an error, its text without spaces around it)."""
        rows = self.text(path).splitlines()
        return [(f"{path}, line {n}", line.strip()) for n, line in enumerate(rows, 1) if line.strip()]

    def ids(self, path: Path) -> list[str]:
        """A list of ids, one a line, or a table with one column `video_id`. No id may come twice."""
        lines = [line for _, line in self.lines(path)]
        if lines and lines[0] == "video_id":
            del lines[0]
        if any("," in line or "\t" in line or line[0] in "{[" for line in lines[:50]):
            raise self.wrong(path, "a list of ids, one a line", repr(lines[0][:60]))
        return self.distinct(lines, str(path))

    def distinct(self, ids: list[str], place: str) -> list[str]:
        if len(set(ids)) < len(ids):
            seen: set[str] = set()
            twice = next(id for id in ids if id in seen or seen.add(id))  # type: ignore[func-returns-value]
            raise self.error(
                place, f"{twice!r} is there more than once ({len(ids)} rows, {len(set(ids))} distinct)"
            )
        return ids

    def table(
        self,
        path: Path,
        columns: Sequence[str],
        *,
        delimiter: str = ",",
        header: bool = True,
        optional: int = 0,
    ) -> list[tuple[str, dict[str, str]]]:
        """The rows of a table that has these columns: (how to name the row in an error, column to text).

        Without a header these are the columns in order, the last `optional` of which may be absent.
        """
        reader = csv.reader(io.StringIO(self.text(path), newline=""), delimiter=delimiter)
        rows: list[tuple[str, dict[str, str]]] = []
        names = list(columns)
        try:
            for number, cells in enumerate(reader):
                if not cells:
                    continue
                if header and number == 0:
                    names = [name.strip() for name in cells]
                    if not set(columns) <= set(names):
                        raise self.wrong(
                            path, f"the columns {', '.join(columns)}", f"the columns {', '.join(names)[:200]}"
                        )
                    continue
                place = f"{path}, line {reader.line_num}"
                if len(cells) not in (range(len(names) - optional, len(names) + 1)):
                    if not rows:
                        raise self.wrong(
                            path, f"{len(names)} columns ({', '.join(names)})", f"{cells!r:.200}"
                        )
                    raise self.error(place, f"expected {len(names)} columns, got {len(cells)}")
                rows.append((place, dict(zip(names, cells, strict=False))))
        except csv.Error as error:
            raise HarvestError(f"{self.name}: {path}, line {reader.line_num}: {error}") from error
        if not rows:
            raise HarvestError(f"{self.name}: {path} holds no rows")
        return rows

    def json(self, path: Path) -> Any:
        text = self.text(path)
        if path.suffix.lower() == ".jsonl":
            text = "[" + ",".join(line for line in text.splitlines() if line.strip()) + "]"
        value = parse(Any, text, where=f"{self.name}: {path}")
        if not isinstance(value, (list, dict)) or not value:
            raise HarvestError(f"{self.name}: {path} holds no rows")
        return value

    def records(self, path: Path, keys: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
        """The objects of a JSON list, or of an object of objects, that have these keys (`a|b`: either)."""
        value = self.json(path)
        if isinstance(value, dict):
            objects = [(f"{path}, {key!r}", record) for key, record in value.items()]
        else:
            objects = [(f"{path}, entry {number}", record) for number, record in enumerate(value)]
        for place, record in objects:
            if not isinstance(record, dict) or not all(set(key.split("|")) & record.keys() for key in keys):
                found = f"the keys {', '.join(record)}" if isinstance(record, dict) else f"{record!r:.100}"
                expected = f"entries with {', '.join(key.replace('|', ' or ') for key in keys)}"
                if place == objects[0][0]:
                    raise self.wrong(path, expected, found)
                raise self.error(place, f"expected {expected}, found {found}")
        return objects

    def number(self, place: str, name: str, value: Any) -> float:
        try:
            return float(value)
        except (TypeError, ValueError):
            raise self.error(place, f"{name} should be a number, is {value!r}") from None

    def label(self, place: str, value: Any, *, classes: int, first: int = 0) -> int:
        """A class's number as an index from 0, where the file counts from `first`."""
        try:
            label = int(value) - first
        except (TypeError, ValueError):
            label = -1
        if not 0 <= label < classes:
            raise self.error(
                place,
                f"label {value!r} is none of the {classes} classes, which go from"
                f" {first} to {first + classes - 1}",
            )
        return label


def check_class_order(
    benchmark: str, class_names: Sequence[str], said: Mapping[str, tuple[int, str]], *, where: str
) -> None:
    """Raise HarvestError where rows' labels and names do not belong together in a list of classes.

    `said` is row id to (label, name of the class as another source has it). A list in another order gives every
    row a wrong class without any other sign.
    """
    wrong = [(id, label, name) for id, (label, name) in said.items() if class_names[label] != name]
    if wrong:
        id, label, name = wrong[0]
        known = class_names.index(name) if name in class_names else None
        raise HarvestError(
            f"{benchmark}: the class list {where} is in another order than the labels: {id} has label {label}, which"
            f" is {class_names[label]!r} in the list, but its class is {name!r}"
            + (f", number {known} in the list" if known is not None else ", which is not in the list")
            + f" ({len(wrong)} of {len(said)} rows disagree)"
        )


# ---------------------------------------------------------------------------------------------------------------
# Recognising files


class _Sign(NamedTuple):
    what: str
    keys: frozenset[str]  # JSON keys or columns that must all be there
    pattern: str  # that must be found in the head of the file


_MSRVTT, _MSVD, _DIDEMO = r"\bvideo\d+\b", r"[\w-]{11}_\d{1,5}_\d{1,5}\b", r"\d+@N\d\d_\d+"


def _sign(what: str, keys: str = "", pattern: str = "") -> _Sign:
    return _Sign(what, frozenset(keys.split()), pattern)


_SIGNS = [
    _sign("MSRVTT-MC (multiple choice)", "video caption answer", _MSRVTT),
    _sign("MSRVTT-MC (multiple choice)", "clip_name options answer"),
    _sign("MSR-VTT 1k-A", "vid_key video_id sentence"),
    _sign("MSR-VTT, all captions (MSRVTT_data.json)", "video_id category url"),
    _sign("MSRVTT-QA", "question answer", _MSRVTT),
    _sign("ActivityNet-QA", "question answer video", r'"v_[\w-]{11}_\d+"'),
    _sign("MSVD-QA", "question answer", _MSVD),
    _sign("TGIF-QA Action or Transition", "gif_name a1 a2 a3 a4 a5"),
    _sign("TGIF-QA FrameQA", "gif_name description"),
    _sign("TGIF-QA Count", "gif_name question"),
    _sign("MSRVTT-QA or MSVD-QA (official files)", "question answer category_id"),
    _sign("ActivityNet-QA", "question video_name"),
    _sign("ActivityNet-QA (answers)", "answer type question_id"),
    _sign("DiDeMo", "num_segments description times"),
    _sign("ActivityNet Captions or YouCook2 (captions with timestamps)", "duration timestamps sentences"),
    _sign("VATEX", "videoID enCap"),
    _sign("Something-Something V2", "template placeholders"),
    _sign("the class list of Something-Something V2", "", r"Approaching something with your camera"),
    _sign("Kinetics", "youtube_id time_start"),
    _sign("EPIC-KITCHENS-100", "narration_id narration"),
    _sign("YouCook2 (retrieval)", "task text video_id start end"),
    _sign("YouCook2 (official annotations)", "database recipe_type annotations"),
    _sign("Charades", "subject scene script"),
    _sign("Charades-STA", "", r"^\w{5} \d+\.\d+ \d+\.\d+##"),
    _sign("LSMDC", "", r"^\d{4}_\S+_\d\d\.\d\d\.\d\d\.\d{3}-"),
    _sign("UCF101", "", r"^\w+/v_\w+_g\d\d_c\d\d\.avi"),
    _sign("HMDB51", "", r"_np\d_(fr|ba|le|ri)_(goo|med|bad)_"),
    _sign("Moments in Time", "", r"^[^,\n]+\.mp4,[^,\n]+,\d+,\d+$"),
    _sign("AVA (boxes)", "", r"^[\w-]{11},\d{4},[\d.]+,[\d.]+,[\d.]+,[\d.]+,\d+"),
    _sign("AVA (excluded timestamps)", "", r"^[\w-]{11},\d{4}\s*$"),
    _sign("AVA (action list)", "", r"^(item|label) \{"),
    _sign("WebVid", "videoid page_dir"),
    _sign("captions of MSR-VTT", "video caption", _MSRVTT),
    _sign("captions of MSVD", "video caption", _MSVD),
    _sign("captions of DiDeMo", "video caption", _DIDEMO),
    _sign("captions of Something-Something V2", "video caption", r'"\d+\.(webm|mp4)"'),
    _sign("captions of ActivityNet or YouCook2", "video caption", r'"v_[\w-]{11}'),
    _sign("captions of MSVD", "", r'^\{?"?' + _MSVD + r'"?: \["'),
    _sign("captions of MSVD", "", r"^vid\d+\t"),
    _sign("ids of MSR-VTT", "", r"^video\d+$"),
    _sign("ids of VATEX", "", r"^[\w-]{11}_\d{6}_\d{6}$"),
    _sign("ids of MSVD", "", "^" + _MSVD + "$"),
    _sign("ids of DiDeMo", "", "^" + _DIDEMO),
]


def looks_like(path: str | Path) -> str | None:
    """Which benchmark's file this seems to be, by its keys, its columns and its ids; None where it is no known one."""
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            head = file.read(_HEAD)
    except OSError:
        return None
    if head.lstrip()[:1] in ("{", "["):
        keys = set(re.findall(r'"(\w+)"\s*:', head))
    else:
        first = head.partition("\n")[0]
        keys = {name.strip() for name in first.split("\t" if "\t" in first else ",")}
    for sign in _SIGNS:
        if sign.keys <= keys and re.search(sign.pattern, head, re.MULTILINE):
            return sign.what
    return None


def _held(paths: list[Path]) -> str:
    """What a folder holds, for an error: its first files and what they look like."""
    if not paths:
        return "The folder holds no files."
    said = []
    for path in paths[:6]:
        likely = looks_like(path)
        said.append(f"{path.name} ({likely})" if likely else path.name)
    more = f" and {len(paths) - 6} more" if len(paths) > 6 else ""
    return f"The folder holds {', '.join(said)}{more}."
