"""Bringing a library up to date: new, changed, moved and vanished files, a group of files at a time.

A group is written whole or not at all, and groups are cut from the sorted list of files, so that an indexer that is
killed and started again goes through the same groups and leaves the same library.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harvest.data.video import VideoError
from harvest.evaluation.embed import embed_texts
from harvest.interfaces import HarvestError, OnProgress
from harvest.parallel import Precision, barrier, world_rank_size
from harvest.search.asking.reranking import Reranker, check_matches
from harvest.search.library.background import default_bank, knows_everyday_words
from harvest.search.library.embedding import Embedded, check_choice, embed_moments
from harvest.search.library.files import File, digest, is_gone, video_files
from harvest.search.library.folder import (
    Facts,
    Library,
    Model,
    named,
    read_facts,
    signature,
    write_quarantine,
    writing,
)
from harvest.search.library.local_store import Database, LocalStore
from harvest.search.library.segmentation import Segmentation
from harvest.search.library.store import Entry, Floats, Spans, Store, apart, video_id
from harvest.search.results import Broken, IndexReport

GROUP = 16  # files


class Settings(NamedTuple):
    """How to index; see `Index.build`."""

    model: str | None
    segmentation: Segmentation | None
    background: Sequence[str] | None
    rerank: int | None
    precision: Precision
    batch_size: int
    workers: int
    verify: bool
    reindex: bool


class _Job(NamedTuple):
    """A file that may have to be encoded."""

    root: str
    file: File
    before: Entry | None


class _Plan(NamedTuple):
    jobs: list[_Job]
    gone: list[str]
    elsewhere: dict[str, list[Entry]]
    """Files of folders that are not asked for now, by content."""
    num_unchanged: int


def build(folders: Sequence[Path], out: Path, settings: Settings, progress: OnProgress | None) -> IndexReport:
    """Index folders into the library `out`. Under torchrun every rank encodes its share of the groups."""
    started = time.monotonic()
    if world_rank_size()[0] == 0:
        with writing(out):
            return _build(folders, out, settings, progress, started)
    barrier()  # until rank 0 has made the library
    return _build(folders, out, settings._replace(reindex=False), None, started)


def _build(
    folders: Sequence[Path],
    out: Path,
    settings: Settings,
    progress: OnProgress | None,
    started: float,
) -> IndexReport:
    rank, size = world_rank_size()
    roots = [folder.resolve() for folder in folders]
    found = {root: video_files(root) for root in roots}
    library, model = _open(out, settings)
    try:
        if rank == 0:
            barrier()
        store = library.store
        entries = store.entries()
        plan = _compare(found, entries, verify=settings.verify)
        barrier()  # all ranks have the same plan before the first of them writes
        groups = [plan.jobs[start : start + GROUP] for start in range(0, len(plan.jobs), GROUP)]
        at_work = {video_id(job.root, job.file.path) for job in plan.jobs}
        known = {e.digest: e for e in entries.values() if e.num_moments and e.id not in at_work}
        counts = dict.fromkeys(("new", "changed", "moved", "left", "same"), 0)
        done = 0
        for number, group in enumerate(groups):
            if number % size == rank:
                model = _index_group(library, model, group, known, plan.elsewhere, settings, counts)
                if rank == 0:
                    store.optimise()
            done += len(group)
            if progress is not None:
                progress(done, len(plan.jobs))
        barrier()
        if rank == 0:
            if plan.gone:
                _put(library, [], gone=plan.gone)
            is_new = settings.background is not None or settings.rerank is not None
            if is_new or not _is_calibrated(library):
                _calibrate(library, model, settings.background, progress)
                store.optimise()
        broken = _quarantine(library, store) if rank == 0 else ()
        return IndexReport(
            new=counts["new"],
            changed=counts["changed"],
            moved=counts["moved"],
            vanished=len(plan.gone) + counts["left"],
            unchanged=plan.num_unchanged + counts["same"],
            broken=broken,
            moments=store.num_moments(),
            seconds=time.monotonic() - started,
        )
    finally:
        library.close()


def _open(out: Path, settings: Settings) -> tuple[Library, Model | None]:
    """The library, made if it is new. The model is opened only if it has to be looked at."""
    database = Database(out / "library.db", create=True)
    facts = read_facts(database)
    model: Model | None = None
    if facts is not None and not settings.reindex:
        if settings.segmentation is not None and settings.segmentation != facts.segmentation:
            raise HarvestError(
                f"{out} was cut with {facts.segmentation}, and {settings.segmentation} is asked for: give --reindex to cut anew"
            )
        library = Library(out, database, facts, LocalStore(database, width=facts.width))
        if settings.rerank is not None and settings.rerank != facts.rerank:
            model = Model(settings.model or facts.model)
            library.check_model(model)
            if settings.rerank:
                check_matches(model)
            facts = library.facts = dataclasses.replace(facts, rerank=settings.rerank)
            database.set(facts=facts.to_json(), stale=b"yes")
        if settings.model is not None and (
            named(settings.model) != facts.model or signature(facts.model) != facts.model_signature
        ):
            model = model or Model(settings.model)
            library.check_model(model)
            moved = dataclasses.replace(facts, model=model.source, model_signature=signature(model.source))
            database.set(facts=moved.to_json())
            library.facts = moved
        return library, model
    source = settings.model or (facts.model if facts else None)
    if source is None:
        raise HarvestError(f"{out} is a new library: name the model that indexes it (--model)")
    model = Model(source)
    if settings.rerank:
        check_matches(model)
    facts = Facts(
        model=model.source,
        model_digest=model.digest,
        model_signature=signature(model.source),
        width=model.model.config.video.embed_dim,
        segmentation=settings.segmentation or (facts.segmentation if facts else Segmentation()),
        rerank=settings.rerank or 0,
    )
    check_choice(model.model, facts.segmentation)
    store = LocalStore(database, width=facts.width)
    if world_rank_size()[0] == 0:
        store.begin()
        database.remove("background", "background_texts", "tops", "tops_reranked")
        database.set(facts=facts.to_json())
    return Library(out, database, facts, store), model


def _compare(found: dict[Path, list[File]], entries: dict[str, Entry], *, verify: bool) -> _Plan:
    jobs: list[_Job] = []
    seen: set[str] = set()
    num_unchanged = 0
    for root, files in found.items():
        for file in files:
            id = video_id(str(root), file.path)
            seen.add(id)
            before = entries.get(id)
            if before is not None and not verify and _is_unchanged(file, before):
                num_unchanged += 1
            else:
                jobs.append(_Job(str(root), file, before))
    roots = {str(root) for root in found}
    gone = sorted(id for id, entry in entries.items() if entry.root in roots and id not in seen)
    elsewhere: dict[str, list[Entry]] = {}
    for entry in entries.values():
        if entry.digest and entry.root not in roots:
            elsewhere.setdefault(entry.digest, []).append(entry)
    return _Plan(jobs, gone, elsewhere, num_unchanged)


def _is_unchanged(file: File, before: Entry) -> bool:
    if (file.size_bytes, file.modified_ns) != (before.size_bytes, before.modified_ns):
        return False
    if file.reason is None:  # one that could not be read says nothing of its content: it may be readable now
        return before.reason is None or before.digest != ""
    return file.reason == before.reason


def _index_group(
    library: Library,
    model: Model | None,
    group: Sequence[_Job],
    known: dict[str, Entry],
    elsewhere: dict[str, list[Entry]],
    settings: Settings,
    counts: dict[str, int],
) -> Model | None:
    """Encode what is new in a group of files and write the group. Returns the model, opened if it was needed."""
    done: list[tuple[Entry, Spans | None]] = []
    touched: list[Entry] = []
    arrived: set[str] = set()
    wanted: list[tuple[Path, Entry]] = []
    for root, file, before in group:
        path = Path(root) / file.path
        entry = Entry(video_id(root, file.path), root, file.path, file.size_bytes, file.modified_ns, "")
        if file.reason is None:
            try:
                entry = dataclasses.replace(entry, digest=digest(path))
            except OSError as error:
                entry = dataclasses.replace(entry, reason=error.strerror or str(error))
        else:
            entry = dataclasses.replace(entry, reason=file.reason)
        if entry.digest and (before is None or not before.digest):
            arrived.add(entry.digest)
        if entry.reason is not None and entry == before:
            counts["same"] += 1
        elif entry.reason is not None:
            done.append((entry, None))
        elif before is not None and before.digest == entry.digest:
            touched.append(entry)
            counts["same"] += 1
        elif (twin := _twin(library.store, known.get(entry.digest))) is not None:
            about, spans = twin
            copy = dataclasses.replace(
                entry, duration_s=about.duration_s, num_moments=about.num_moments, damage=about.damage
            )
            done.append((copy, spans))
            counts["moved"] += 1
        else:
            wanted.append((path, entry))
            counts["new" if before is None else "changed"] += 1
    if wanted:
        if model is None:
            model = Model(library.facts.model)
            library.check_model(model)
        made = embed_moments(
            model.model,
            [path for path, _ in wanted],
            library.facts.segmentation,
            precision=settings.precision,
            batch_size=settings.batch_size,
            workers=settings.workers,
        )
        done += [_entry_of(entry, found) for (_, entry), found in zip(wanted, made, strict=True)]
    if done:
        # Content that has come here and is no longer where it was has been moved. An absence alone says nothing: a
        # disk may not be mounted.
        twins = [old for content in sorted(arrived) for old in elsewhere.pop(content, [])]
        left = [old.id for old in twins if is_gone(Path(old.root) / old.path)]
        counts["left"] += len(left)
        _put(library, sorted(done, key=lambda pair: pair[0].path), gone=left)
        known.update({entry.digest: entry for entry, _ in done if entry.num_moments})
    if touched:
        library.store.update(touched)
    return model


def _put(library: Library, videos: Sequence[tuple[Entry, Spans | None]], *, gone: Sequence[str] = ()) -> None:
    """Write to the store, after noting that the calibration no longer fits: this run may be stopped before the next
    one, which then finds nothing to write."""
    library.database.set(stale=b"yes")
    library.store.put(videos, gone=gone)


def _twin(store: Store, entry: Entry | None) -> tuple[Entry, Spans] | None:
    """A file of equal content and its moments, if they are all there."""
    if entry is None or len((spans := store.spans(entry.id)).start_s) != entry.num_moments:
        return None
    return entry, spans


def _entry_of(entry: Entry, found: Embedded | VideoError) -> tuple[Entry, Spans | None]:
    if isinstance(found, VideoError):
        return dataclasses.replace(entry, reason=found.reason), None
    cut = found.cut
    return (
        dataclasses.replace(
            entry, duration_s=cut.duration_s, num_moments=len(found.spans.start_s), damage=cut.damage
        ),
        found.spans,
    )


def _is_calibrated(library: Library) -> bool:
    needed = ["tops", "tops_reranked"] if library.facts.rerank else ["tops"]
    is_stale = bool(library.database.get("stale"))
    return not is_stale and all(library.database.get(name) is not None for name in needed)


def _calibrate(
    library: Library,
    model: Model | None,
    background: Sequence[str] | None,
    progress: OnProgress | None,
) -> None:
    """Embed the bank of background queries, if it is new, and note how high each scores in the library now."""
    database = library.database
    stored, texts = database.get("background"), json.loads(database.get("background_texts") or b"[]")
    new_texts: tuple[str, ...] = ()
    if background is not None:
        new_texts = tuple(background)
    elif stored is None:
        model = model or Model(library.facts.model)
        tokenizer = model.tokenizer
        if knows_everyday_words(lambda text: len(tokenizer.words(text))):
            new_texts = default_bank()
    if new_texts:
        model = model or Model(library.facts.model)
        vectors = embed_texts(model.model, model.tokenizer, new_texts).numpy()
        stored, texts = vectors.astype("<f4").tobytes(), new_texts
    bank: Floats = np.frombuffer(stored or b"", "<f4").reshape(-1, library.facts.width)
    facts = {"background": bank.tobytes(), "tops": tops_of(library.store, bank).tobytes()}
    if texts:
        facts["background_texts"] = json.dumps(texts).encode()
    database.remove("tops_reranked")  # never those of another state of the library
    if not library.facts.rerank:
        database.set(**facts, stale=b"")
    else:
        database.set(**facts)
        model = model or Model(library.facts.model)
        tops = _reranked_tops(library, model, bank, texts, progress)
        database.set(tops_reranked=tops.tobytes(), stale=b"")


def tops_of(store: Store, bank: Floats) -> Floats:
    """The score of the best moment for every background query, fp32 `[Q]`, ascending."""
    tops: Floats = np.sort(store.best_scores(bank)).astype("<f4")
    return tops


def _reranked_tops(
    library: Library, model: Model, bank: Floats, texts: Sequence[str], progress: OnProgress | None
) -> Floats:
    """The best agreement among the first answers to every background query, fp32 `[Q]`, ascending."""
    files = {id: Path(entry.root) / entry.path for id, entry in library.store.entries().items()}
    reranker = Reranker(model, library.facts.segmentation, files.__getitem__)
    tops = []
    for place, (text, query) in enumerate(zip(texts, bank, strict=True)):
        most = library.facts.rerank
        near = apart(library.store.nearest(query, 4 * most + 16), most)
        found = [value for value in reranker.agreements(model.read(text), near)[0] if value is not None]
        tops.append(max(found, default=-np.inf))
        if progress is not None:
            progress(place + 1, len(texts))
    return np.sort(np.array(tops, "<f4"))


def _quarantine(library: Library, store: Store) -> tuple[Broken, ...]:
    entries = sorted(store.entries().values(), key=lambda entry: (entry.root, entry.path))
    rows = [
        {"root": entry.root, "path": entry.path, "reason": entry.reason or entry.damage or ""}
        for entry in entries
        if entry.reason or entry.damage
    ]
    write_quarantine(library.folder, rows)
    return tuple(Broken(entry.path, entry.reason) for entry in entries if entry.reason)
