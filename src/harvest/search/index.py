"""A library of videos that can be asked: `harvest.Index`.

The API agreed on, for the command line, the server and scripts (methods may be called from several threads):

    Index.build(folder, out=library, model=...)     index new, changed and vanished files; returns an Index
    Index.open(library)                              search what is there, also while another process indexes
    index.search("a sentence", k=10, ...)            text, image=path, clip=path or moment=id -> Answer
    index.timeline("a sentence", video_id)           scores along one video -> Timeline
    index.videos(), index.video(id), index.moment(id), index.broken(), index.stats()
    index.file(video_id)                             the one way from an id to a file: checked to lie inside the library
    index.thumbnail(video_id, time_s, height=...)    a JPEG

Unknown ids and every mistake of a user raise HarvestError (`UnknownId` for ids, so that a server can answer 404).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harvest.interfaces import HarvestError
from harvest.search.results import (
    Answer,
    Broken,
    IndexReport,
    Moment,
    Stats,
    Timeline,
    Video,
    Where,
)

OnProgress = Callable[[int, int], None]
MAX_QUERY_CHARACTERS = 2000
MAX_HITS = 1000


class UnknownId(HarvestError):
    """No video or moment has this id (any more)."""


@dataclass(frozen=True)
class Cutting:
    """How videos become moments; the same for all of a library."""

    window_s: float = 4.0
    """Longest moments are half as long again; longer shots are cut into windows of this length."""
    overlap: float = 0.5
    """Share of a window that it has in common with the next."""
    num_frames: int | None = None
    """Frames looked at in a moment; None is the model's own number."""
    keep_ratio: float = 1.0
    """The token budget: the share of a moment's tubelets that the encoder sees."""


class Index:
    """A library of embedded moments. Made by `Index.build` or `Index.open`; `close` it, or use it in a `with`."""

    report: IndexReport | None = None
    """What `build` did; None of an index that was opened."""

    @classmethod
    def build(
        cls,
        folders: str | Path | Sequence[str | Path],
        *,
        out: str | Path,
        model: str | Path | None = None,
        cutting: Cutting | None = None,
        background: str | Path | Sequence[str] | None = None,
        store: str = "local",
        precision: Literal["fp32", "bf16"] = "fp32",
        batch_size: int = 32,
        workers: int = 1,
        verify: bool = False,
        reindex: bool = False,
        progress: OnProgress | None = None,
    ) -> Index:
        """Index folders of videos into the library `out`, or bring it up to date."""
        raise NotImplementedError

    @classmethod
    def open(cls, library: str | Path, *, model: str | Path | None = None) -> Index:
        """Open a library; `model` where the model has been moved since it was indexed (it is checked to be the same)."""
        raise NotImplementedError

    def search(
        self,
        text: str | None = None,
        *,
        image: str | Path | None = None,
        clip: str | Path | None = None,
        clip_start_s: float = 0.0,
        clip_end_s: float | None = None,
        moment: str | None = None,
        without: str | Sequence[str] = (),
        where: Where | None = None,
        k: int = 10,
        rerank: int = 0,
        false_accept: float = 0.05,
    ) -> Answer:
        """The best `k` moments for exactly one of a sentence, a picture, a clip, or a moment ("more like this")."""
        raise NotImplementedError

    def timeline(self, text: str, video: str) -> Timeline:
        """The score of every moment of a video."""
        raise NotImplementedError

    def videos(self) -> tuple[Video, ...]:
        """All videos, by path."""
        raise NotImplementedError

    def video(self, video: str) -> Video:
        raise NotImplementedError

    def moment(self, moment: str) -> Moment:
        raise NotImplementedError

    def broken(self) -> tuple[Broken, ...]:
        """The quarantine report."""
        raise NotImplementedError

    def stats(self) -> Stats:
        raise NotImplementedError

    def file(self, video: str) -> Path:
        """The file of a video: a regular file whose real path lies inside an indexed folder, or HarvestError."""
        raise NotImplementedError

    def thumbnail(self, video: str, time_s: float, *, height: int = 180) -> bytes:
        """The frame shown at a time as JPEG, with the picture's own proportions."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
