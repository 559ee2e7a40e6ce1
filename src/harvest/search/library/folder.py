"""A library's folder: what it is, which model it belongs to, and who may write to it.

library/library.db        facts, files, moments and vectors (local_store.py)
library/vectors-*.usearch the approximate index of a large library; made again when it is gone
library/quarantine.jsonl  files that could not be indexed, or not in whole, and why
library/.lock             held by the one indexer that is at work
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from harvest.evaluation.clips import evaluating
from harvest.files import write_file
from harvest.interfaces import HarvestError, TextFeatures
from harvest.model.folder import Unfilled, read_notes
from harvest.model.importing.pretrained import load_pretrained
from harvest.model.importing.sources import find_local
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_text import VideoTextModel
from harvest.search.library.database import Database
from harvest.search.library.local_store import LocalStore
from harvest.search.library.postgres import PostgresDatabase, PostgresStore, indexing_alone
from harvest.search.library.segmentation import Segmentation
from harvest.search.library.store import Store
from harvest.search.results import is_address
from harvest.settings import from_dict, parse

FORMAT = 2
_EVERYDAY_WORDS = [
    "astronaut",
    "ironing",
    "shirts",
    "empty",
    "swimming",
    "pool",
    "kangaroo",
    "conducting",
    "orchestra",
    "volcano",
    "beekeeper",
    "folding",
    "paper",
    "train",
    "children",
    "kitchen",
    "mountain",
    "football",
    "telescope",
    "library",
    "waterfall",
    "dancing",
    "bicycle",
    "piano",
    "garden",
    "street",
]
_MOST_PIECES = 2.0  # of a word, on average, in a vocabulary that has it


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


class Model:
    """A model opened for a library, and what tells it from others."""

    def __init__(self, source: str) -> None:
        self.source = named(source)
        self.model: VideoTextModel
        self.tokenizer: Tokenizer
        with Unfilled():
            self.model, self.tokenizer, _ = load_pretrained(source)
        if torch.cuda.is_available():
            self.model.cuda()  # under torchrun, this rank's own

    @cached_property
    def budgets(self) -> tuple[int, ...]:
        """The numbers of tubelets that it was trained to see of a clip; none where it was trained to see all."""
        return tuple(read_notes(find_local(self.source)).get("budgets", ()))

    @cached_property
    def digest(self) -> str:
        """Of the weights: the same for a folder that was moved or copied."""
        made = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self.model.state_dict().items()):
            made.update(name.encode())
            made.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return made.hexdigest()

    @cached_property
    def knows_everyday_words(self) -> bool:
        """Whether the vocabulary has the words of everyday sentences. CLIP's has 1.07 pieces a word of those tried, the
        mini-world's 2.9."""
        return sum(len(self.tokenizer.words(word)) for word in _EVERYDAY_WORDS) < _MOST_PIECES * len(
            _EVERYDAY_WORDS
        )

    def read(self, text: str) -> TextFeatures:
        """A sentence as it is searched with (`pooled` `[1, E]`) and as the matching head reads it (`tokens`)."""
        with evaluating(self.model, "fp32"):
            found = self.model.encode_text(self.tokenizer([text]).to(self.model.log_scale.device))
        if not bool(found.pooled.isfinite().all()):
            raise HarvestError(f"{self.source} gives vectors that are not finite: its weights are broken")
        return found


def named(source: str) -> str:
    """A model's source so that it means the same from another folder."""
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else source


def signature(source: str) -> str:
    """Size and time of a model folder's weights; empty where that says nothing."""
    weights = find_local(source) / "model.safetensors"
    if not weights.is_file():
        return ""
    about = weights.stat()
    return f"{about.st_size}:{about.st_mtime_ns}"


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
        facts = read_facts(database)
        if facts is None:
            raise HarvestError(f"{database.name} holds nothing yet: run harvest index again")
        return Library(database, facts)

    def check_model(self, model: Model) -> None:
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


def store_of(database: Database | PostgresDatabase, width: int) -> Store:
    if isinstance(database, PostgresDatabase):
        return PostgresStore(database, width=width)
    return LocalStore(database, width=width)


def read_facts(database: Database | PostgresDatabase) -> Facts | None:
    found = database.get("facts")
    return None if found is None else Facts.from_json(found, database.name)


@contextmanager
def writing(place: str | Path) -> Iterator[None]:
    """Be the only indexer of a library; HarvestError where another is at work. The lock ends with the process."""
    if is_address(place):
        with indexing_alone(str(place)):
            yield
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
        yield
    finally:
        os.close(lock)


def write_quarantine(folder: Path, rows: list[dict[str, str]]) -> None:
    """The quarantine report for other programs, seen whole or not at all."""
    try:
        write_file(folder / "quarantine.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    except OSError as error:
        raise HarvestError(f"cannot write to {folder}: {error.strerror}") from error
