"""A library of videos that can be asked: `harvest.Index`.

    Index.build(folder, out=library, model=...)     index new, changed and vanished files; returns an Index
    Index.open(library)                              search what is there, also while another process indexes
    index.search("a sentence", k=10, ...)            text, image=path, clip=path or moment=id -> Answer
    index.timeline("a sentence", video_id)           scores along one video, also for image= or moment= -> Timeline
    index.videos(), index.video(id), index.moment(id), index.broken(), index.stats()
    index.file(video_id)                             the one way from an id to a file: checked to lie inside the library
    index.thumbnail(video_id, time_s, height=...)    a JPEG

Methods may be called from several threads. Every mistake of a user raises HarvestError; unknown ids `UnknownId`, so
that a server can answer 404.

How a search goes: the store's nearest moments; less those that agree more with what is unwanted; of moments of one
video that overlap, the best; the first few again by the matching head, where the model has one.
"""

from __future__ import annotations

import math
import os
import stat
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from harvest.data.video import IMAGE_SUFFIXES, probe, read_clip
from harvest.errors import HarvestError, need_torch
from harvest.plain_types import OnProgress
from harvest.ranges import Range, check_range
from harvest.search import building
from harvest.search.asking.calibration import (
    EVERYDAY,
    MAX_RERANK,
    SHAPES,
    Calibration,
    default_bank,
    match_of,
    read_bank,
)
from harvest.search.asking.pictures import MOST_HEIGHT, thumbnail
from harvest.search.encoders.encoder import Encoder
from harvest.search.encoders.opening import open_encoder
from harvest.search.library.files import is_gone
from harvest.search.library.folder import Library
from harvest.search.library.segmentation import Segmentation
from harvest.search.library.store import Entry, Floats, Near, apart
from harvest.search.results import Answer, Broken, Hit, IndexReport, Moment, Stats, Timeline, Video, Where

T = TypeVar("T")
MAX_QUERY_CHARACTERS = 2000
MAX_HITS = 1000
MOST_FRAMES = 32  # of a clip that is asked with, where frames are counted by the second
MOST_LOOKED_AT = 20_000  # moments of a search whose nearest are nearly all unwanted, or overlap
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NUM_EXAMPLES = 4
UNWANTED = 0.5  # weight of what is unwanted in the direction that is searched
NO_BACKGROUND = (
    "scores carry no chance: the model does not know the default background's everyday words. Give sentences that "
    "nothing here matches: harvest index … --background FILE"
)


class UnknownId(HarvestError):
    """No video or moment has this id (any more)."""


class GoneFile(HarvestError):
    """A video's file is not where it was indexed, or is another thing now."""


class Decode(Protocol):
    def __call__(self, function: Callable[..., T], path: str | Path, *args: Any, **named: Any) -> T: ...


def _decode_here(function: Callable[..., T], path: str | Path, *args: Any, **named: Any) -> T:
    return function(path, *args, **named)


class Index:
    """A library of embedded moments. Made by `Index.build` or `Index.open`; `close` it, or use it in a `with`."""

    report: IndexReport | None = None
    """What `build` did; None of an index that was opened."""

    def __init__(self, library: Library, *, model: str | None = None) -> None:
        self._library = library
        self._source = model or library.facts.model
        self._opened: Encoder | None = None
        self._reranker: Any = None  # of asking.reranking, which needs PyTorch
        self._lock = threading.Lock()
        self._examples: tuple[str, ...] | None = None
        self.decode: Decode = _decode_here
        """How files are decoded, `decode(function, path, ...)`: a service has it done by `Decoders`."""
        self._embed_text = lru_cache(1024)(self._embed_text_anew)  # a search as one types asks much again
        self._embed_picture_of = lru_cache(64)(lambda path, _: self._embed_file(path, 0.0, None))

    @classmethod
    def build(
        cls,
        folders: str | Path | Sequence[str | Path] = (),
        *,
        out: str | Path,
        model: str | Path | None = None,
        segmentation: Segmentation | None = None,
        background: str | Path | Sequence[str] | None = None,
        progress: OnProgress | None = None,
        **settings: Any,
    ) -> Index:
        """Index folders of videos, or single files, into the library `out`, or bring it up to date. `out` is a folder,
        or the address of a PostgreSQL database (`postgresql://…`).

        Only new and changed files are read; files that vanished from these folders are forgotten; a file that was
        moved, also from another folder, is known by its content. A stopped run goes on with the same call. Files that
        cannot be read are named in `report.broken` and `out`/quarantine.jsonl. Without `folders` those that the
        library has.

        `model` is needed once; `segmentation` is settled by the first run. `background` is a list, or a text file, of
        sentences that nothing in the library matches, against which scores are calibrated; the default is in everyday
        English. The other `settings` are the fields of `building.Settings`: `rerank` is the number of first answers of a
        search that the model's matching head orders again, and calibrates that: stricter and slower, for models that
        have the head. 0 takes it back; None leaves it. `trust` names folders outside those indexed that links
        may lead into. `workers` decode ahead. `verify` reads every file to see whether it changed, where otherwise
        its size and time tell. `reindex` forgets all and starts anew, for another model or other settings. `repair`
        keeps what is whole of a damaged library, and indexes the rest again.

        HarvestError: a folder that is missing or holds no video, another model's library, a newer Harvest's library,
        a damaged one, a second indexer at work, a full disk. What was indexed before stays.
        """
        paths = [Path(f) for f in ([folders] if isinstance(folders, str | Path) else folders)]
        bank = None if background is None else read_bank(background)  # before hours of work, not after them
        asked = building.Settings(
            model=None if model is None else str(model),
            segmentation=segmentation,
            background=bank,
            **settings,
        )
        report = building.build(paths, out, asked, progress)
        index = cls.open(out)
        index.report = report
        return index

    @classmethod
    def open(cls, library: str | Path, *, model: str | Path | None = None) -> Index:
        """Open a library; `model` where the model has been moved since it was indexed (it is checked to be the same)."""
        return cls(Library.open(library), model=None if model is None else str(model))

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
        per_video: int | None = None,
        rerank: int | None = None,
        false_accept: float = 0.05,
    ) -> Answer:
        """The best `k` moments for exactly one of a sentence, a picture, a clip, or a moment ("more like this").

        `without` names what must not be there: moments that agree more with it than with the query are left out.
        `rerank` is the number of first answers that the model's matching head orders again; None is what the library
        was indexed for, 0 is never. An answer "is there" where at most
        `false_accept` of the background queries have a best moment that scores as high. Of moments that overlap
        only the best is given, and files of equal content count as one; `per_video` bounds the moments of a video.
        """
        if sum(asked is not None for asked in (text, image, clip, moment)) != 1:
            raise HarvestError("search needs exactly one of a text, an image, a clip and a moment")
        check_range("k", k, Range(least=1, most=MAX_HITS))
        check_range("per_video", per_video, Range(least=1))
        if rerank is None:
            rerank = self._library.facts.rerank if text is not None else 0
        check_range("rerank", rerank, Range(least=0, most=MAX_RERANK))
        check_range("false_accept", false_accept, Range(above=0, below=1))
        if rerank and text is None:
            raise HarvestError("rerank needs a text: the matching head reads words")
        notes: list[str] = []
        name = text if text is not None else str(image or clip or moment)
        own: Moment | None = None
        if text is not None:
            query = self._embed_text(text)
            self._note_length(text, notes)
        elif moment is not None:
            own = self.moment(moment)
            query = self._vector_of(moment)
            name = f"{own.path} from {own.start_s:.1f} to {own.end_s:.1f} s"
        elif image is not None:
            query = self._embed_picture(Path(image))
        else:
            assert clip is not None
            query = self._embed_file(Path(clip), clip_start_s, clip_end_s)
        unwanted = [without] if isinstance(without, str) else list(without)
        nots = np.stack([self._embed_text(word) for word in unwanted]) if unwanted else None

        near = self._nearest(query, nots, where, k=max(k, rerank) + 1, per_video=per_video, notes=notes)
        entries = self._library.store.entries({found.video for found in near})
        if own is not None:
            near = [found for found in near if not _shows(found, own, entries)]
        ranked: list[tuple[Near, float | None]] = [(found, None) for found in near]
        if rerank:
            assert text is not None
            ranked = self._rerank(text, near[:rerank], notes) + ranked[rerank:]
        calibration = self._calibration(text, notes, rerank=rerank)
        copies = self._library.store.copies({entry.digest for entry in entries.values()})
        hits: list[Hit] = []
        chances: list[float | None] = []
        for found, agreement in ranked:
            chance = calibration.chance_of(found.score, agreement)
            chances.append(chance)
            if len(hits) < k and found.video in entries:  # an indexer may have removed it in the meantime
                entry = entries[found.video]
                others = tuple(path for path in copies.get(entry.digest, []) if path != entry.path)
                match = match_of(chance, false_accept)
                hits.append(Hit(_moment_of(found, entry), found.score, chance, agreement, match, others))
        telling = chances[:rerank] if calibration.reranked is not None else chances
        is_there = bool(hits) and any(chance is None or chance <= false_accept for chance in telling)
        return Answer(
            query=name, hits=tuple(hits), is_there=is_there, false_accept=false_accept, notes=tuple(notes)
        )

    def timeline(
        self,
        text: str | None,
        video: str,
        *,
        image: str | Path | None = None,
        moment: str | None = None,
    ) -> Timeline:
        """The score of every moment of a video for exactly one of a sentence, a picture and a moment."""
        if sum(asked is not None for asked in (text, image, moment)) != 1:
            raise HarvestError("a timeline needs exactly one of a text, an image and a moment")
        entry = self._entry(video)
        if text is not None:
            query = self._embed_text(text)
        else:
            query = self._vector_of(moment) if moment is not None else self._embed_picture(Path(str(image)))
        spans = self._library.store.spans(video)
        scores = spans.vectors @ query
        moments = tuple(
            Moment(f"{video}.{number}", video, entry.path, float(start), float(end), entry.offset_s)
            for number, (start, end) in enumerate(zip(spans.start_s, spans.end_s, strict=True))
        )
        return Timeline(_video_of(entry), moments, tuple(float(score) for score in scores))

    def videos(self) -> tuple[Video, ...]:
        """All videos, by path."""
        entries = self._library.store.entries().values()
        good = sorted((e for e in entries if e.reason is None), key=lambda e: (e.path, e.root))
        return tuple(_video_of(entry) for entry in good)

    def video(self, video: str) -> Video:
        """One video by its id."""
        return _video_of(self._entry(video))

    def moment(self, moment: str) -> Moment:
        """One moment by its id."""
        entry = self._entry(moment.partition(".")[0])
        number = _number_of(moment)
        if not 0 <= number < entry.num_moments:
            raise UnknownId(f"no moment {moment!r} in this library")
        spans = self._library.store.spans(entry.id)
        start_s, end_s = float(spans.start_s[number]), float(spans.end_s[number])
        return Moment(moment, entry.id, entry.path, start_s, end_s, entry.offset_s)

    def broken(self) -> tuple[Broken, ...]:
        """The quarantine report: files that could not be indexed."""
        entries = sorted(self._library.store.entries().values(), key=lambda e: (e.path, e.root))
        return tuple(Broken(e.path, e.reason) for e in entries if e.reason is not None)

    def stats(self) -> Stats:
        """The library in numbers."""
        entries = list(self._library.store.entries().values())
        good = [entry for entry in entries if entry.reason is None]
        return Stats(
            model=self._library.facts.model,
            videos=len(good),
            moments=sum(entry.num_moments for entry in good),
            duration_s=sum(entry.duration_s for entry in good),
            broken=len(entries) - len(good),
            size_bytes=self._library.database.size_bytes(),
            search="exact" if self._library.store.is_exact() else "approximate",
        )

    def path(self, video: str) -> Path:
        """Where a video was when it was indexed; it may have gone."""
        entry = self._entry(video)
        return Path(entry.root) / entry.path

    def file(self, video: str) -> Path:
        """The file of a video: a regular file whose real path lies inside an indexed folder, or HarvestError."""
        descriptor, path = self.open_file(video)
        os.close(descriptor)
        return path

    def open_file(self, video: str) -> tuple[int, Path]:
        """A descriptor, to be closed, and the real path of a video's file. What was opened is checked, not the name: a
        file that is swapped for a link to elsewhere is not given."""
        entry = self._entry(video)
        root = Path(entry.root)
        try:
            descriptor = os.open(root / entry.path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            where = (
                ""
                if root.is_dir()
                else ", nor is its folder: mount it, or index the folder that holds its files now"
            )
            if is_gone(root / entry.path):
                raise GoneFile(
                    f"{entry.path} is not there any more{where or ': index its folder again'}"
                ) from error
            raise GoneFile(f"{entry.path} cannot be opened: {error.strerror}") from error
        try:
            real, about = (root / entry.path).resolve(), os.fstat(descriptor)
            allowed = (str(root.resolve()), *self._library.facts.trust)
            is_inside = any(real.is_relative_to(folder) for folder in allowed)
            if not stat.S_ISREG(about.st_mode):
                raise GoneFile(f"{entry.path} is not a file any more")
            if not is_inside or not os.path.samestat(about, os.lstat(real)):
                raise GoneFile(f"{entry.path} has become a link to a file outside the library")
        except (OSError, HarvestError) as error:
            os.close(descriptor)
            if isinstance(error, HarvestError):
                raise
            raise GoneFile(f"{entry.path} is not there any more: index its folder again") from error
        return descriptor, real

    def thumbnail(self, video: str, time_s: float, *, height: int = 180) -> bytes:
        """The frame shown at a time as JPEG, with the picture's own proportions and `height` for its short side."""
        check_range("height", height, Range(least=16, most=MOST_HEIGHT))
        check_range("time_s", time_s, Range(least=0, below=math.inf))
        return self.decode(thumbnail, self.file(video), time_s, height=height)

    def warning(self) -> str | None:
        """What the library's model cannot do, if that is much."""
        return self._library.facts.warning

    def examples(self) -> tuple[str, ...]:
        """Sentences to try: some that the library answers best, and last one about nothing in it."""
        candidates = SHAPES if self.warning() else EVERYDAY
        if self._examples is None:
            best = self._library.store.best_scores(np.stack([self._embed_text(text) for text in candidates]))
            order = np.argsort(-best, kind="stable")[:NUM_EXAMPLES]
            absent = default_bank()[0] if not self.warning() else "a dog on the beach"
            self._examples = (*(candidates[place] for place in order), absent)
        return self._examples

    def close(self) -> None:
        """Close the library's files."""
        self._library.close()

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # ---- queries become vectors

    def _model(self) -> Encoder:
        with self._lock:
            if self._opened is None:
                model = open_encoder(self._source)
                self._library.check_model(model)
                self._opened = model
            return self._opened

    def _embed_text_anew(self, text: str) -> Floats:
        if not text.strip():
            raise HarvestError("the query is empty: describe what to look for")
        if len(text) > MAX_QUERY_CHARACTERS:
            raise HarvestError(
                f"the query has {len(text):,} characters, at most {MAX_QUERY_CHARACTERS:,} are read: say it shorter"
            )
        vector: Floats = self._model().embed_texts([text])[0]
        return vector

    def _note_length(self, text: str, notes: list[str]) -> None:
        model = self._model()
        if model.is_cut(text):
            notes.append(
                f"the query is longer than the model reads: only its first {model.context_length} word pieces counted"
            )

    def _embed_picture(self, path: Path) -> Floats:
        try:
            modified_ns = path.stat().st_mtime_ns
        except OSError as error:
            raise HarvestError(f"picture {path}: {error.strerror}") from error
        return self._embed_picture_of(path, modified_ns)

    def _vector_of(self, moment: str) -> Floats:
        own = self.moment(moment)
        vector: Floats = self._library.store.spans(own.video).vectors[_number_of(moment)]
        return vector

    def _embed_file(self, path: Path, start_s: float, end_s: float | None) -> Floats:
        model = self._model()
        is_picture = path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()
        segmentation = self._library.facts.segmentation
        clip = self.decode(
            read_clip,
            path,
            num_frames=1 if is_picture else self._frames_of(path, start_s, end_s),
            **model.squares,
            start_s=start_s,
            end_s=end_s,
        )
        # as the library's own moments are seen
        clips = clip.pixels[:, None] if model.is_frame_wise else clip.pixels[None]
        return _unit(model.embed_clips(clips, None if is_picture else segmentation).mean(axis=0))

    def _frames_of(self, path: Path, start_s: float, end_s: float | None) -> int:
        """Frames of a clip that is asked with, as many as the library's moments have."""
        segmentation = self._library.facts.segmentation
        if segmentation.frames_per_s is None:
            return segmentation.num_frames or self._model().num_frames
        long_s = (self.decode(probe, path).duration_s if end_s is None else end_s) - start_s
        return max(1, min(MOST_FRAMES, round(long_s * segmentation.frames_per_s)))

    # ---- moments

    def _nearest(
        self,
        query: Floats,
        nots: Floats | None,
        where: Where | None,
        *,
        k: int,
        per_video: int | None,
        notes: list[str],
    ) -> list[Near]:
        """The best moments that do not overlap, at most `k` of them."""
        store = self._library.store
        direction = query if nots is None else _unit(query - UNWANTED * nots.mean(axis=0))
        wanted, total = 4 * k + 16, store.num_moments()
        if store.is_damaged:
            notes.append(
                "the approximate index is damaged, and searches are slower: harvest index makes it anew"
            )
        while True:
            near = store.nearest(direction, wanted, where)
            if not near and total and where is not None and where != Where():
                notes.append("no video meets the filter")
                return []
            scored = [n._replace(score=float(np.clip(n.vector @ query, -1.0, 1.0))) for n in near]
            if nots is not None:
                scored = [n for n in scored if float((nots @ n.vector).max()) < n.score]
            entries = store.entries({n.video for n in scored})
            contents = {id: entry.digest for id, entry in entries.items()}
            kept = apart(scored, k, contents=contents, per_video=per_video)
            if len(kept) >= k or len(near) < wanted or wanted >= total:
                return kept
            if wanted >= MOST_LOOKED_AT:
                notes.append(f"only the nearest {wanted:,} moments were looked at")
                return kept
            wanted = min(4 * wanted, MOST_LOOKED_AT)

    def _rerank(self, text: str, near: list[Near], notes: list[str]) -> list[tuple[Near, float | None]]:
        """Moments in the order of the matching head's opinion, with it. Those whose file has gone since it was indexed
        come last: one of them must not cost the others."""
        need_torch("re-ranking")
        from harvest.search.asking.reranking import Reranker

        opened = self._model()
        with self._lock:
            if self._reranker is None:
                self._reranker = Reranker(
                    opened, self._library.facts.segmentation, self.file, partial(self.decode, read_clip)
                )
        agreements, why = self._reranker.agreements(text, near)
        notes += why
        values = np.array([-np.inf if value is None else value for value in agreements])
        order = np.argsort(-values, kind="stable")
        return [(near[place], agreements[place]) for place in order]

    def _calibration(self, text: str | None, notes: list[str], *, rerank: int) -> Calibration:
        """How high nonsense scores; notes say where that is not known."""
        database = self._library.database
        tops = database.get("tops") if text is not None else None
        reranked = database.get("tops_reranked") if rerank else None
        if text is None:
            notes.append("scores of pictures and clips carry no chance")
        elif tops is None:
            notes.append("scores carry no chance before the indexer has been through once")
        elif not tops:
            notes.append(NO_BACKGROUND)
        elif rerank and reranked is None:
            notes.append(
                "chances are those of embeddings alone: harvest index … --rerank calibrates re-ranking too"
            )
        return Calibration(*(np.frombuffer(part, "<f4") if part else None for part in (tops, reranked)))

    def _entry(self, video: str) -> Entry:
        entry = self._library.store.entry(video)
        if entry is None or entry.reason is not None:
            raise UnknownId(f"no video {video!r} in this library")
        return entry


def _unit(vector: Floats) -> Floats:
    unit: Floats = vector / max(float(np.linalg.norm(vector)), 1e-12)
    return unit


def _shows(near: Near, moment: Moment, entries: dict[str, Entry]) -> bool:
    """Whether a found moment shows some of another, be it in a file of equal content."""
    common = min(near.end_s, moment.end_s) - max(near.start_s, moment.start_s)
    digests = [entries[video].digest for video in (near.video, moment.video) if video in entries]
    return common > 0 and (near.video == moment.video or (len(digests) == 2 and digests[0] == digests[1]))


def _moment_of(near: Near, entry: Entry) -> Moment:
    return Moment(
        f"{near.video}.{near.number}", near.video, entry.path, near.start_s, near.end_s, entry.offset_s
    )


def _number_of(moment: str) -> int:
    number = moment.partition(".")[2]
    return int(number) if number.isdecimal() and len(number) < 10 else -1


def _video_of(entry: Entry) -> Video:
    return Video(
        id=entry.id,
        path=entry.path,
        duration_s=entry.duration_s,
        size_bytes=entry.size_bytes,
        modified=(_EPOCH + timedelta(seconds=entry.modified_ns // 10**9)).isoformat(),
        num_moments=entry.num_moments,
        offset_s=entry.offset_s,
        damage=entry.damage,
    )
