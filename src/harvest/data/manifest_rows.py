"""The rows of a manifest: columns, and what became of the rows that are not among them.

A large manifest is read once, strictly, in minutes; its columns are kept in the user's cache folder, from where later
starts and all processes of a machine map them, in seconds. They are of the same files, by path, size and time of
change, read with the same settings. Rows that depend on which videos are there are read each time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harvest.data.columns import Arrays, Columns, open_columns
from harvest.data.forms import FORMS, Form
from harvest.data.shards import cache_folder
from harvest.files import new_folder
from harvest.interfaces import Example

_FORMAT = 2
WORTH_KEEPING = 2**25
"""Bytes of manifests whose columns are kept, about half a million rows: reading fewer takes seconds."""


class Rows(Columns):
    """The rows of a manifest, and what became of the others."""

    def __init__(self, arrays: Arrays | None = None, *, name: str = "", form: Form | None = None) -> None:
        super().__init__(arrays)
        self.name, self.form = name, form
        self.num_read = 0
        """Rows of the file."""
        self.left_out: dict[str, str] = {}
        """Place in the file -> what is wrong with the row."""
        self.missing: dict[str, str] = {}
        """Of a known set: id -> where its video was expected."""
        self.columns: list[str] = []
        """Names of the columns, in lower case."""
        self.links: dict[str, str] = {}
        """With `keep_links`: id -> the address of the video that the row gives."""
        self.repeated: list[str] = []
        """Ids of rows that say the same of the same stretch as a row before."""
        self.known_digest: dict[str, Any] | None = None
        """`digest_of` the rows, where they were kept."""
        self.known_texts: str | None = None
        """`texts_digest` where they were kept."""

    def texts_digest(self) -> str:
        return self.known_texts or super().texts_digest()

    def summary(self) -> str:
        """How many rows were read and left out, and why the first."""
        videos = int(self.clip_of.max()) + 1 if len(self) else 0
        said = f"read as {self.form.title}: " if self.form else ""
        parts = [f"{self.name}: {said}{videos:,} videos, {len(self):,} clips of {self.num_read:,} rows"]
        if self.left_out:
            place, reason = next(iter(self.left_out.items()))
            parts.append(f"{len(self.left_out):,} rows left out, first: {place}: {reason}")
        if self.missing:
            id, path = next(iter(self.missing.items()))
            parts.append(f"{len(self.missing):,} clips without a video, first: {id}: {path}")
        if self.repeated:
            parts.append(
                f"{len(self.repeated):,} rows repeat another row's stretch and words, first: {self.repeated[0]}"
            )
        return "\n  ".join(parts)


_NOTED = ("name", "num_read", "left_out", "missing", "columns", "repeated")


class KeptRows:
    """Where the columns of some manifest files, read in some way, are kept."""

    def __init__(self, parts: Sequence[Path], asked: Sequence[Any]) -> None:
        stats = [(str(part.absolute()), part.stat().st_size, part.stat().st_mtime_ns) for part in parts]
        self.is_worth_it = sum(size for _, size, _ in stats) >= WORTH_KEEPING
        key = json.dumps([_FORMAT, stats, asked, str(Path.cwd())])
        self.folder = cache_folder() / "manifests" / hashlib.blake2b(key.encode(), digest_size=16).hexdigest()

    def opened(self) -> Rows | None:
        """The rows, where they are kept."""
        if not self.is_worth_it or not self.folder.is_dir():
            return None
        arrays, about = open_columns(self.folder)
        rows = Rows(arrays, form=FORMS[about["form"]] if about["form"] else None)
        for name in _NOTED:
            setattr(rows, name, about[name])
        rows.known_digest, rows.known_texts = about["digest"], about["texts"]
        return rows

    def made(self, read: Callable[[Path | None], tuple[Rows, bool]]) -> Rows:
        """Rows as `read` gives them, kept where they are settled. It writes columns into a folder, or keeps them in
        memory where it is given none."""
        try:
            with new_folder(self.folder) as folder:
                rows, is_settled = read(folder)
                if not is_settled:
                    raise _Unsettled
                about = {name: getattr(rows, name) for name in _NOTED}
                about |= {"form": rows.form.name if rows.form else None, "digest": digest_of(rows)}
                about["texts"] = rows.texts_digest()
                rows.save(folder, about)
        except _Unsettled:
            return rows
        except OSError:  # without a place to keep them they are read again next time
            return read(None)[0]
        kept = self.opened()
        return rows if kept is None else kept


class _Unsettled(Exception):
    pass


def digest_of(rows: Sequence[Example]) -> dict[str, Any]:
    """How many rows there are, and a digest of them; videos count by their names, wherever they lie."""
    if isinstance(rows, Rows) and rows.known_digest is not None:
        return rows.known_digest
    digest = hashlib.blake2b(digest_size=16)
    for row in rows:
        named = dataclasses.replace(row, video=row.video.rsplit("/", 1)[-1])
        digest.update(repr(named).encode())
    return {"rows": len(rows), "digest": digest.hexdigest()}
