"""Rows of table files: CSV, TSV, JSONL, JSON and Parquet, plain or compressed with gzip or zip.

A row that cannot be read is a row with an error, so that it costs itself and nothing else. What makes it impossible to
tell rows apart, such as a quote that is never closed, is an error of the file.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

from harvest.interfaces import HarvestError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
PACKED = (".gz", ".zip")
KEY = "(key)"
"""The column that holds the key of a JSON object of objects."""

_WHOLE = ({"videos", "sentences"}, {"images", "annotations"}, {"meta", "data"})
"""Keys of JSON objects that hold several tables: these are one row."""
_MAX_CELL = 2**24  # characters
_CHUNK = 2**20
_MAX_LINES = 100  # of one cell between tabs

csv.field_size_limit(_MAX_CELL)


class TableRow(NamedTuple):
    """One row: column -> value, or the error why it could not be read."""

    place: str  # how to name it in an error, such as "line 3"
    number: int  # from 0
    cells: Mapping[str, Any]
    error: str | None = None


class VideoBytes(NamedTuple):
    """What stands in a row for the bytes of a video: they are read when the video is (`parquet_cell`)."""

    column: str
    name: str | None  # of the file they come from
    is_there: bool


def kind_of(path: Path) -> str:
    """The suffix that tells the format, without that of a compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def table_rows(path: Path) -> Iterator[TableRow]:
    """The rows of a table file. Raises HarvestError for a file in which rows cannot be told apart."""
    kind = kind_of(path)
    try:
        if kind == ".parquet":
            yield from _parquet_rows(path)
            return
        with _text(path) as file:
            if kind in (".csv", ".tsv"):
                yield from _delimited_rows(file, path, kind)
            else:
                yield from _json_rows(file, path)
    except UnicodeError as error:
        raise HarvestError(f"manifest {path} is not UTF-8 text ({error}): save it as UTF-8") from error
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise HarvestError(f"manifest {path} cannot be read: {error}") from error


@contextmanager
def _text(path: Path) -> Iterator[IO[str]]:
    """A file as text. Bytes that are not UTF-8 become lone surrogates, which cost their row (`_not_text`)."""
    with path.open("rb") as raw:
        binary: Any = raw
        if path.suffix.lower() == ".gz":
            binary = gzip.GzipFile(fileobj=raw)
        elif path.suffix.lower() == ".zip":
            archive = zipfile.ZipFile(raw)
            names = [name for name in archive.namelist() if not name.endswith("/")]
            if len(names) != 1:
                raise HarvestError(f"manifest {path}: expected one file in it, found {len(names)}: unpack it")
            binary = archive.open(names[0])
        buffered = io.BufferedReader(binary)
        is_wide = buffered.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff")  # a byte order mark says UTF-16
        encoding, errors = ("utf-16", "strict") if is_wide else ("utf-8-sig", "surrogateescape")
        with io.TextIOWrapper(buffered, encoding=encoding, errors=errors, newline="") as file:
            yield file


def _not_text(text: str) -> bool:
    return not text.isascii() and any("\udc80" <= character <= "\udcff" for character in text)


# ---------------------------------------------------------------------------------------------------------------
# CSV and TSV


def _delimited_rows(file: IO[str], path: Path, kind: str) -> Iterator[TableRow]:
    first = file.readline()
    if not first.strip():
        return
    delimiter = "\t" if kind == ".tsv" else next((d for d in ",\t;" if d in first), ",")
    records = _records(chain([first], file), path, delimiter)
    header = next(records)
    if header[2] is not None:
        raise HarvestError(f"manifest {path}, {header[0]}: {header[2]}")
    names, cells = header_of(header[1], path)
    first_row = [(header[0], cells, None)] if cells else []
    for number, (place, found, error) in enumerate(chain(first_row, records)):
        if error is None and len(names) == 2 and len(found) == 1 and cells and len(cells) == 2:
            found = list(found[0].rpartition(" ")[::2])
        if error is None and len(found) != len(names):
            error = (
                f"expected {len(names)} columns ({', '.join(names)}), got {len(found)}: put text that holds a"
                f" {delimiter!r} in quotes"
            )
        if error is None and _not_text("".join(found)):
            error = "not UTF-8 text: save the file as UTF-8"
        values = {} if error else {n: v for n, v in zip(names, found, strict=True) if n.strip()}
        yield TableRow(place, number, values, error)


def header_of(cells: list[str], path: Path) -> tuple[list[str], list[str]]:
    """(column names, cells of the first row where the file has no header).

    A file without a header is known by its first line: two columns, of which one names a video and the other says
    something of it. `path label` parted by a blank is such a line too.
    """
    if len(cells) == 1 and " " in cells[0] and is_file_name(cells[0].rpartition(" ")[0]):
        cells = list(cells[0].rpartition(" ")[::2])
    are_files = [is_file_name(cell) for cell in cells]
    if not any(are_files):
        names = [name.strip().lower() for name in cells if name.strip()]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise HarvestError(f"manifest {path}: more than one column is called {twice[0]!r}: rename them")
        return cells, []
    if len(cells) != 2 or all(are_files):
        raise HarvestError(
            f"manifest {path} has no header: its first line is a row ({', '.join(cells):.80}); put a line with the"
            " names of the columns before it, such as video,caption"
        )
    other = cells[are_files.index(False)]
    said = "label" if other.strip().isdecimal() else "caption"
    return (["video", said] if are_files[0] else [said, "video"]), cells


def is_file_name(text: str) -> bool:
    """Does this name a video or picture, as a path or an address, rather than a column?"""
    text = text.strip().lower()
    return text.startswith(("http://", "https://")) or text.endswith(_FILES)


_FILES = tuple(
    f".{suffix}"
    for suffix in [
        "mp4",
        "avi",
        "webm",
        "mkv",
        "mov",
        "m4v",
        "mpg",
        "mpeg",
        "wmv",
        "flv",
        "3gp",
        "gif",
        "jpg",
        "jpeg",
        "png",
        "webp",
    ]
)


def _records(lines: Iterable[str], path: Path, delimiter: str) -> Iterator[tuple[str, list[str], str | None]]:
    """(place, cells, error) of each record that is not blank."""
    if delimiter == "\t":
        yield from _tab_records(lines)
        return
    reader = csv.reader(_lines(lines), delimiter=delimiter, strict=True)
    while True:
        first = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if reader.line_num > first or "end of data" in str(error):
                raise HarvestError(
                    f"manifest {path}, line {first}: a quote that opens there is not closed, so that rows cannot be told"
                    f" apart (up to line {reader.line_num}: {error}): double the quotes within text"
                ) from error
            yield f"line {first}", [], str(error)
            continue
        if cells:
            yield f"line {first}", cells, None


def _tab_records(lines: Iterable[str]) -> Iterator[tuple[str, list[str], str | None]]:
    """Files with tabs are mostly written without quoting: a quote counts only where a cell is quoted as a whole."""
    source, ahead = iter(_lines(lines)), deque[str]()
    number, width = 0, 0
    while (line := ahead.popleft() if ahead else next(source, None)) is not None:
        number += 1
        place, cells = f"line {number}", line.rstrip("\r\n").split("\t")
        if any(cell.startswith('"') and _unquoted(cell) == cell for cell in cells):
            while len(ahead) < _MAX_LINES and (more := next(source, None)) is not None:
                ahead.append(more)
            taken, found = _quoted_record([line, *ahead], width)
            if found:
                for _ in range(taken - 1):
                    ahead.popleft()
                number += taken - 1
                yield place, found, None
                continue
        width = width or len(cells)
        if cells != [""]:
            yield place, [_unquoted(cell) for cell in cells], None


def _quoted_record(lines: Sequence[str], width: int) -> tuple[int, list[str]]:
    """(lines taken, cells) of a record with quoted cells that go over line breaks; no cells where it is none."""
    reader = csv.reader(lines, delimiter="\t", strict=True)
    try:
        cells = next(reader)
    except (csv.Error, StopIteration):
        return 0, []
    return (reader.line_num, cells) if len(cells) == width else (0, [])


def _lines(lines: Iterable[str]) -> Iterator[str]:
    """Lines that end in CR alone, as old spreadsheets write them, are lines too."""
    for line in lines:
        if "\r" in line.rstrip("\r\n"):
            yield from line.splitlines(keepends=True)
        else:
            yield line


def _unquoted(cell: str) -> str:
    inner = cell[1:-1]
    is_quoted = len(cell) >= 2 and cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if is_quoted else cell


# ---------------------------------------------------------------------------------------------------------------
# JSON


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key is there more than once")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_distinct)


def _json_rows(file: IO[str], path: Path) -> Iterator[TableRow]:
    """Lines of objects, an array of objects, or an object of objects or of columns."""
    first = file.readline()
    while first and not first.strip():
        first = file.readline()
    if not first:
        return
    if kind_of(path) != ".json" and not first.lstrip().startswith("["):
        yield from _line_rows(chain([first], file))
        return
    if first.lstrip().startswith("["):
        yield from _array_rows(first.lstrip()[1:], file, path)
        return
    text = first + file.read()
    value, error = _decoded(text)
    if error:  # a .json that holds lines
        rows = list(_line_rows(io.StringIO(text)))
        if all(row.error for row in rows):
            raise HarvestError(f"manifest {path} is {error}")
        yield from rows
        return
    yield from _object_rows(value)


def _line_rows(lines: Iterable[str]) -> Iterator[TableRow]:
    number = 0
    for line_number, line in enumerate(lines, 1):
        for part in line.rstrip("\r\n").split("\r"):
            if part.strip():
                value, error = _decoded(part)
                yield _json_row(f"line {line_number}", number, value, error)
                number += 1


def _decoded(text: str) -> tuple[Any, str | None]:
    if _not_text(text):
        return None, "not UTF-8 text: save the file as UTF-8"
    try:
        return _DECODER.decode(text), None
    except RecursionError:
        return None, "not JSON that can be read: it is nested too deeply"
    except ValueError as error:
        return None, f"not JSON ({error})"


def _json_row(place: str, number: int, value: Any, error: str | None = None) -> TableRow:
    if error is None and not isinstance(value, dict):
        error = f"expected an object {{…}} with the row's columns, got {type(value).__name__}"
    return TableRow(place, number, {} if error else value, error)


def _array_rows(buffer: str, file: IO[str], path: Path) -> Iterator[TableRow]:
    """The objects of an array, of which only one at a time is held: some sets are arrays of 20 GB."""
    number, at_end = 0, False
    while True:
        buffer = buffer.lstrip().removeprefix(",").lstrip()
        if buffer.startswith("]"):
            return
        try:
            value, end = _DECODER.raw_decode(buffer)
            is_whole = buffer[end:].lstrip()[:1] in (",", "]")
            error = None
        except RecursionError as wrong:
            raise HarvestError(f"manifest {path}, entry {number + 1}: JSON nested too deeply") from wrong
        except ValueError as wrong:
            is_whole, error = False, wrong
        if is_whole:
            wrong_text = _not_text(buffer[:end])
            said = "not UTF-8 text: save the file as UTF-8" if wrong_text else None
            yield _json_row(f"entry {number + 1}", number, value, said)
            buffer, number = buffer[end:], number + 1
        elif at_end or len(buffer) > _MAX_CELL * 16:
            raise HarvestError(
                f"manifest {path}, entry {number + 1}: not JSON ({error or 'the array does not end'})"
            )
        else:
            chunk = file.read(max(_CHUNK, len(buffer)))
            buffer, at_end = buffer + chunk, not chunk


def _object_rows(value: Any) -> Iterator[TableRow]:
    """One row of an object that is one row or several tables; a row an entry of one that maps keys to objects."""
    values = list(value.values()) if isinstance(value, dict) else []
    if any(keys <= value.keys() for keys in _WHOLE) or not values:
        yield _json_row("the object", 0, value)
    elif all(isinstance(column, list) for column in values) and len({len(c) for c in values}) == 1:
        for number, cells in enumerate(zip(*values, strict=True)):
            yield TableRow(f"entry {number + 1}", number, dict(zip(value, cells, strict=True)))
    elif all(isinstance(entry, dict) for entry in values):
        for number, (key, entry) in enumerate(value.items()):
            yield TableRow(f"entry {key!r:.60}", number, {KEY: key, **entry})
    else:
        yield _json_row("the object", 0, value)


# ---------------------------------------------------------------------------------------------------------------
# Parquet


def _parquet_rows(path: Path) -> Iterator[TableRow]:
    """Bytes of videos are left where they are: the row holds `VideoBytes` in their place."""
    parquet, pyarrow = _pyarrow(path)
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            columns, packed = _columns_of(file)
            for group in range(file.num_row_groups):
                has_bytes = {
                    column: _has_bytes(file, group, leaf, path) for column, leaf in packed.items() if leaf
                }
                for batch in file.iter_batches(row_groups=[group], columns=columns):
                    rows = batch.to_pylist() if columns else [{} for _ in range(batch.num_rows)]
                    for row in rows:
                        place = f"row {number + 1}"
                        for column, present in has_bytes.items():
                            inside = row.get(column)
                            name = inside.get("path") if isinstance(inside, dict) else None
                            row[column] = VideoBytes(column, name, present[number - start_of(file, group)])
                        yield TableRow(place, number, row)
                        number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise HarvestError(f"manifest {path} is not a Parquet file that can be read: {error}") from error
    except (ValueError, OverflowError) as error:  # e.g. a date that Python does not have
        raise HarvestError(f"manifest {path}, row {number + 1} and on: {error}") from error


def start_of(file: Any, group: int) -> int:
    """The number of a row group's first row."""
    return sum(file.metadata.row_group(g).num_rows for g in range(group))


def _pyarrow(path: Path) -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise HarvestError(f"manifest {path}: reading Parquet needs pyarrow: pip install pyarrow") from error
    return parquet, pyarrow


def _columns_of(file: Any) -> tuple[list[str], dict[str, str | None]]:
    """The columns to read, and (column -> column of its bytes) of those that hold videos."""
    columns: list[str] = []
    packed: dict[str, str | None] = {}
    for column in file.schema_arrow:
        inside = {column.type.field(i).name for i in range(column.type.num_fields)}
        if str(column.type).startswith("struct") and "bytes" in inside:
            packed[column.name] = f"{column.name}.bytes"
            columns += [f"{column.name}.{name}" for name in sorted(inside - {"bytes"})]
        elif str(column.type) in ("binary", "large_binary") and column.name.lower() in _BYTES:
            packed[column.name] = column.name
        else:
            columns.append(column.name)
    return columns, packed


_BYTES = ("mp4", "video", "video_blob", "video_bytes", "webm", "jpg", "image", "image_bytes", "bytes")


def _has_bytes(file: Any, group: int, leaf: str, path: Path) -> list[bool]:
    """For each row of a group whether its bytes are there: by the file's own counts, else by reading them."""
    about = file.metadata.row_group(group)
    for place in range(about.num_columns):
        column = about.column(place)
        nulls = column.statistics.null_count if column.path_in_schema == leaf and column.statistics else None
        if nulls in (0, about.num_rows):
            return [nulls == 0] * about.num_rows
    present: list[bool] = []
    for batch in file.iter_batches(batch_size=8, row_groups=[group], columns=[leaf]):
        cells = batch.column(0)
        present += (cells.field("bytes") if "." in leaf else cells).is_valid().to_pylist()
    return present


def parquet_cell(path: str, row: int, column: str) -> bytes:
    """The bytes of a video in a Parquet file. Rows one after the other are read in one pass over their group."""
    stat = Path(path).stat()
    return _cells(path, column, stat.st_mtime_ns, stat.st_size).read(row)


class _Cells:
    """A column of bytes, read on from where the last call stopped where that is possible."""

    def __init__(self, path: str, column: str) -> None:
        self.path, self.column = path, column
        self._next = 0
        self._cells: Iterator[Any] = iter(())

    def read(self, row: int) -> bytes:
        if row < self._next or self._next == 0 or row > self._next + 64:
            self._seek(row)
        for cell in self._cells:
            self._next += 1
            if self._next == row + 1:
                return bytes(cell)
        raise HarvestError(f"{self.path} has no row {row + 1}")

    def _seek(self, row: int) -> None:
        parquet, _ = _pyarrow(Path(self.path))
        file = parquet.ParquetFile(self.path)
        groups = [g for g in range(file.num_row_groups) if start_of(file, g + 1) > row]
        if not groups:
            raise HarvestError(f"{self.path} has no row {row + 1}")
        self._next = start_of(file, groups[0])
        is_struct = str(file.schema_arrow.field(self.column).type).startswith("struct")
        leaf = f"{self.column}.bytes" if is_struct else self.column
        batches = file.iter_batches(batch_size=4, row_groups=groups, columns=[leaf])
        self._cells = (
            cell["bytes"] if is_struct else cell for batch in batches for cell in batch.column(0).to_pylist()
        )


@lru_cache(maxsize=4)
def _cells(path: str, column: str, stamp: int, size: int) -> _Cells:
    return _Cells(path, column)
