"""Bringing a library up to date: new, changed, moved and vanished files, a group of files at a time.

A group is written whole or not at all, and groups are cut from the sorted list of files, so that an indexer that is
killed and started again goes through the same groups and leaves the same library.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

from harvest.data.video import VideoError
from harvest.errors import HarvestError, need_torch
from harvest.plain_types import OnProgress, Precision
from harvest.progress import say
from harvest.ranges import Range, check_ranges
from harvest.search.asking.calibration import MAX_RERANK, calibrate, is_calibrated
from harvest.search.encoders.encoder import Encoder, knows_everyday_words, named, signature
from harvest.search.encoders.opening import open_encoder
from harvest.search.library.database import Database, discard, repair
from harvest.search.library.decoding import Decoders
from harvest.search.library.embedding import Embedded, embed_moments
from harvest.search.library.files import File, Scan, digest, is_gone, scan
from harvest.search.library.folder import (
    Facts,
    Library,
    closed_on_error,
    open_database,
    read_facts,
    write_quarantine,
    writing,
)
from harvest.search.library.postgres import PostgresDatabase
from harvest.search.library.ranks import barrier, world_rank_size
from harvest.search.library.segmentation import Segmentation
from harvest.search.library.store import Entry, Spans, Store, Unavailable, video_id
from harvest.search.results import Broken, IndexReport, is_address

GROUP = 16  # files


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to index; see `Index.build`."""

    model: str | None = None
    segmentation: Segmentation | None = None
    background: Sequence[str] | None = None
    rerank: Annotated[int | None, Range(least=0, most=MAX_RERANK)] = None
    trust: tuple[str, ...] | None = None
    precision: Precision | None = None
    batch_size: Annotated[int, Range(least=1)] = 32
    workers: Annotated[int, Range(least=1, most=64)] = 1
    verify: bool = False
    reindex: bool = False
    repair: bool = False

    def __post_init__(self) -> None:
        check_ranges(self)


class _Job(NamedTuple):
    """A file that may have to be encoded."""

    root: str
    file: File
    before: Entry | None


class _Plan(NamedTuple):
    jobs: list[_Job]
    gone: list[str]
    lost: set[str]
    """The contents of those."""
    elsewhere: dict[str, list[Entry]]
    """Files of folders that are not asked for now, by content."""
    num_unchanged: int


def build(
    paths: Sequence[Path], out: str | Path, settings: Settings, progress: OnProgress | None
) -> IndexReport:
    """Index folders into the library `out`. Under torchrun every rank encodes its share of the groups."""
    if settings.repair and is_address(out):
        raise HarvestError("--repair is for libraries in a folder: PostgreSQL is restored from its backup")
    started = time.monotonic()
    if world_rank_size()[0] == 0:
        with writing(out) as claim:
            if settings.repair and (Path(out) / "library.db").exists():
                repair(Path(out) / "library.db")
            return _Run(out, settings, progress, claim).run(paths, started)
    barrier()  # until rank 0 has made the library
    return _Run(out, dataclasses.replace(settings, reindex=False), None).run(paths, started)


class _Run:
    """One run of the indexer."""

    def __init__(
        self, out: str | Path, settings: Settings, progress: OnProgress | None, claim: bytes | None = None
    ) -> None:
        self.settings, self.progress = settings, progress
        self.library, self.model = _open(out, settings)
        if isinstance(self.library.database, PostgresDatabase):
            self.library.database.join(claim)
        self.counts = Counter[str]()

    def run(self, paths: Sequence[Path], started: float) -> IndexReport:
        rank, size = world_rank_size()
        library, settings = self.library, self.settings
        try:
            if rank == 0:
                barrier()
            store = library.store
            entries = store.entries()
            roots = sorted({entry.root for entry in entries.values()})
            if not paths and not roots:
                raise HarvestError("expected a folder of videos to index, or several")
            scans = scan(paths or [Path(root) for root in roots], roots, trusted=library.facts.trust)
            plan = _compare(scans, entries, verify=settings.verify)
            barrier()  # all ranks have the same plan before the first of them writes
            with Decoders(settings.workers) as decoders:
                if plan.jobs:
                    decoders.start()
                self._index(plan, entries, decoders, rank=rank, size=size)
            barrier()
            if rank == 0:
                if plan.gone:
                    _put(library, [], gone=plan.gone)
                is_new = settings.background is not None or settings.rerank is not None
                if is_new or not is_calibrated(library):
                    calibrate(library, self.model, settings.background, self.progress)
                store.optimise()
            broken = _quarantine(library, store) if rank == 0 else ()
            return IndexReport(
                new=self.counts["new"],
                changed=self.counts["changed"],
                moved=self.counts["moved"],
                copies=self.counts["copies"],
                vanished=len(plan.gone) + self.counts["left"],
                unchanged=plan.num_unchanged + self.counts["same"],
                broken=broken,
                unreadable=tuple(
                    Broken(folder, reason) for one in scans for folder, reason in one.unreadable.items()
                ),
                left_out=dict(sum((one.left_out for one in scans), Counter())),
                moments=store.num_moments(),
                seconds=time.monotonic() - started,
            )
        finally:
            library.close()

    def _index(
        self, plan: _Plan, entries: dict[str, Entry], decoders: Decoders, *, rank: int, size: int
    ) -> None:
        at_work = {video_id(job.root, job.file.path) for job in plan.jobs}
        known = {e.digest: e for e in entries.values() if e.num_moments and e.id not in at_work}
        groups = [plan.jobs[start : start + GROUP] for start in range(0, len(plan.jobs), GROUP)]
        done = 0
        for number, group in enumerate(groups):
            if number % size == rank:
                self._index_group(group, known, plan, decoders)
                if rank == 0:
                    self.library.store.optimise()
            done += len(group)
            if self.progress is not None:
                self.progress(done, len(plan.jobs))

    def _index_group(
        self, group: Sequence[_Job], known: dict[str, Entry], plan: _Plan, decoders: Decoders
    ) -> None:
        """Encode what is new in a group of files and write the group."""
        store, counts = self.library.store, self.counts
        done: list[tuple[Entry, Spans | None]] = []
        touched: list[Entry] = []
        arrived: set[str] = set()
        wanted: list[tuple[Path, Entry]] = []
        for job in group:
            entry, before = _looked_at(job), job.before
            if entry.digest and (before is None or not before.digest):
                arrived.add(entry.digest)
            twin = known.get(entry.digest)
            if entry.reason is not None and entry == before:
                counts["same"] += 1
            elif entry.reason is not None:
                done.append((entry, None))
            elif before is not None and before.digest == entry.digest:
                touched.append(entry)
                counts["same"] += 1
            elif twin is not None:
                same = {
                    name: getattr(twin, name) for name in ("duration_s", "num_moments", "offset_s", "damage")
                }
                done.append((dataclasses.replace(entry, **same), store.spans(twin.id)))
                old = plan.elsewhere.get(entry.digest, ())
                is_moved = entry.digest in plan.lost or any(is_gone(Path(e.root) / e.path) for e in old)
                counts["moved" if is_moved else "copies"] += 1
            else:
                wanted.append((Path(job.root) / job.file.path, entry))
                counts["new" if before is None else "changed"] += 1
        if wanted:
            done += self._encoded(wanted, decoders)
        if done:
            # Content that has come here and is no longer where it was has been moved. An absence alone says nothing:
            # a disk may not be mounted.
            twins = [old for content in sorted(arrived) for old in plan.elsewhere.pop(content, [])]
            left = [old.id for old in twins if is_gone(Path(old.root) / old.path)]
            counts["left"] += len(left)
            _put(self.library, sorted(done, key=lambda pair: pair[0].path), gone=left)
            known.update({entry.digest: entry for entry, _ in done if entry.num_moments})
        if touched:
            store.update(touched)

    def _encoded(
        self, wanted: Sequence[tuple[Path, Entry]], decoders: Decoders
    ) -> list[tuple[Entry, Spans | None]]:
        if self.model is None:
            self.model = open_encoder(self.library.facts.model)
            self.library.check_model(self.model)
        made = embed_moments(
            self.model,
            [path for path, _ in wanted],
            self.library.facts.segmentation,
            decoders=decoders,
            precision=self.settings.precision or self.model.precision,
            batch_size=self.settings.batch_size,
            workers=self.settings.workers,
        )
        return [_entry_of(entry, found) for (_, entry), found in zip(wanted, made, strict=True)]


def _open(out: str | Path, settings: Settings) -> tuple[Library, Encoder | None]:
    """The library, made if it is new. The model is opened only if it has to be looked at."""
    try:
        database = open_database(out, create=True)
        with closed_on_error(database):
            facts = read_facts(database)
    except Unavailable:
        if not settings.reindex or is_address(out):
            raise
        discard(Path(out) / "library.db")
        database, facts = open_database(out, create=True), None
    with closed_on_error(database):
        return _opened(out, database, facts, settings)


def _opened(
    out: str | Path, database: Database | PostgresDatabase, facts: Facts | None, settings: Settings
) -> tuple[Library, Encoder | None]:
    if facts is None and not settings.reindex and _has_quarantine(database):
        raise HarvestError(
            f"{out} has lost what was in it: index anew, harvest index FOLDER --out {out} --model MODEL --reindex"
        )
    if facts is None or settings.reindex:
        return _begin(database, facts, settings)
    if settings.segmentation is not None and _asked(settings.segmentation, facts) != facts.segmentation:
        raise HarvestError(
            f"{database.name} was cut with {facts.segmentation}, and {settings.segmentation} is asked for: give --reindex to cut anew"
        )
    library = Library(database, facts)
    model: Encoder | None = None
    if settings.trust is not None and settings.trust != facts.trust:
        facts = dataclasses.replace(facts, trust=settings.trust)
        database.set(facts=facts.to_json())
    if settings.rerank is not None and settings.rerank != facts.rerank:
        model = open_encoder(settings.model or facts.model)
        library.check_model(model)
        if settings.rerank:
            _check_matches(model)
        facts = dataclasses.replace(facts, rerank=settings.rerank)
        database.set(facts=facts.to_json(), stale=b"yes")
    if settings.model is not None and (
        named(settings.model) != facts.model or signature(facts.model) != facts.model_signature
    ):
        model = model or open_encoder(settings.model)
        library.check_model(model)
        facts = dataclasses.replace(facts, model=model.source, model_signature=signature(model.source))
        database.set(facts=facts.to_json())
    library.facts = facts
    return library, model


def _check_matches(model: Encoder) -> None:
    need_torch("re-ranking")
    from harvest.search.asking.reranking import matching

    matching(model)


def _asked(segmentation: Segmentation, facts: Facts) -> Segmentation:
    """What is asked for, with a library's own way of counting frames where that is left open."""
    if segmentation.num_frames is not None or segmentation.frames_per_s is not None:
        return segmentation
    return dataclasses.replace(segmentation, frames_per_s=facts.segmentation.frames_per_s)


def _begun(asked: Segmentation | None, before: Segmentation | None, model: Encoder) -> Segmentation:
    """How a new library is cut: as asked for, else as before; an image model sees a frame a second unless told otherwise."""
    found = asked or before or Segmentation()
    if model.is_frame_wise and found.num_frames is None and found.frames_per_s is None:
        found = dataclasses.replace(found, frames_per_s=1.0)
    if not model.is_frame_wise and asked is None:
        found = dataclasses.replace(found, frames_per_s=None)
    return model.settle(found)


def _has_quarantine(database: Database | PostgresDatabase) -> bool:
    return isinstance(database, Database) and database.path.with_name("quarantine.jsonl").exists()


def _begin(
    database: Database | PostgresDatabase, facts: Facts | None, settings: Settings
) -> tuple[Library, Encoder]:
    """A library without files, new or made anew."""
    source = settings.model or (facts.model if facts else None)
    if source is None:
        raise HarvestError(f"{database.name} is a new library: name the model that indexes it (--model)")
    model = open_encoder(source)
    if settings.rerank:
        _check_matches(model)
    segmentation = _begun(settings.segmentation, facts.segmentation if facts else None, model)
    facts = Facts(
        model=model.source,
        model_digest=model.digest,
        model_signature=signature(model.source),
        width=model.width,
        segmentation=segmentation,
        rerank=settings.rerank or 0,
        knows_everyday_words=knows_everyday_words(model),
        trust=settings.trust or (facts.trust if facts else ()),
    )
    if facts.segmentation.frames_per_s is not None and not model.is_frame_wise:
        raise HarvestError("frames_per_s is for image models: a video model sees num_frames of each moment")
    model.check(facts.segmentation, settings.precision or model.precision)
    if model.budgets and facts.segmentation.budget is None:
        say(
            f"{model.source} was trained to see {', '.join(map(str, model.budgets))} tubelets of a clip, and is worse"
            f" where it sees all: index with --budget {model.budgets[0]}"
        )
    library = Library(database, facts)
    if world_rank_size()[0] == 0:
        library.store.begin()
        database.remove("background", "background_texts", "tops", "tops_reranked")
        database.set(facts=facts.to_json())
    return library, model


def _compare(scans: Sequence[Scan], entries: dict[str, Entry], *, verify: bool) -> _Plan:
    jobs: list[_Job] = []
    seen: set[str] = set()
    num_unchanged = 0
    for one in scans:
        for file in one.files:
            id = video_id(str(one.root), file.path)
            seen.add(id)
            before = entries.get(id)
            if before is not None and not verify and _is_unchanged(file, before):
                num_unchanged += 1
            else:
                jobs.append(_Job(str(one.root), file, before))
    gone: list[str] = []
    elsewhere: dict[str, list[Entry]] = {}
    for entry in entries.values():
        covering = next((one for one in scans if one.covers(entry.root, entry.path)), None)
        if covering is None:
            if entry.digest:
                elsewhere.setdefault(entry.digest, []).append(entry)
        elif entry.id not in seen and covering.says_of(entry.root, entry.path):
            gone.append(entry.id)
    return _Plan(jobs, sorted(gone), {entries[id].digest for id in gone}, elsewhere, num_unchanged)


def _is_unchanged(file: File, before: Entry) -> bool:
    if (file.size_bytes, file.modified_ns) != (before.size_bytes, before.modified_ns):
        return False
    if file.reason is None:  # one that could not be read says nothing of its content: it may be readable now
        return before.reason is None or before.digest != ""
    return file.reason == before.reason


def _looked_at(job: _Job) -> Entry:
    """A file with the digest of its content, or why it cannot be read."""
    root, file, _ = job
    entry = Entry(video_id(root, file.path), root, file.path, file.size_bytes, file.modified_ns, "")
    if file.reason is not None:
        return dataclasses.replace(entry, reason=file.reason)
    try:
        return dataclasses.replace(entry, digest=digest(Path(root) / file.path))
    except OSError as error:
        return dataclasses.replace(entry, reason=error.strerror or str(error))


def _put(library: Library, videos: Sequence[tuple[Entry, Spans | None]], *, gone: Sequence[str] = ()) -> None:
    """Write to the store, after noting that the calibration no longer fits: this run may be stopped before the next
    one, which then finds nothing to write."""
    library.database.set(stale=b"yes")
    library.store.put(videos, gone=gone)


def _entry_of(entry: Entry, found: Embedded | VideoError) -> tuple[Entry, Spans | None]:
    if isinstance(found, VideoError):
        return dataclasses.replace(entry, reason=found.reason), None
    cut = found.cut
    about = {"duration_s": cut.duration_s, "offset_s": cut.offset_s, "damage": cut.damage}
    return dataclasses.replace(entry, num_moments=len(found.spans.start_s), **about), found.spans  # type: ignore[arg-type]


def _quarantine(library: Library, store: Store) -> tuple[Broken, ...]:
    entries = sorted(store.entries().values(), key=lambda entry: (entry.root, entry.path))
    rows = [
        {"root": entry.root, "path": entry.path, "reason": entry.reason or entry.damage or ""}
        for entry in entries
        if entry.reason or entry.damage
    ]
    if isinstance(library.database, Database):
        write_quarantine(library.database.path.parent, rows)
    return tuple(Broken(entry.path, entry.reason) for entry in entries if entry.reason)
