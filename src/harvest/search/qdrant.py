"""A library's vectors on a Qdrant server: the same tables as `store.LocalStore`, in two collections.

NAME         a point for every moment: its vector, and video, number, start_s, end_s
NAME-videos  a point for every file, the fields of `store.Entry`, and one that says whose library this is

Qdrant has no transactions over points. A file's own point is written before its moments, with a size that no file
has, and again after them: an indexer that is killed in between leaves a file that is indexed again or, where it has
gone, removed with its moments, and never a moment without a file. A search during the replacement of a video may see
some of its moments.
"""

from __future__ import annotations

import dataclasses
import os
import re
import uuid
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from harvest.interfaces import HarvestError
from harvest.search.store import Entry, Floats, Near, Spans, Unavailable

if TYPE_CHECKING:
    from qdrant_client import QdrantClient
    from qdrant_client.models import PointStruct, Record

_SPACE = uuid.UUID("6f2f7c2e-9a55-4b6e-8d2b-3f1f4e0f5a77")
_BATCH = 500  # points a request
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")  # of a collection: less than the server allows
_UNFINISHED = "its indexing was not finished: run harvest index again"


class QdrantStore:
    """The store on a server, `http://host:6333/name`, of one library. An API key is taken from QDRANT_API_KEY.

    `begin` makes its collections, `check` sees that they are there and this library's own.
    """

    def __init__(self, address: str, *, width: int, library: str, client: QdrantClient | None = None) -> None:
        try:
            from qdrant_client import QdrantClient, models
        except ImportError:
            raise HarvestError(
                "a Qdrant store needs its client: pip install 'harvest-video[qdrant]'"
            ) from None
        self.address = address
        self.width = width
        self.library = library
        self.models = models
        self.server, self.moments = _parts(address)
        self.files = f"{self.moments}-videos"
        if client is None:
            with warnings.catch_warnings():  # that a key goes over http, which a network of one's own may do
                warnings.simplefilter("ignore", UserWarning)
                client = QdrantClient(
                    url=self.server,
                    api_key=os.environ.get("QDRANT_API_KEY"),
                    timeout=60,
                    check_compatibility=False,
                )
        self.client = client

    def check(self) -> None:
        """See that the server holds this library, and vectors of this width; HarvestError where it does not."""
        if not (owner := self._owner()):
            raise HarvestError(
                f"{self.address} does not hold this library (any more): harvest index … --reindex makes it anew"
            )
        self._check_owner(owner)
        with self._errors():
            info = self.client.get_collection(self.moments)
        vectors = info.config.params.vectors
        if not isinstance(vectors, self.models.VectorParams) or vectors.size != self.width:
            raise HarvestError(f"{self.address} holds vectors of another model: choose another name")

    def _check_owner(self, owner: str) -> None:
        if owner != self.library:
            both = f"{self.server}/collections/{self.moments} {self.server}/collections/{self.files}"
            raise HarvestError(
                f"{self.address} holds the vectors of another library. Choose another name, or, if nobody needs them, "
                f"remove them: curl -X DELETE {both}"
            )

    def _owner(self) -> str | None:
        """The library that the collections belong to; empty where they do not say, None where there are none."""
        with self._errors():
            if not (
                self.client.collection_exists(self.moments) and self.client.collection_exists(self.files)
            ):
                return None
            points = self.client.retrieve(self.files, [_point("library")], with_payload=True)
        return points[0].payload["library"] if points and points[0].payload else ""

    @contextmanager
    def _errors(self) -> Iterator[None]:
        from qdrant_client.common.client_exceptions import QdrantException
        from qdrant_client.http.exceptions import ApiException, UnexpectedResponse

        try:
            yield
        except UnexpectedResponse as error:
            if error.status_code in (401, 403):
                raise Unavailable(
                    f"the vector database {self.address} refuses: set QDRANT_API_KEY to its key"
                ) from error
            said = " ".join(str(error).split())
            raise Unavailable(f"the vector database {self.address} cannot do this: {said}") from error
        except (ApiException, QdrantException, OSError) as error:
            said = " ".join(str(error).split()) or type(error).__name__
            raise Unavailable(
                f"the vector database {self.address} does not answer: {said}. What was indexed is kept: when it is "
                "back, run the same command again."
            ) from error

    # ---- writing

    def begin(self) -> None:
        m = self.models
        if (owner := self._owner()) is not None and (owner or self._is_used()):
            self._check_owner(owner)
        with self._errors():
            self.client.delete_collection(self.files)
            self.client.delete_collection(self.moments)
            self.client.create_collection(
                self.moments, vectors_config=m.VectorParams(size=self.width, distance=m.Distance.DOT)
            )
            with warnings.catch_warnings():  # the in-memory twin says that it needs no payload index
                warnings.simplefilter("ignore", UserWarning)
                self.client.create_payload_index(self.moments, "video", m.PayloadSchemaType.KEYWORD)
            self.client.create_collection(self.files, vectors_config={})
            mine = m.PointStruct(id=_point("library"), vector={}, payload={"library": self.library})
            self.client.upsert(self.files, [mine], wait=True)
        self.check()

    def _is_used(self) -> bool:
        with self._errors():
            return self.client.count(self.files).count > 0

    def put(self, videos: Sequence[tuple[Entry, Spans | None]], *, gone: Sequence[str] = ()) -> None:
        m = self.models
        entries = [entry for entry, _ in videos]
        for entry, spans in videos:
            if spans is not None and len({len(part) for part in spans}) != 1:
                raise ValueError(f"{entry.path}: {[len(part) for part in spans]} starts, ends and vectors")
        unfinished = [
            dataclasses.replace(e, size_bytes=-1, digest="", num_moments=0, reason=_UNFINISHED)
            for e in entries
        ]
        old = [*gone, *(entry.id for entry in entries)]
        with self._errors():
            self._put_files(unfinished)
            for first in range(0, len(old), _BATCH):
                of_old = m.FilterSelector(filter=self._of(old[first : first + _BATCH]))
                self.client.delete(self.moments, of_old, wait=True)
            for first in range(0, len(gone), _BATCH):
                ids = [_point(id) for id in gone[first : first + _BATCH]]
                self.client.delete(self.files, m.PointIdsList(points=ids), wait=True)
            points = [point for entry, spans in videos if spans for point in self._points(entry, spans)]
            for first in range(0, len(points), _BATCH):
                self.client.upsert(self.moments, points[first : first + _BATCH], wait=True)
            self._put_files(entries)

    def _points(self, entry: Entry, spans: Spans) -> Iterator[PointStruct]:
        for number, (start, end, vector) in enumerate(zip(*spans, strict=True)):
            about = {"video": entry.id, "number": number, "start_s": float(start), "end_s": float(end)}
            yield self.models.PointStruct(
                id=_point(f"{entry.id}.{number}"), vector=vector.tolist(), payload=about
            )

    def update(self, entries: Sequence[Entry]) -> None:
        known = self.entries([entry.id for entry in entries])
        with self._errors():
            self._put_files(
                [
                    dataclasses.replace(known[e.id], size_bytes=e.size_bytes, modified_ns=e.modified_ns)
                    for e in entries
                    if e.id in known
                ]
            )

    def _put_files(self, entries: Sequence[Entry]) -> None:
        for first in range(0, len(entries), _BATCH):
            points = [
                self.models.PointStruct(id=_point(e.id), vector={}, payload=dataclasses.asdict(e))
                for e in entries[first : first + _BATCH]
            ]
            self.client.upsert(self.files, points, wait=True)

    def optimise(self) -> None:
        """Nothing: the server keeps its own index."""

    # ---- reading

    def entries(self, videos: Collection[str] | None = None) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        with self._errors():
            if videos is not None:
                ids = [_point(id) for id in videos]
                for first in range(0, len(ids), _BATCH):
                    batch = ids[first : first + _BATCH]
                    found.update(_entries_of(self.client.retrieve(self.files, batch, with_payload=True)))
                return found
            offset = None
            while True:
                points, offset = self.client.scroll(
                    self.files, limit=10_000, offset=offset, with_payload=True
                )
                found.update(_entries_of(points))
                if offset is None:
                    return found

    def entry(self, video: str) -> Entry | None:
        return self.entries([video]).get(video)

    def num_moments(self) -> int:
        with self._errors():
            return self.client.count(self.moments, exact=True).count

    def is_exact(self) -> bool:
        return False

    def spans(self, video: str) -> Spans:
        entry = self.entry(video)
        ids = [_point(f"{video}.{number}") for number in range(entry.num_moments if entry else 0)]
        rows = []
        with self._errors():
            for first in range(0, len(ids), _BATCH):
                rows += self.client.retrieve(
                    self.moments, ids[first : first + _BATCH], with_payload=True, with_vectors=True
                )
        rows.sort(key=lambda point: point.payload["number"] if point.payload else 0)
        return Spans(
            np.array([row.payload["start_s"] for row in rows if row.payload]),
            np.array([row.payload["end_s"] for row in rows if row.payload]),
            np.array([row.vector for row in rows], np.float32).reshape(len(rows), self.width),
        )

    def nearest(self, query: Floats, k: int, videos: frozenset[str] | None = None) -> list[Near]:
        with self._errors():
            points = self.client.query_points(
                self.moments,
                query=query.tolist(),
                limit=k,
                query_filter=None if videos is None else self._of(sorted(videos)),
                with_payload=True,
                with_vectors=True,
            ).points
        found = []
        for point in points:
            about = point.payload or {}
            vector = np.array(point.vector, np.float32)
            score = float(np.clip(vector @ query, -1.0, 1.0))
            found.append(
                Near(about["video"], about["number"], about["start_s"], about["end_s"], score, vector)
            )
        return sorted(found, key=lambda near: (-near.score, near.video, near.number))

    def best_scores(self, queries: Floats) -> Floats:
        best = np.full(len(queries), -1.0, np.float32)
        for place, query in enumerate(queries):
            found = self.nearest(query, 1)
            best[place] = found[0].score if found else -1.0
        return best

    def close(self) -> None:
        self.client.close()

    def _of(self, videos: list[str]) -> Any:
        m = self.models
        return m.Filter(must=[m.FieldCondition(key="video", match=m.MatchAny(any=videos))])


def _point(name: str) -> str:
    return str(uuid.uuid5(_SPACE, name))


def _entries_of(points: Sequence[Record]) -> dict[str, Entry]:
    return {p.payload["id"]: Entry(**p.payload) for p in points if p.payload and "id" in p.payload}


def _parts(address: str) -> tuple[str, str]:
    """The server's own address and the library's name on it, of `http://HOST:PORT/NAME`."""
    try:
        url = urlsplit(address)
        host, port = url.hostname, url.port or 6333
    except ValueError:  # a port that is none
        host, port = None, 0
    name = "" if host is None else url.path.strip("/")
    if (
        host is None
        or url.scheme not in ("http", "https")
        or url.query
        or url.username
        or not _NAME.fullmatch(name)
    ):
        raise HarvestError(
            f"store: expected http://HOST:PORT/NAME, the name of letters, digits, '.', '_' and '-', got {address!r}"
        )
    return f"{url.scheme}://{f'[{host}]' if ':' in host else host}:{port}", name
