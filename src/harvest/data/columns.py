"""Examples as columns: ten million rows in a few flat arrays, in memory or mapped from files.

As Python objects a row takes 550 bytes, and a forked worker gets a copy of each page of them that it looks at, since
Python counts references within the objects. Arrays are shared by all processes of a machine, however they are read.

    id, video, text     UTF-8, one behind the other, with the place where each ends (`.ends`)
    texts.ends          of each row, where its texts end among all
    label               -2**63 where there is none; start_s; end_s, NaN where there is none
    rest                question, answer, labels and boxes as JSON, nothing where a row has none of them
    clip                the number of the row's stretch of a video, in order of appearance
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from harvest.interfaces import Box, Example, HarvestError

_NO_LABEL = -(2**63)
_TYPES = {"b": np.uint8, "q": np.int64, "d": np.float64}
_COLUMNS = {"id": "b", "video": "b", "text": "b", "rest": "b", "label": "q", "start_s": "d", "end_s": "d"} | {
    f"{name}.ends": "q" for name in ("id", "video", "text", "texts", "rest")
}
_FLUSH = 2**16  # rows
_NUMBERED = re.compile(r"(#\d+)+$")

Arrays = Mapping[str, np.ndarray]


class Columns(Sequence[Example]):
    """Rows that are made when they are looked at."""

    def __init__(self, arrays: Arrays | None = None) -> None:
        self.arrays: Arrays = arrays or {}

    def __len__(self) -> int:
        return len(self.arrays["label"]) if self.arrays else 0

    @overload
    def __getitem__(self, row: int) -> Example: ...
    @overload
    def __getitem__(self, row: slice) -> list[Example]: ...
    def __getitem__(self, row: int | slice) -> Example | list[Example]:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        row = range(len(self))[row]
        arrays = self.arrays
        first, end = self._stretch("texts", row)
        label, end_s, rest = int(arrays["label"][row]), float(arrays["end_s"][row]), self._string("rest", row)
        return Example(
            self._string("id", row),
            self._string("video", row),
            tuple(self._string("text", text) for text in range(first, end)),
            None if label == _NO_LABEL else label,
            float(arrays["start_s"][row]),
            None if math.isnan(end_s) else end_s,
            **(_rest_of(rest) if rest else {}),
        )

    def __iter__(self) -> Iterator[Example]:
        return (self[row] for row in range(len(self)))

    def _stretch(self, name: str, row: int) -> tuple[int, int]:
        ends = self.arrays[f"{name}.ends"]
        return int(ends[row - 1]) if row else 0, int(ends[row])

    def _string(self, name: str, row: int) -> str:
        start, end = self._stretch(name, row)
        return self.arrays[name][start:end].tobytes().decode("utf-8", "surrogatepass")

    def text_of(self, text: int) -> str:
        """One of the texts of all rows, numbered through."""
        return self._string("text", text)

    def id_of(self, row: int) -> str:
        return self._string("id", row)

    def samples_of(self, ids: Iterable[str]) -> dict[str, int]:
        """The rows of ids, as far as they are known."""
        wanted = set(ids)
        found = ((self.id_of(row), row) for row in range(len(self))) if wanted else ()
        return {id: row for id, row in found if id in wanted}

    @property
    def num_texts(self) -> Tensor:
        """int64 `[n]`"""
        return torch.from_numpy(np.diff(self.arrays["texts.ends"], prepend=0))

    @property
    def labels(self) -> Tensor:
        """The label of each row, int64 `[n]`, -1 where there is none; where a row has several, uint8 `[n, A]` with a 1
        for each."""
        listed = [(row, list(e.labels)) for row, e in enumerate(self) if e.labels] if self.has_rest else []
        if listed:
            several = torch.zeros(len(self), 1 + max(max(labels) for _, labels in listed), dtype=torch.uint8)
            for row, chosen in listed:
                several[row, chosen] = 1
            return several
        labels = self.arrays["label"]
        return torch.from_numpy(np.where(labels == _NO_LABEL, -1, labels))

    @property
    def clip_of(self) -> Tensor:
        """For each row the number of its clip, counted in order of appearance: int64 `[n]`."""
        return torch.from_numpy(self.arrays["clip"])

    @property
    def has_rest(self) -> bool:
        """Does any row have a question, an answer, a list of labels or boxes?"""
        return len(self.arrays["rest"]) > 0

    def texts_digest(self) -> str:
        """What all texts are, in their order."""
        return self._digest("texts.ends", "text.ends", "text")

    def clips_digest(self) -> str:
        """What stretches of videos the rows are of."""
        return self._digest("video.ends", "video", "start_s", "end_s")

    def _digest(self, *names: str) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for name in names:
            digest.update(np.ascontiguousarray(self.arrays[name]).data)
        return digest.hexdigest()

    def save(self, folder: Path, about: Mapping[str, Any]) -> None:
        """Note what files of `ColumnWriter` hold; `about` is anything that JSON holds."""
        for name in self.arrays.keys() - _COLUMNS.keys():  # those of the writer are there
            self.arrays[name].tofile(folder / f"{name}.bin")
        sizes = {name: [column.dtype.str, len(column)] for name, column in self.arrays.items()}
        (folder / "columns.json").write_text(json.dumps({"sizes": sizes, "about": about}))


def open_columns(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The columns of a folder, mapped, and what was noted about them. Raises HarvestError where they are not whole."""
    try:
        noted = json.loads((folder / "columns.json").read_text())
        arrays = {}
        for name, (kind, size) in noted["sizes"].items():
            path, dtype = folder / f"{name}.bin", np.dtype(kind)
            if path.stat().st_size != size * dtype.itemsize:
                raise ValueError(
                    f"{path.name} has {path.stat().st_size} bytes, expected {size * dtype.itemsize}"
                )
            # a memmap is slow to slice, an array of its memory is not; "c", as PyTorch warns of arrays not to be written
            arrays[name] = np.asarray(np.memmap(path, dtype, "c")) if size else np.empty(0, dtype)
        return arrays, noted["about"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HarvestError(f"{folder} cannot be read ({error}): remove it") from error


class ColumnWriter:
    """Collects rows, in memory or, in a folder, on disk. An id that comes again gets `#2`, `#3`, … at the end."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._parts: dict[str, Any] = {
            name: bytearray() if kind == "b" else array(kind) for name, kind in _COLUMNS.items()
        }
        self._sizes = dict.fromkeys(("id", "video", "text", "texts", "rest"), 0)
        self._files = (
            {} if folder is None else {name: (folder / f"{name}.bin").open("wb") for name in _COLUMNS}
        )
        self._plain_ids, self._stretches, self._said = array("q"), array("q"), array("q")  # hashes
        self.says_something = False

    def __len__(self) -> int:
        return len(self._stretches)

    def append(self, example: Example) -> None:
        parts = self._parts
        self._add("id", example.id)
        self._add("video", example.video)
        for text in example.texts:
            self._add("text", text)
        self._sizes["texts"] += len(example.texts)
        parts["texts.ends"].append(self._sizes["texts"])
        parts["label"].append(_NO_LABEL if example.label is None else example.label)
        parts["start_s"].append(example.start_s)
        parts["end_s"].append(math.nan if example.end_s is None else example.end_s)
        self._add("rest", _rest_text(example))
        e, stretch = example, (example.video, example.start_s, example.end_s)
        self._plain_ids.append(hash(_NUMBERED.sub("", e.id) if "#" in e.id else e.id))
        self._stretches.append(hash(stretch))
        self._said.append(hash((stretch, e.texts, e.label, e.question, e.answer, e.boxes)))
        self.says_something |= bool(e.texts) or e.label is not None
        if self._files and len(self) % _FLUSH == 0:
            self._flush()

    def _add(self, name: str, text: str) -> None:
        if text:
            data = text.encode("utf-8", "surrogatepass")
            self._parts[name] += data
            self._sizes[name] += len(data)
        self._parts[f"{name}.ends"].append(self._sizes[name])

    def _flush(self) -> None:
        for name, file in self._files.items():
            file.write(self._parts[name])
            self._parts[name] = self._parts[name][:0]

    def finish(self) -> tuple[Arrays, list[int]]:
        """The columns, and the rows that say the same of the same stretch as a row before."""
        arrays: dict[str, np.ndarray] = {}
        self._flush()
        for name, kind in _COLUMNS.items():
            dtype = np.dtype(_TYPES[kind])
            if not self._files:
                arrays[name] = np.frombuffer(self._parts[name], dtype)
                continue
            self._files[name].close()
            path = Path(self._files[name].name)
            arrays[name] = np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)
        found = Columns(arrays)
        arrays["clip"] = _numbered(self._stretches, lambda row: _stretch_of(found, row))
        self._number_ids(found, arrays)
        repeats = np.ones(len(self), dtype=bool)
        repeats[np.unique(np.frombuffer(self._said, np.int64), return_index=True)[1]] = False
        return arrays, np.flatnonzero(repeats).tolist()

    def _number_ids(self, found: Columns, arrays: dict[str, np.ndarray]) -> None:
        """Make ids unique. Those whose form without numbers is there once are so already."""
        values, inverse, counts = np.unique(
            np.frombuffer(self._plain_ids, np.int64), return_inverse=True, return_counts=True
        )
        if len(values) == len(self):
            return
        unique = Ids()
        ids, ends = bytearray(), array("q")
        for row, is_shared in enumerate((counts > 1)[inverse].tolist()):
            id = found.id_of(row)
            ids += (unique(id) if is_shared else id).encode("utf-8", "surrogatepass")
            ends.append(len(ids))
        arrays["id"], arrays["id.ends"] = np.frombuffer(ids, np.uint8), np.frombuffer(ends, np.int64)
        if self.folder is not None:
            for name in ("id", "id.ends"):
                (self.folder / f"{name}.bin").unlink()  # it is mapped: not the same file
                arrays[name].tofile(self.folder / f"{name}.bin")


def columns_of_rows(examples: Iterable[Example]) -> Columns:
    """Examples as columns in memory; an id that comes again gets `#2`, `#3`, … at the end."""
    writer = ColumnWriter()
    for example in examples:
        writer.append(example)
    return Columns(writer.finish()[0])


class Ids:
    """The ids that were given away. One that comes again gets `#2`, `#3`, …"""

    def __init__(self) -> None:
        self.times_given: dict[str, int] = {}

    def __call__(self, id: str) -> str:
        times = self.times_given.get(id, 0) + 1
        self.times_given[id] = times
        if times == 1:
            return id
        candidate = f"{id}#{times}"
        if candidate in self.times_given:
            return self(candidate)
        self.times_given[candidate] = 1
        return candidate


def _stretch_of(rows: Columns, row: int) -> tuple[str, float, float]:
    arrays = rows.arrays
    end_s = float(arrays["end_s"][row])
    return rows._string("video", row), float(arrays["start_s"][row]), -1.0 if math.isnan(end_s) else end_s


def _numbered(hashes: array[int], value_of: Callable[[int], Any]) -> np.ndarray:
    """Of each row the number of its value, counted in order of appearance; rows of one value have one hash."""
    found = np.frombuffer(hashes, np.int64)
    _, first, inverse = np.unique(found, return_index=True, return_inverse=True)
    numbers = np.empty(len(first), np.int64)
    numbers[np.argsort(first)] = np.arange(len(first))
    for row in np.flatnonzero(first[inverse] != np.arange(len(found))).tolist():
        if value_of(row) != value_of(
            int(first[inverse[row]])
        ):  # two values of one hash: count them one by one
            seen: dict[Any, int] = {}
            return np.array(
                [seen.setdefault(value_of(row), len(seen)) for row in range(len(found))], np.int64
            )
    return numbers[inverse]


def _rest_text(example: Example) -> str:
    rest: dict[str, Any] = {
        name: getattr(example, name) for name in ("question", "answer") if getattr(example, name) is not None
    }
    if example.labels:
        rest["labels"] = example.labels
    if example.boxes:
        rest["boxes"] = [(box.sides, box.labels, box.score) for box in example.boxes]
    return json.dumps(rest) if rest else ""


def _rest_of(text: str) -> dict[str, Any]:
    rest = json.loads(text)
    if "labels" in rest:
        rest["labels"] = tuple(rest["labels"])
    if "boxes" in rest:
        rest["boxes"] = tuple(
            Box(tuple(sides), tuple(labels), score) for sides, labels, score in rest["boxes"]
        )
    return rest
