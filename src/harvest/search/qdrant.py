"""A library's vectors on a Qdrant server: the same tables as `store.LocalStore`, in two collections.

NAME         a point for every moment: its vector, and video, number, start_s, end_s
NAME-videos  a point for every file: the fields of `store.Entry`

Points have ids made of what they are about, and a video's own point is written after its moments: an indexer that
was killed writes the same points again. Qdrant has no transactions over points, so that a search during the
replacement of a video may see some of its old moments beside new ones.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from harvest.interfaces import HarvestError
from harvest.search.store import Entry, Floats, Near, Spans

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

_SPACE = uuid.UUID("6f2f7c2e-9a55-4b6e-8d2b-3f1f4e0f5a77")
_BATCH = 500  # points a request


class QdrantStore:
    """The store on a server, `http://host:6333/name`. An API key is taken from QDRANT_API_KEY."""

    def __init__(self, address: str, *, width: int, client: QdrantClient | None = None) -> None:
        try:
            from qdrant_client import QdrantClient, models
        except ImportError:
            raise HarvestError(
                "a Qdrant store needs its client: pip install 'harvest-video[qdrant]'"
            ) from None
        self.address = address
        self.width = width
        self.models = models
        url = urlsplit(address)
        self.moments = url.path.strip("/")
        if url.scheme not in ("http", "https") or not url.hostname or not self.moments or "/" in self.moments:
            raise HarvestError(f"store: expected http://HOST:PORT/NAME, got {address!r}")
        self.files = f"{self.moments}-videos"
        if client is None:
            import os

            client = QdrantClient(
                url=f"{url.scheme}://{url.hostname}:{url.port or 6333}",
                api_key=os.environ.get("QDRANT_API_KEY"),
                timeout=60,
                check_compatibility=False,
            )
        self.client = client
        with self._errors():
            self._make()

    def _make(self) -> None:
        m = self.models
        if not self.client.collection_exists(self.moments):
            self.client.create_collection(
                self.moments, vectors_config=m.VectorParams(size=self.width, distance=m.Distance.DOT)
            )
            self._keyword(self.moments, "video")
        info = self.client.get_collection(self.moments).config.params.vectors
        if not isinstance(info, m.VectorParams) or info.size != self.width:
            raise HarvestError(f"{self.address} holds vectors of another model: choose another name")
        if not self.client.collection_exists(self.files):
            self.client.create_collection(self.files, vectors_config={})

    def _keyword(self, collection: str, field: str) -> None:
        import warnings

        with warnings.catch_warnings():  # the in-memory twin says that it needs no payload index
            warnings.simplefilter("ignore", UserWarning)
            self.client.create_payload_index(collection, field, self.models.PayloadSchemaType.KEYWORD)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        from qdrant_client.http.exceptions import ApiException

        try:
            yield
        except (ApiException, OSError) as error:
            raise HarvestError(f"the vector database {self.address} does not answer: {error}") from error

    # ---- writing

    def put(self, videos: Sequence[tuple[Entry, Spans | None]], *, gone: Sequence[str] = ()) -> None:
        m = self.models
        with self._errors():
            for id in (*gone, *(entry.id for entry, _ in videos)):
                # its own point first: a file without one is indexed again
                self.client.delete(self.files, m.PointIdsList(points=[_point(id)]), wait=True)
                self.client.delete(self.moments, m.FilterSelector(filter=self._of([id])), wait=True)
            for entry, spans in videos:
                if spans is None:
                    continue
                points = [
                    m.PointStruct(
                        id=_point(f"{entry.id}.{number}"),
                        vector=vector.tolist(),
                        payload={
                            "video": entry.id,
                            "number": number,
                            "start_s": float(start),
                            "end_s": float(end),
                        },
                    )
                    for number, (start, end, vector) in enumerate(zip(*spans, strict=True))
                ]
                for first in range(0, len(points), _BATCH):
                    self.client.upsert(self.moments, points[first : first + _BATCH], wait=True)
            self._put_files([entry for entry, _ in videos])

    def update(self, entries: Sequence[Entry]) -> None:
        with self._errors():
            known = self.entries()
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

    def clear(self) -> None:
        with self._errors():
            self.client.delete_collection(self.files)
            self.client.delete_collection(self.moments)
            self._make()

    def optimise(self) -> None:
        """Nothing: the server keeps its own index."""

    # ---- reading

    def entries(self) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        with self._errors():
            offset = None
            while True:
                points, offset = self.client.scroll(
                    self.files, limit=10_000, offset=offset, with_payload=True
                )
                found.update({p.payload["id"]: Entry(**p.payload) for p in points if p.payload})
                if offset is None:
                    return found

    def entry(self, video: str) -> Entry | None:
        with self._errors():
            points = self.client.retrieve(self.files, [_point(video)], with_payload=True)
        return Entry(**points[0].payload) if points and points[0].payload else None

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
