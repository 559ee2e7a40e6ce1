"""Rows to be evaluated are a manifest's or those of shards, in the shards' order, and an address finds a sample again."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from harvest.data.guard import Guard
from harvest.data.manifest import read_manifest, write_manifest
from harvest.data.options import PrepareConfig
from harvest.data.prepare import prepare
from harvest.data.read_once import ClipReader, clip_numbers, eval_batches
from harvest.data.rows import read_rows, video_of
from harvest.data.video import PackedVideo, VideoError, read_clip, write_video
from harvest.interfaces import Example, HarvestError

CLIPS = 7
ONE = {"num_frames": 3, "image_size": 16}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for number in range(CLIPS):
        levels = (20 * number + torch.arange(12)).byte()[:, None, None, None]
        write_video(folder / f"{number}.mp4", levels.expand(12, 3, 16, 24).contiguous(), fps=6)
        rows.append(Example(f"e{number}", str(folder / f"{number}.mp4"), (f"clip {number}",), label=number))
    return rows


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def as_they_are(examples: list[Example], folder: Path, *, each: int = 3) -> Path:
    """Shards of the very files of some examples, as video2dataset writes them."""
    for number, start in enumerate(range(0, len(examples), each)):
        members = []
        for place, row in enumerate(examples[start : start + each], start):
            said = {"key": f"{place:08d}", "status": "success", "caption": row.texts[0], "label": row.label}
            members += [
                (f"{place:08d}.mp4", Path(row.video).read_bytes()),
                (f"{place:08d}.txt", row.texts[0].encode()),
                (f"{place:08d}.json", json.dumps(said).encode()),
            ]
        write_tar(folder / f"{number:05d}.tar", members)
    return folder


def test_a_manifest_is_read_as_ever(examples: list[Example], tmp_path: Path) -> None:
    write_manifest(tmp_path / "rows.jsonl", examples)
    rows, left_out = read_rows(str(tmp_path / "rows.jsonl"))
    assert list(rows) == list(read_manifest(tmp_path / "rows.jsonl")) == examples and left_out == {}


@pytest.mark.parametrize("workers", [0, 1])
def test_shards_of_the_same_files_show_the_same_frames(
    examples: list[Example], tmp_path: Path, workers: int
) -> None:
    folder = as_they_are(examples, tmp_path / "out")
    seen = []
    rows, left_out = read_rows(str(folder), progress=lambda done, of: seen.append((done, of)))
    assert seen[-1] == (CLIPS, CLIPS) and not left_out
    assert read_rows(str(folder / "{00000..00002}.tar"))[0] == rows
    assert [row.id for row in rows] == [f"{n // 3:05d}.tar#{n % 3}" for n in range(CLIPS)]
    assert [(row.texts, row.label) for row in rows] == [(row.texts, row.label) for row in examples]
    for views in (None, (2, 3)):
        how = {"batch_size": 4, "workers": workers, "views": views, **ONE}
        both = zip(eval_batches(examples, **how), eval_batches(rows, **how), strict=True)
        for (here, one), (there, other) in both:
            assert here.equal(there) and one.equal(other)


def test_what_prepare_cut_from_one_stretch_is_one_video(examples: list[Example], tmp_path: Path) -> None:
    again = [
        dataclasses.replace(row, id=f"{row.id}-again", texts=("said otherwise",)) for row in examples[:2]
    ]
    part = [dataclasses.replace(examples[0], id="part", start_s=0.5, end_s=1.5)]
    prepare(
        [*examples[:3], *again, *part],
        tmp_path / "out",
        PrepareConfig(short_side=16, clips_per_shard=2),
        workers=0,
    )
    rows, _ = read_rows(str(tmp_path / "out"))
    assert clip_numbers(rows).tolist() == [0, 1, 2, 0, 1, 3]
    assert len({row.id for row in rows}) == 6


def test_what_cannot_be_read_is_named(examples: list[Example], tmp_path: Path) -> None:
    video = Path(examples[1].video).read_bytes()
    members = [("0.mp4", b"no video" * 90), ("0.txt", b"first"), ("1.mp4", video), ("1.txt", b"second")]
    members += [("2.mp4", video), ("3.txt", b"no video")]
    write_tar(tmp_path / "a.tar", members)
    rows, left_out = read_rows(str(tmp_path / "a.tar"))
    assert {name.rpartition("/")[2]: reason for name, reason in left_out.items()} == {
        "2": "no caption and no label",
        "3": "no video or picture (members: txt)",
    }
    told: dict[str, str] = {}
    batches = list(
        eval_batches(
            rows, batch_size=8, workers=1, on_broken=lambda row, why: told.update({row.id: why}), **ONE
        )
    )
    assert batches[0][0].tolist() == [1] and told.keys() == {"a.tar#0"} and "Invalid data" in told["a.tar#0"]


def test_a_shard_that_is_cut_after_its_index_was_made(examples: list[Example], tmp_path: Path) -> None:
    shard = as_they_are(examples, tmp_path / "out", each=CLIPS) / "00000.tar"
    rows, _ = read_rows(str(shard))
    data = shard.read_bytes()
    shard.with_suffix(".index.json").write_text(
        next((tmp_path / "cache" / "harvest" / "shards").iterdir()).read_text()
    )
    with shard.open("r+b") as file:  # as long as it was, and nothing in its second half
        file.seek(len(data) // 2)
        file.write(bytes(len(data) - len(data) // 2))
    kept, left_out = read_rows(str(shard))
    assert 0 < len(kept) < CLIPS and len(kept) + len(left_out) == CLIPS
    assert set(left_out) == {row.id for row in rows} - {row.id for row in kept}
    with pytest.raises(VideoError, match=r"00000\.tar#6"):
        video_of(rows[6].video)


def test_addresses(examples: list[Example], tmp_path: Path) -> None:
    shard = as_they_are(examples, tmp_path / "out", each=CLIPS) / "00000.tar"
    assert video_of("clips/a.mp4") == "clips/a.mp4"
    found = video_of(f"{shard}#2")
    assert isinstance(found, PackedVideo) and found.files == (Path(examples[2].video).read_bytes(),)
    as_they_are(examples[3:], tmp_path / "out", each=CLIPS)  # written anew
    again = video_of(f"{shard}#2")
    assert isinstance(again, PackedVideo) and again.files == (Path(examples[5].video).read_bytes(),)
    with pytest.raises(HarvestError, match=r"00000.tar#9: this shard has 4 samples"):
        video_of(f"{shard}#9")
    with pytest.raises(HarvestError, match="does not exist"):
        video_of(f"{tmp_path}/gone.tar#0")
    with pytest.raises(HarvestError, match="hold their videos: leave out the folder"):
        read_rows(str(shard), videos=tmp_path)


def test_rows_of_a_bucket(examples: list[Example], tmp_path: Path) -> None:
    for path in as_they_are(examples, tmp_path / "out").iterdir():
        MemoryFileSystem().pipe_file(f"/rows-{tmp_path.name}/{path.name}", path.read_bytes())
    rows, _ = read_rows(f"memory://rows-{tmp_path.name}/{{00000..00002}}.tar")
    assert [row.id for row in rows] == [f"{n // 3:05d}.tar#{n % 3}" for n in range(CLIPS)]
    here = read_clip(examples[4].video, **ONE).frames
    assert read_clip(video_of(rows[4].video), **ONE).frames.equal(here)


def test_a_slow_bucket_is_no_broken_video(
    examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guarded process, whose time is limited, gets the bytes."""
    rows, _ = read_rows(str(as_they_are(examples, tmp_path / "out")))
    given = []
    monkeypatch.setattr(Guard, "start", lambda self: None)
    monkeypatch.setattr(Guard, "__call__", lambda self, *args: given.append(args) or self.function(*args))
    clips = ClipReader(rows, **ONE)
    clips.start_guard()
    clips[[3]]
    assert given[0][0] == 3 and isinstance(given[0][1], PackedVideo)
