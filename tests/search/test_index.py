from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch

import harvest
from harvest.data.video import read_clip
from harvest.evaluation.embed import encode_clips
from harvest.interfaces import HarvestError
from harvest.model.folder import load_model, save_model
from harvest.model.fusion import FusionConfig
from harvest.model.inflation import as_video_model
from harvest.search.asking.calibration import chance_of, default_bank, read_bank
from harvest.search.index import MAX_QUERY_CHARACTERS, UnknownId
from harvest.search.library.decoding import Decoders
from harvest.search.library.files import digest
from harvest.search.library.folder import Library, writing
from harvest.search.library.segmentation import Segmentation
from harvest.search.results import Where
from harvest.tokens import Selector, see

from .conftest import BANK, SEGMENTATION, WORLD, write_long

Content = dict[tuple[str, str], tuple[str, list[tuple[float, float]], bytes, str | None]]


def content(place: Path | str) -> Content:
    """All that a library says of its files, for comparing two of them."""
    library = Library.open(place)
    found: Content = {}
    for entry in library.store.entries().values():
        spans = library.store.spans(entry.id)
        times = list(zip(spans.start_s.tolist(), spans.end_s.tolist(), strict=True))
        found[entry.root, entry.path] = (entry.digest, times, spans.vectors.tobytes(), entry.reason)
    tops = library.database.get("tops")
    found["", "tops"] = ("", [], tops or b"", None)
    library.close()
    return found


def build(clips: Path, out: Path | str, model: Path | None = None, **settings: object) -> harvest.Index:
    settings = (
        {"segmentation": SEGMENTATION, "background": BANK} | settings if model is not None else settings
    )
    settings = {"precision": "fp32"} | settings  # to be compared with what evaluation gives
    return harvest.Index.build(clips, out=out, model=model, **settings)  # type: ignore[arg-type]


# ---- searching


@pytest.fixture(scope="module", params=["folder", "postgres"])
def library(
    request: pytest.FixtureRequest, clips: Path, image_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[harvest.Index]:
    """All clips, indexed. Not to be written to."""
    if request.param == "postgres":
        out = request.getfixturevalue("new_database")()
    else:
        out = tmp_path_factory.mktemp("library")
    with build(clips, out, image_model) as index:
        yield index


def test_a_moment_is_found_by_its_own_words_and_its_second(library: harvest.Index, clips: Path) -> None:
    """An image model knows colours and shapes: the best moments show what was asked for."""
    from harvest.data.miniworld import make_clip

    found = 0
    for index in range(24):
        _, row = make_clip(WORLD, "retrieval", index)
        answer = library.search(f"a {row['colour']} {row['shape']} {row['motion']}", k=3)
        hit = answer.hits[0]
        number = int(Path(hit.path).stem) * 3 + round(hit.start_s / 2)
        _, shown = make_clip(WORLD, "retrieval", number)
        assert hit.start_s in (0.0, 2.0, 4.0) and hit.end_s == hit.start_s + 2.0
        found += (shown["colour"], shown["shape"]) == (row["colour"], row["shape"])
    assert found >= 20


def test_scores_are_cosines_of_the_moments_shown(library: harvest.Index, image_model: Path) -> None:
    answer = library.search("a red circle", k=20)
    model = harvest.load(image_model)
    query = model.embed_texts(["a red circle"])[0]
    for hit in answer.hits[:5]:
        clip = read_clip(
            library.file(hit.moment.video), num_frames=2, image_size=64, start_s=hit.start_s, end_s=hit.end_s
        )
        own = encode_clips(model.model, clip.frames[None], mode="image").pooled[0]
        assert float(own @ query) == pytest.approx(hit.score, abs=2e-3)
    scores = [hit.score for hit in answer.hits]
    assert scores == sorted(scores, reverse=True)


def test_answers_turn_into_json(library: harvest.Index) -> None:
    answer = library.search("a red circle", k=2)
    assert (
        json.loads(json.dumps(dataclasses.asdict(answer)))["hits"][0]["moment"]["path"] == answer.hits[0].path
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        answer.hits[0].score = 1.0  # type: ignore[misc]


def test_more_like_this_by_moment_picture_and_clip(library: harvest.Index, tmp_path: Path) -> None:
    first = library.videos()[0]
    timeline = library.timeline("anything", first.id)
    moment = timeline.moments[1]
    near = library.search(moment=moment.id, k=5)
    assert all(hit.moment.id != moment.id for hit in near.hits) and len(near.hits) == 5
    assert near.hits[0].chance is None and near.notes
    again = library.search(
        clip=library.file(first.id), clip_start_s=moment.start_s, clip_end_s=moment.end_s, k=1
    )
    assert again.hits[0].moment == moment and again.hits[0].score == pytest.approx(1.0, abs=2e-3)
    picture = tmp_path / "picture.jpg"
    picture.write_bytes(library.thumbnail(first.id, 1.0, height=64))
    by_picture = library.search(image=picture, k=1)
    assert by_picture.hits[0].moment.video == first.id and by_picture.hits[0].start_s == 0.0


def test_what_is_unwanted_is_left_out(library: harvest.Index) -> None:
    wanted, unwanted = "a circle", "a red circle"
    plain = library.search(wanted, k=24)
    without = library.search(wanted, without=unwanted, k=24)
    against = {hit.moment.id: hit.score for hit in library.search(unwanted, k=24).hits}
    assert 0 < len(without.hits) < len(plain.hits)
    assert all(against.get(hit.moment.id, -1.0) < hit.score for hit in without.hits)
    asked = {hit.moment.id: hit.score for hit in plain.hits}
    assert all(
        hit.score == pytest.approx(asked[hit.moment.id]) for hit in without.hits if hit.moment.id in asked
    )


def test_filters(library: harvest.Index) -> None:
    hits = library.search("a red circle", k=24, where=Where(path="trip/*")).hits
    assert {hit.path for hit in hits} == {"trip/5.mp4", "trip/6.mp4", "trip/7.mp4"} and len(hits) == 9
    nothing = library.search("a red circle", where=Where(after="2999-01-01"))
    assert nothing.hits == () and not nothing.is_there and "filter" in nothing.notes[0]
    long = library.search("a red circle", where=Where(min_duration_s=100))
    assert long.hits == ()


def test_the_chance_of_a_score() -> None:
    tops = np.linspace(0, 1, 99, dtype=np.float32)
    assert chance_of(2.0, tops) == pytest.approx(0.01)
    assert chance_of(-1.0, tops) == 1.0
    assert chance_of(0.5, tops) == pytest.approx(0.51, abs=0.02)
    assert len(default_bank()) == 512 == len(set(default_bank()))
    with pytest.raises(HarvestError, match="at least 20"):
        read_bank(["one", "two"])


def test_background_queries_are_refused_as_often_as_was_asked(library: harvest.Index) -> None:
    for false_accept in (0.1, 0.5):
        let_through = sum(library.search(text, false_accept=false_accept).is_there for text in BANK)
        assert let_through <= false_accept * (len(BANK) + 1)
        assert let_through >= false_accept * (len(BANK) + 1) - 2


@pytest.mark.parametrize(
    "query", ["un cercle rouge va à gauche", "红色的圆圈向左移动", "🦊", "x" * MAX_QUERY_CHARACTERS]
)
def test_any_language_has_an_answer(library: harvest.Index, query: str) -> None:
    answer = library.search(query, k=1)
    assert len(answer.hits) == 1 and -1 <= answer.hits[0].score <= 1 and 0 < answer.hits[0].chance <= 1  # type: ignore[operator]


def test_a_query_longer_than_the_model_reads_is_said(library: harvest.Index) -> None:
    assert any("word pieces" in note for note in library.search("a red circle moves left " * 40).notes)
    assert not library.search("a red circle moves left").notes


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"text": " "}, "empty"),
        ({"text": "a" * 10_000}, "10,000 characters"),
        ({}, "exactly one"),
        ({"text": "a", "moment": "b"}, "exactly one"),
        ({"text": "a", "k": 0}, "k: expected"),
        ({"text": "a", "k": 10**9}, "k: expected"),
        ({"text": "a", "false_accept": 0}, "false_accept"),
        ({"text": "a", "rerank": 5}, "no matching head"),
        ({"text": "a", "where": Where(before="soon")}, "date"),
        ({"image": "nowhere.png"}, "[Nn]o such file"),
    ],
)
def test_mistakes_are_said(library: harvest.Index, asked: dict, said: str) -> None:
    with pytest.raises(HarvestError, match=said):
        library.search(**asked)


@pytest.mark.parametrize("id", ["", "nobody", "../../etc/passwd", "0123456789abcdef.0", "a" * 5000])
def test_unknown_ids(library: harvest.Index, id: str) -> None:
    for ask in (library.video, library.moment, library.file, lambda i: library.timeline("a", i)):
        with pytest.raises(UnknownId):
            ask(id)
    with pytest.raises(UnknownId):
        library.search(moment=id)
    known = library.videos()[0].id
    for number in ("99", "-1", "x", "", "1" * 400, "٣"):
        with pytest.raises(UnknownId):
            library.moment(f"{known}.{number}")


def test_what_a_library_says_of_itself(library: harvest.Index) -> None:
    stats = library.stats()
    assert (stats.videos, stats.moments, stats.broken, stats.duration_s) == (8, 24, 0, 48.0)
    assert stats.search == "exact" and stats.size_bytes > 0
    assert [video.path for video in library.videos()] == [f"{n}.mp4" for n in range(5)] + [
        f"trip/{n}.mp4" for n in (5, 6, 7)
    ]
    timeline = library.timeline("a red circle", library.videos()[3].id)
    assert [moment.start_s for moment in timeline.moments] == [0.0, 2.0, 4.0] and len(timeline.scores) == 3


def test_thumbnails_are_the_frame_at_a_time(library: harvest.Index) -> None:
    video = library.videos()[0]
    data = library.thumbnail(video.id, 4.5, height=64)
    import io

    with av.open(io.BytesIO(data)) as container:
        seen = next(container.decode(video=0)).to_ndarray(format="rgb24")
    from harvest.data.video import read_frames

    times = torch.tensor([0.5, 4.5], dtype=torch.float64)
    other, wanted = (
        read_frames(library.file(video.id), times, image_size=64).frames.permute(0, 2, 3, 1).numpy()
    )
    assert seen.shape == (64, 64, 3)
    assert abs(seen.astype(int) - wanted).mean() < 8 < abs(seen.astype(int) - other).mean()
    for wrong in ({"height": 5}, {"height": 10**6}):
        with pytest.raises(HarvestError):
            library.thumbnail(video.id, 1.0, **wrong)
    for time_s in (-1.0, float("nan"), float("inf")):
        with pytest.raises(HarvestError):
            library.thumbnail(video.id, time_s)


def test_many_threads_ask_at_once(library: harvest.Index) -> None:
    wanted = library.search("a green star", k=3)
    found: list[object] = []

    def ask() -> None:
        for _ in range(5):
            found.append(library.search("a green star", k=3))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wanted] * 40


# ---- keeping up to date


def test_new_changed_moved_and_vanished_files(
    some_clips: Path, image_model: Path, tmp_path: Path, out: Path | str
) -> None:
    with build(some_clips, out, image_model) as index:
        assert index.report is not None and index.report.new == 8
        ids = {video.path: video.id for video in index.videos()}
    (some_clips / "0.mp4").rename(some_clips / "trip" / "moved.mp4")
    (some_clips / "1.mp4").unlink()
    write_long(some_clips / "2.mp4", range(30, 34))
    write_long(some_clips / "new.mp4", range(34, 36))
    os.utime(some_clips / "3.mp4")
    with build(some_clips, out) as index:
        report = index.report
        assert report is not None
        assert (report.new, report.changed, report.moved, report.vanished, report.unchanged) == (
            1,
            1,
            1,
            2,
            5,
        )
        paths = [video.path for video in index.videos()]
        assert paths == ["2.mp4", "3.mp4", "4.mp4", "new.mp4", *(f"trip/{n}.mp4" for n in (5, 6, 7, "moved"))]
        assert index.video(ids["2.mp4"]).num_moments == 4
        assert report.moments == 4 + 3 + 3 + 2 + 12
    kept = content(out)
    fresh = tmp_path / "fresh"
    build(some_clips, fresh, image_model).close()
    assert content(fresh) == kept
    with build(some_clips, out, verify=True) as index:
        assert index.report is not None and index.report.unchanged == 8 and index.report.new == 0
    assert content(out) == kept


def test_a_folder_that_was_renamed_or_is_not_mounted(
    some_clips: Path, image_model: Path, tmp_path: Path, out: Path | str
) -> None:
    other = tmp_path / "other"
    (some_clips / "trip").rename(other)
    (some_clips / "broken.mp4").write_text("not a video")
    with harvest.Index.build(
        [some_clips, other], out=out, model=image_model, segmentation=SEGMENTATION, background=BANK
    ) as index:
        [lost] = [video for video in index.videos() if video.path == "0.mp4"]
        [away] = [video for video in index.videos() if video.path == "7.mp4"]
        new = some_clips.rename(tmp_path / "new")
        with pytest.raises(HarvestError, match="nor is its folder"):
            index.file(lost.id)
    shutil.copy(new / "0.mp4", new / "again.mp4")
    other.rename(tmp_path / "not-mounted")
    with build(new, out) as index:
        report = index.report
        assert report is not None
        assert (report.new, report.moved, report.vanished, report.unchanged) == (
            1,
            6,
            6,
            0,
        )  # the broken is new
        hits = index.search("a red circle", k=100).hits
        assert len({(hit.path, hit.start_s) for hit in hits}) == len(hits) == report.moments - 3 == 24
        assert {path for hit in hits for path in (hit.path, *hit.copies)} >= {"0.mp4", "again.mp4"}
        assert [video.path for video in index.videos()][-3:] == ["6.mp4", "7.mp4", "again.mp4"]
        assert len(index.broken()) == 1
        assert index.video(away.id)  # its disk may only not be mounted
        with pytest.raises(UnknownId):
            index.file(lost.id)
    (tmp_path / "not-mounted").rename(other)
    copy = Path(shutil.copytree(new, tmp_path / "copy"))
    with build(copy, out) as index:  # what is there twice is indexed twice
        assert index.report is not None and (index.report.copies, index.report.vanished) == (6, 0)
        assert index.file(away.id)
    shutil.rmtree(copy)
    with build(new, out) as index:  # nor does this tell a deleted copy from one that is not mounted
        assert index.report is not None and (index.report.vanished, index.report.unchanged) == (0, 7)
        assert index.report.moments == 27 + 18


def test_content_that_changes_behind_the_same_size_and_time(
    some_clips: Path, image_model: Path, tmp_path: Path, out: Path | str
) -> None:
    build(some_clips, out, image_model).close()
    path = some_clips / "0.mp4"
    about = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    with build(some_clips, out) as index:
        assert index.report is not None and index.report.changed == 0
    with build(some_clips, out, verify=True) as index:
        assert index.report is not None and index.report.changed == 1


def test_the_second_run_opens_no_model(
    some_clips: Path, image_model: Path, tmp_path: Path, monkeypatch
) -> None:  # type: ignore[no-untyped-def]
    build(some_clips, tmp_path / "library", image_model).close()
    monkeypatch.setattr("harvest.search.building.open_encoder", None)
    monkeypatch.setattr("harvest.search.building.embed_moments", None)
    with harvest.Index.build(some_clips, out=tmp_path / "library", model=image_model) as index:
        assert index.report is not None and index.report.unchanged == 8


def test_broken_files_are_in_quarantine_and_links_lead_nowhere(
    some_clips: Path, image_model: Path, tmp_path: Path
) -> None:
    (some_clips / "text.mp4").write_text("not a video")
    (some_clips / "empty.mkv").touch()
    (some_clips / "notes.txt").write_text("left alone")
    (some_clips / ".hidden.mp4").write_text("left alone")
    secret = tmp_path / "secret.mp4"
    write_long(secret, range(2))
    (some_clips / "link.mp4").symlink_to(secret)
    (some_clips / "nowhere.mp4").symlink_to(tmp_path / "missing.mp4")
    Path(os.fsdecode(os.fsencode(some_clips) + b"/caf\xe9.mp4")).write_text("a name that is not UTF-8")
    whole = (some_clips / "0.mp4").read_bytes()
    (some_clips / "short.mp4").write_bytes(whole[: len(whole) * 3 // 4])
    out = tmp_path / "library"
    with build(some_clips, out, image_model) as index:
        assert index.report is not None
        reasons = {broken.path: broken.reason for broken in index.report.broken}
        assert reasons.keys() == {"text.mp4", "empty.mkv", "link.mp4", "nowhere.mp4", "caf\\xe9.mp4"}
        assert "0 bytes" in reasons["empty.mkv"] and "outside" in reasons["link.mp4"]
        assert index.broken() == index.report.broken
        [damaged] = [video for video in index.videos() if video.damage]
        assert damaged.path == "short.mp4" and "read only to" in (damaged.damage or "")
    rows = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert {row["path"] for row in rows} == reasons.keys() | {"short.mp4"}
    with build(some_clips, out) as index:
        assert index.report is not None and index.report.unchanged == 14 and len(index.report.broken) == 5


def test_a_file_that_could_not_be_read_is_tried_again(
    some_clips: Path, image_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: Path | str
) -> None:
    """What is mended (permissions, a disk) changes neither its size nor its time."""

    def refuse(path: Path) -> str:
        if path.name == "1.mp4":
            raise PermissionError(13, "Permission denied")
        return digest(path)

    with monkeypatch.context() as patch:
        patch.setattr("harvest.search.building.digest", refuse)
        with build(some_clips, out, image_model) as index:
            assert index.report is not None and index.report.new == 7
            assert [(file.path, file.reason) for file in index.broken()] == [("1.mp4", "Permission denied")]
        patch.setattr("harvest.search.building.calibrate", None)  # nothing new: nothing to calibrate
        with build(some_clips, out) as index:
            assert index.report is not None and index.report.unchanged == 8 and len(index.report.broken) == 1
    with build(some_clips, out) as index:
        assert index.report is not None and index.report.unchanged == 7 and index.broken() == ()
    build(some_clips, tmp_path / "fresh", image_model).close()
    assert content(out) == content(tmp_path / "fresh")


def test_a_file_that_becomes_a_link_is_not_served(
    some_clips: Path, image_model: Path, tmp_path: Path
) -> None:
    with build(some_clips, tmp_path / "library", image_model) as index:
        [video] = [video for video in index.videos() if video.path == "0.mp4"]
        assert index.file(video.id) == (some_clips / "0.mp4").resolve()
        secret = tmp_path / "secret.mp4"
        (some_clips / "0.mp4").rename(secret)
        with pytest.raises(HarvestError, match="not there any more"):
            index.file(video.id)
        (some_clips / "0.mp4").symlink_to(secret)
        with pytest.raises(HarvestError, match="outside"):
            index.file(video.id)


def test_a_folder_without_videos_changes_nothing(
    some_clips: Path, image_model: Path, tmp_path: Path, out: Path | str
) -> None:
    build(some_clips, out, image_model).close()
    before = content(out)
    for file in list(some_clips.rglob("*.mp4")):
        file.unlink()
    with pytest.raises(HarvestError, match="holds no videos"):
        build(some_clips, out)
    with pytest.raises(HarvestError, match="no such folder"):
        build(tmp_path / "nowhere", out)
    assert content(out) == before


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux")
def test_an_indexer_that_fails_leaves_no_database_open(some_clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "library"
    with pytest.raises(HarvestError, match="no such file or folder"):
        harvest.Index.build(some_clips, out=out, model="../nothing here")
    with pytest.raises(HarvestError, match="holds nothing yet"):
        harvest.Index.open(out)
    held = {
        os.readlink(f"/proc/self/fd/{number}")
        for number in os.listdir("/proc/self/fd")
        if number.isdigit() and os.path.lexists(f"/proc/self/fd/{number}")
    }
    assert not [path for path in held if path.startswith(str(out))]


def test_another_model_is_named(
    some_clips: Path, image_model: Path, video_model: Path, tmp_path: Path, out: Path | str
) -> None:
    build(some_clips, out, image_model).close()
    before = content(out)
    with pytest.raises(HarvestError, match=r"mini-image.*--reindex"):
        build(some_clips, out, video_model)
    with (
        harvest.Index.open(out, model=video_model) as index,
        pytest.raises(HarvestError, match=r"mini-image.*another"),
    ):
        index.search("a red circle")
    with pytest.raises(HarvestError, match="--reindex"):
        build(some_clips, out, segmentation=dataclasses.replace(SEGMENTATION, window_s=3.0))
    assert content(out) == before
    with build(some_clips, out, video_model, reindex=True) as index:
        assert index.report is not None and index.report.new == 8
        assert index.search("a red circle").hits
    assert content(out) != before


def test_a_model_that_was_moved(some_clips: Path, image_model: Path, tmp_path: Path, out: Path | str) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(image_model, moved)
    build(some_clips, out, moved).close()
    moved.rename(tmp_path / "there")
    with harvest.Index.open(out) as index, pytest.raises(HarvestError):
        index.search("a red circle")
    with harvest.Index.open(out, model=tmp_path / "there") as index:
        assert index.search("a red circle").hits
    with build(some_clips, out, tmp_path / "there", segmentation=None, background=None) as index:
        assert index.report is not None and index.report.unchanged == 8
        assert index.search("a red circle").hits  # the library knows the new place


def test_a_run_stopped_before_calibration_is_made_up_for(
    some_clips: Path, image_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether something is there is told from all that is there, also where the next run finds no file to do."""
    few, out = tmp_path / "few", tmp_path / "library"
    few.mkdir()
    (some_clips / "0.mp4").rename(few / "0.mp4")
    build(few, out, image_model).close()

    def stop(*asked: object) -> None:
        raise KeyboardInterrupt

    for change in (lambda: (some_clips / "1.mp4").rename(few / "1.mp4"), (few / "0.mp4").unlink):
        change()
        before = content(out)["", "tops"]
        with monkeypatch.context() as patch:
            patch.setattr("harvest.search.asking.calibration.tops_of", stop)
            with pytest.raises(KeyboardInterrupt):
                build(few, out)
        assert content(out)["", "tops"] == before  # searches go on with what there was
        with build(few, out) as index:
            assert index.report is not None and index.report.unchanged == len(list(few.iterdir()))
        fresh = tmp_path / f"fresh-{len(list(tmp_path.iterdir()))}"
        build(few, fresh, image_model).close()
        assert content(out) == content(fresh) and content(out)["", "tops"] != before
    monkeypatch.setattr("harvest.search.asking.calibration.tops_of", stop)
    os.utime(few / "1.mp4")
    build(few, out).close()  # of the same content: nothing to calibrate


def test_a_background_that_is_not_there_costs_no_run(
    some_clips: Path, image_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(HarvestError, match=r"background .*typo\.txt"):
        build(some_clips, tmp_path / "library", image_model, background=tmp_path / "typo.txt")
    assert not (tmp_path / "library").exists()


def test_libraries_that_cannot_be_opened(some_clips: Path, image_model: Path, tmp_path: Path) -> None:
    with pytest.raises(HarvestError, match="not a library"):
        harvest.Index.open(tmp_path / "nowhere")
    with pytest.raises(HarvestError, match="name the model"):
        harvest.Index.build(some_clips, out=tmp_path / "new")
    out = tmp_path / "library"
    build(some_clips, out, image_model).close()
    library = Library.open(out)
    facts = dataclasses.replace(library.facts, format=99)
    library.database.set(facts=facts.to_json())
    library.close()
    for use in (lambda: harvest.Index.open(out), lambda: build(some_clips, out)):
        with pytest.raises(HarvestError, match="newer Harvest"):
            use()


def test_two_indexers_at_once(some_clips: Path, image_model: Path, tmp_path: Path, out: Path | str) -> None:
    build(some_clips, out, image_model).close()
    with writing(out), pytest.raises(HarvestError, match=f"being indexed by .*{os.getpid()}"):
        build(some_clips, out)
    build(some_clips, out).close()


def test_searching_while_another_indexes(
    some_clips: Path, image_model: Path, tmp_path: Path, out: Path | str
) -> None:
    build(some_clips, out, image_model).close()
    with harvest.Index.open(out) as index:
        assert index.stats().videos == 8
        write_long(some_clips / "new.mp4", range(36, 39))
        build(some_clips, out).close()
        new = next(video for video in index.videos() if video.path == "new.mp4")
        found = index.search(moment=f"{new.id}.0", k=30)
        assert {hit.path for hit in found.hits} >= {"0.mp4"} and index.stats().videos == 9
        clip = index.search(clip=some_clips / "new.mp4", clip_end_s=2.0, k=1)
        assert clip.hits[0].path == "new.mp4"


def test_a_video_model_and_a_budget(some_clips: Path, video_model: Path, tmp_path: Path) -> None:
    with build(some_clips, tmp_path / "all", video_model, workers=3) as index:
        assert index.search("a red circle").hits
    segmentation = dataclasses.replace(SEGMENTATION, budget=40, selector="random")
    with build(some_clips, tmp_path / "few", video_model, segmentation=segmentation) as index:
        assert index.search("a red circle").hits
    every, few = content(tmp_path / "all"), content(tmp_path / "few")
    assert [row[1] for row in every.values()] == [row[1] for row in few.values()]
    assert every != few
    build(some_clips, tmp_path / "again", video_model, workers=1).close()
    assert content(tmp_path / "again") == every  # however many threads decode


@pytest.mark.parametrize("selector", ["tube", "motion", "attention", "run_length", "merge"])
def test_moments_are_seen_as_clips_are_in_evaluation(
    clips: Path, video_model: Path, tmp_path: Path, selector: Selector
) -> None:
    budget = None if selector == "run_length" else 96
    segmentation = dataclasses.replace(SEGMENTATION, budget=budget, selector=selector)
    model, _ = load_model(video_model)
    with build(clips / "trip", tmp_path / "library", video_model, segmentation=segmentation) as index:
        video = index.videos()[0]
        spans = index._library.store.spans(video.id)
        path = index.file(video.id)
        for start_s, end_s, vector in zip(*spans, strict=True):
            clip = read_clip(path, num_frames=8, image_size=64, start_s=start_s, end_s=end_s)
            seen = encode_clips(model, clip.frames[None], selection=see(budget, selector)).pooled[0]
            torch.testing.assert_close(torch.from_numpy(vector), seen, atol=5e-4, rtol=0)
            every = encode_clips(model, clip.frames[None]).pooled[0]
            assert (every - seen).abs().max() > 1e-3
        asked = index.search(clip=path, clip_end_s=2.0, k=1)  # and so are clips that one asks with
        assert asked.hits[0].moment.id == f"{video.id}.0"
        assert asked.hits[0].score == pytest.approx(1.0, abs=2e-3)
        picture = tmp_path / "picture.jpg"
        picture.write_bytes(index.thumbnail(video.id, 1.0, height=64))
        assert index.search(image=picture, k=1).hits


def test_a_budget_of_more_than_there_is(clips: Path, video_model: Path, tmp_path: Path) -> None:
    with pytest.raises(HarvestError, match="a budget of 1000000 tubelets is more than a clip has"):
        build(clips, tmp_path / "library", video_model, segmentation=Segmentation(budget=10**6))
    with pytest.raises(HarvestError, match="holds nothing yet"):  # nothing is settled by it
        harvest.Index.open(tmp_path / "library")


def test_an_image_model_sees_whole_frames(clips: Path, image_model: Path, tmp_path: Path) -> None:
    for segmentation in (Segmentation(budget=8), Segmentation(selector="run_length")):
        with pytest.raises(HarvestError, match="choosing tokens needs a video model"):
            build(clips, tmp_path / "library", image_model, segmentation=segmentation)


def test_unwanted_everywhere(library: harvest.Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked for and unwanted at once is nowhere, and looking for it ends."""
    assert library.search("a circle", without="a circle", k=3).hits == ()
    monkeypatch.setattr("harvest.search.index.MOST_LOOKED_AT", 24)
    monkeypatch.setattr(library._library.store, "num_moments", lambda: 10**6)
    answer = library.search("a circle", without="a circle", k=1)
    assert answer.hits == () and "only the nearest 24 moments were looked at" in answer.notes


def test_what_an_indexer_removes_during_a_search_is_left_out(
    some_clips: Path, image_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with build(some_clips, tmp_path / "library", image_model) as index:
        store = index._library.store
        find = store.nearest

        def find_and_lose(*asked: object) -> list:
            near = find(*asked)
            store.put([], gone=[near[0].video])
            return near

        first = index.search("a red circle", k=30).hits[0].moment.video
        monkeypatch.setattr(store, "nearest", find_and_lose)
        hits = index.search("a red circle", k=30).hits
        assert hits and first not in {hit.moment.video for hit in hits}


def test_the_matching_head_orders_the_first_again(
    some_clips: Path, image_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, tokenizer = load_model(image_model)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fusion = FusionConfig(depth=1, num_heads=2, matches=True)
        model, _ = as_video_model(image, num_frames=8, tubelet_size=2, fusion=fusion)
        assert model.fusion is not None and model.fusion.head_match is not None
        model.fusion.head_match.weight.data *= 100  # untrained, it would be outvoted by the cosines
    save_model(tmp_path / "model", model, tokenizer)
    with build(some_clips, tmp_path / "library", tmp_path / "model") as index:
        plain = index.search("a red circle", k=12)
        opened = index._model()
        encode_text, asked_for = opened.model.encode_text, []
        opened.model.encode_text = lambda ids: asked_for.append(len(ids)) or encode_text(ids)  # type: ignore[method-assign]
        index.search("a blue ring", k=3, rerank=6)
        assert asked_for == [1]  # what it is searched with, the head reads too
        again = index.search("a red circle", k=12, rerank=6)
        before, after = ([hit.moment.id for hit in answer.hits] for answer in (plain, again))
        assert before != after and set(before[:6]) == set(after[:6]) and before[6:] == after[6:]
        assert {hit.moment.id: hit.score for hit in plain.hits} == {
            hit.moment.id: hit.score for hit in again.hits
        }
        matches = []
        with torch.no_grad():
            words = model.eval().encode_text(tokenizer(["a red circle"]))
            for hit in again.hits[:6]:
                clip = read_clip(
                    index.file(hit.moment.video),
                    num_frames=8,
                    image_size=64,
                    start_s=hit.start_s,
                    end_s=hit.end_s,
                )
                logits = model.match(model.fuse(model.encode_video(clip.frames[None]), words), words)
                odds = float(logits[0, 1] - logits[0, 0])
                matches.append(odds + float(model.log_scale.exp()) * hit.score)
                assert hit.agreement == pytest.approx(matches[-1], abs=1e-3)
        assert matches == sorted(matches, reverse=True)
        assert all(hit.agreement is None for hit in plain.hits + again.hits[6:])
        assert any("calibrate" in note for note in again.notes)

    with build(some_clips, tmp_path / "library", rerank=1) as index:
        of_one = index._library.database.get("tops_reranked")
    for step in ("tops_of", "_reranked_tops"):
        with monkeypatch.context() as patch:
            patch.setattr(f"harvest.search.asking.calibration.{step}", None)  # it stops there
            with pytest.raises(TypeError):
                build(some_clips, tmp_path / "library", rerank=6 if step == "tops_of" else None)
    with build(some_clips, tmp_path / "library") as index:  # from now on always, and calibrated
        assert index._library.facts.rerank == 6
        assert index._library.database.get("tops_reranked") not in (None, of_one)
        third = index.search("a red circle", k=12)
        assert [hit.moment for hit in third.hits] == [hit.moment for hit in again.hits]
        stored = index._library.database.get("tops_reranked")
        assert stored is not None
        tops = np.frombuffer(stored, "<f4")
        assert len(tops) == len(BANK) and third.notes == ()
        for hit in third.hits[:6]:
            assert hit.agreement is not None and hit.chance == chance_of(hit.agreement, tops)
        assert third.is_there is any(hit.chance <= 0.05 for hit in third.hits[:6])
        asked = index.search(BANK[3], k=6)  # a background query has its own best among the background's
        assert max(hit.agreement for hit in asked.hits) == pytest.approx(
            tops[np.abs(tops - max(hit.agreement for hit in asked.hits)).argmin()], abs=1e-3
        )
        assert [h.moment for h in index.search("a red circle", k=12, rerank=0).hits] == [
            hit.moment for hit in plain.hits
        ]
        index.file(plain.hits[0].moment.video).unlink()  # and nobody has indexed since
        left = index.search("a red circle", k=12, rerank=6)
        gone = {hit.moment.id for hit in plain.hits[:6] if hit.moment.video == plain.hits[0].moment.video}
        assert {hit.moment.id for hit in left.hits[6 - len(gone) : 6]} == gone
        assert any("is not there any more" in note for note in left.notes)


KILLS = """
import json, os, random, shutil, signal, sys, time
import torch
import harvest
from harvest.search import building
from harvest.search.library.segmentation import Segmentation

clips, folder, model, bank, rounds = *sys.argv[1:5], int(sys.argv[5])
torch.set_num_threads(1)
building.GROUP = 2
draw = random.Random(0)

def index(out):
    harvest.Index.build(clips, out=out, model=model, segmentation=Segmentation(window_s=2.0), background=bank).close()

def run(out, after_s):
    child = os.fork()  # nothing has computed here yet
    if child == 0:
        index(out)
        os._exit(0)
    if after_s is not None:
        time.sleep(after_s)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

started = time.monotonic()
assert run(f"{folder}/whole", None) == 0
whole_s = time.monotonic() - started
ends = []
for number in range(rounds):
    out, after_s = f"{folder}/{number}", draw.uniform(0.0, 0.8 * whole_s)
    while run(out, after_s) == 0:  # it was through before: earlier, then
        shutil.rmtree(out)
        after_s /= 2
    ends.append(-signal.SIGKILL)
    ends.append(run(out, draw.uniform(0.0, after_s)))  # again, while it makes up for the first
    assert run(f"{folder}/{number}", None) == 0
print(json.dumps(ends))
"""


def test_an_indexer_killed_at_any_moment_ends_with_the_same_library(
    some_clips: Path, video_model: Path, tmp_path: Path
) -> None:
    """HARVEST_KILLS=10 is twenty kills."""
    bank = tmp_path / "bank.txt"
    bank.write_text("\n".join(BANK))
    rounds = int(os.environ.get("HARVEST_KILLS", "1"))
    command = [sys.executable, "-c", KILLS, some_clips, tmp_path, video_model, bank, rounds]
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, timeout=60 + 60 * rounds, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout).count(-signal.SIGKILL) >= rounds
    whole = content(tmp_path / "whole")
    for number in range(rounds):
        assert content(tmp_path / str(number)) == whole


def test_real_files(image_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that decoders stumble over: nothing crashes, and what cannot be read is named. HARVEST_CLIPS=all takes all."""
    shared = Path(__file__).parents[3] / "shared" / "clips"
    if not shared.is_dir():
        pytest.skip("no real clips here")
    cases = shared
    if os.environ.get("HARVEST_CLIPS") != "all":
        cases = tmp_path / "cases"
        cases.mkdir()
        for file in sorted((shared / "decoder_cases").iterdir())[::5]:
            shutil.copy(file, cases)
    with build(cases, tmp_path / "library", image_model, segmentation=None) as index:
        first = index.report
        assert first is not None and first.broken and first.new > 4 * len(first.broken)
        assert all(video.num_moments for video in index.videos())
    read: list[object] = []
    monkeypatch.setattr(Decoders, "__call__", lambda *asked: read.append(asked))
    monkeypatch.setattr(Decoders, "windows", lambda *asked: read.append(asked))
    with harvest.Index.build(cases, out=tmp_path / "library") as index:
        second = index.report
    assert second is not None and (second.new, second.changed) == (0, 0) and not read
    assert second.broken == first.broken and second.moments == first.moments
