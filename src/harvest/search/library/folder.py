"""A library's folder: what it is, which model it belongs to, and who may write to it.

library/library.db        facts, files, moments and vectors (local_store.py)
library/vectors-*.usearch the approximate index of a large library; made again when it is gone
library/quarantine.jsonl  files that could not be indexed, or not in whole, and why
library/.lock             held by the one indexer that is at work
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harvest.errors import HarvestError
from harvest.files import write_file
from harvest.search.encoders.encoder import Encoder, signature
from harvest.search.library.database import Database
from harvest.search.library.local_store import LocalStore
from harvest.search.library.postgres import PostgresDatabase, PostgresStore, indexing_alone
from harvest.search.library.segmentation import Segmentation
from harvest.search.library.store import Store
from harvest.search.results import is_address
from harvest.settings import from_dict, parse

FORMAT = 2


@dataclass(frozen=True)
class Facts:
    """What all of a library has in common."""

    model: str
    """The model's source as it was named; a folder as its absolute path."""
    model_digest: str
    model_signature: str
    """Size and time of the weights, which tell cheaply that they are still the same."""
    width: int
    """Of the vectors."""
    segmentation: Segmentation
    rerank: int = 0
    """So many first answers are read again beside the sentence, unless a search says otherwise."""
    trust: tuple[str, ...] = ()
    """Folders outside those indexed that links may lead into."""
    knows_everyday_words: bool = True
    """Whether the model's vocabulary has them."""
    format: int = FORMAT

    @property
    def warning(self) -> str | None:
        """What a user of the library should know before the first search."""
        if self.knows_everyday_words:
            return None
        return (
            "This library's model knows coloured shapes only: it learned from generated clips. To search real videos, "
            "index them with another model: harvest index … --model MODEL --reindex"
        )

    def to_json(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode()

    @staticmethod
    def from_json(text: bytes, name: str) -> Facts:
        where = "its facts"
        try:
            values: dict[str, Any] = parse(dict[str, Any], text, where=where)
            found = from_dict(int, values.get("format"), where=where, path="format")
            if found == FORMAT:
                facts: Facts = from_dict(Facts, values, where=where)
                return facts
        except HarvestError as error:
            raise HarvestError(
                f"{name}: its facts are damaged ({error}): index anew with --reindex"
            ) from error
        raise HarvestError(
            f"{name} was written by a newer Harvest (format {found}, this one reads {FORMAT}): update Harvest"
            if found > FORMAT
            else f"{name} was written by an older Harvest (format {found}): index anew with --reindex"
        )


class Library:
    """An open library."""

    def __init__(self, database: Database | PostgresDatabase, facts: Facts) -> None:
        self.database = database
        self.facts = facts
        self.store = store_of(database, facts.width)

    @staticmethod
    def open(place: str | Path) -> Library:
        """Open a library, a folder or an address; HarvestError where it is none, is not finished being made, or is from
        a newer Harvest."""
        database = open_database(place, create=False)
        with closed_on_error(database):
            facts = read_facts(database)
            if facts is None:
                raise HarvestError(f"{database.name} holds nothing yet: run harvest index again")
            return Library(database, facts)

    def check_model(self, model: Encoder) -> None:
        """HarvestError unless a model is the one of this library, by size and time of its file or by its weights."""
        facts = self.facts
        if facts.model_signature and (model.source, signature(model.source)) == (
            facts.model,
            facts.model_signature,
        ):
            return
        if model.digest != self.facts.model_digest:
            raise HarvestError(
                f"{self.database.name} was indexed with the model {self.facts.model}, and {model.source} is another: their "
                "vectors cannot be compared. Give that model, or index anew: harvest index … --reindex"
            )

    def close(self) -> None:
        self.store.close()
        self.database.close()


def open_database(place: str | Path, *, create: bool) -> Database | PostgresDatabase:
    """What a library is kept in: SQLite in a folder, or PostgreSQL at an address."""
    if is_address(place):
        return PostgresDatabase(str(place), create=create)
    return Database(Path(place) / "library.db", create=create)


@contextmanager
def closed_on_error(database: Database | PostgresDatabase) -> Iterator[None]:
    """Close a database that nobody gets to use."""
    try:
        yield
    except BaseException:
        database.close()
        raise


def store_of(database: Database | PostgresDatabase, width: int) -> Store:
    if isinstance(database, PostgresDatabase):
        return PostgresStore(database, width=width)
    return LocalStore(database, width=width)


def read_facts(database: Database | PostgresDatabase) -> Facts | None:
    found = database.get("facts")
    return None if found is None else Facts.from_json(found, database.name)


@contextmanager
def writing(place: str | Path) -> Iterator[bytes | None]:
    """Be the only indexer of a library; HarvestError where another is at work. The lock ends with the process.

    Yields what a database knows the run by (`PostgresDatabase.join`).
    """
    if is_address(place):
        with indexing_alone(str(place)) as claim:
            yield claim
        return
    folder = Path(place)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise HarvestError(f"cannot write to {folder}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            who = os.read(lock, 40).decode(errors="replace").strip()
            raise HarvestError(
                f"{folder} is being indexed by process {who or 'unknown'}: wait for it, or end it"
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield None
    finally:
        os.close(lock)


def write_quarantine(folder: Path, rows: list[dict[str, str]]) -> None:
    """The quarantine report for other programs, seen whole or not at all."""
    try:
        write_file(folder / "quarantine.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    except OSError as error:
        raise HarvestError(f"cannot write to {folder}: {error.strerror}") from error
