"""Tar shards of ours and of others: every sample once, in the order of a manifest, on any number of ranks and workers."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from test_rows import write_tar
from torch import Tensor

from harvest.data import stretches as module
from harvest.data.dataset import ClipDataset, DataConfig
from harvest.data.loader import TrainLoader
from harvest.data.options import PrepareConfig
from harvest.data.prepare import prepare, verify
from harvest.data.sampler import epoch_order
from harvest.data.shards import are_shards, expand, index_path, read_shards
from harvest.data.video import VideoError, probe, read_clip, read_frames, write_pictures, write_video
from harvest.interfaces import Batch, Example, HarvestError

SIZE = 16
CLIPS = 7


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.001)
    return folder


def flat(level: int, num_frames: int = 12) -> Tensor:
    levels = (level + torch.arange(num_frames)).byte()
    return levels[:, None, None, None].expand(num_frames, 3, SIZE, 2 * SIZE).contiguous()


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for number in range(CLIPS):
        write_video(folder / f"{number}.mp4", flat(30 * number), fps=6)
        texts = tuple(f"clip {number} {word}" for word in "ab"[: 1 + number % 2])
        rows.append(Example(f"e{number}", str(folder / f"{number}.mp4"), texts, label=number))
    return rows


@pytest.fixture(scope="module")
def packed(examples: list[Example], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "shards"
    prepare(examples, out, PrepareConfig(short_side=SIZE, clips_per_shard=3, crf=10), workers=0)
    return out


def encode_text(texts: list[str]) -> Tensor:
    return torch.tensor([[len(text), *(text + "   ").encode()[5:8]] for text in texts])


def loader(examples, *, batch=6, rank=0, world=1, first_step=0, refused=None, **config) -> TrainLoader:
    config = {"num_frames": 3, "workers": 0, **config}
    dataset = ClipDataset(examples, DataConfig(**config), image_size=SIZE, encode_text=encode_text, seed=1)
    return TrainLoader(
        dataset, global_batch=batch, rank=rank, world=world, first_step=first_step, refused=refused or {}
    )


def take(loader: TrainLoader, count: int) -> list[Batch]:
    return list(islice(loader, count))


def equal(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        x.equal(y) for one, two in zip(a, b, strict=True) for x, y in zip(one, two, strict=True)
    )


def jpeg(level: int) -> bytes:
    return write_pictures(flat(level, 1))[0]


# ---------------------------------------------------------------------------------------------------------------
# What prepare writes


def test_what_is_packed_is_read(examples: list[Example], packed: Path) -> None:
    shards = read_shards(str(packed))
    assert len(shards) == CLIPS and len(shards.shards) == 3
    for number, example in enumerate(examples):
        found, video = shards.fetch(number)
        assert (found.texts, found.label) == (example.texts, example.label)
        times = torch.arange(12, dtype=torch.float64) / 6
        one = read_frames(example.video, times, image_size=SIZE).frames.float().mean((1, 2, 3))
        other = read_frames(video, times, image_size=SIZE).frames.float().mean((1, 2, 3))
        assert (one - other).abs().max() < 3
        assert probe(video).duration_s == pytest.approx(2.0, abs=0.02)
    with tarfile.open(packed / "shard-000000.tar") as tar:  # as webdataset sees it
        assert tar.getnames() == [f"{n:09d}.{s}" for n in range(3) for s in ("mp4", "txt", "json")]
        said = json.load(tar.extractfile("000000001.json"))
    assert said["id"] == "e1" and said["texts"] == ["clip 1 a", "clip 1 b"] and said["num_frames"] == 12


def test_clips_are_trimmed_and_scaled(tmp_path: Path) -> None:
    frames = torch.cat([flat(10 * second, 8) for second in range(10)]).repeat(1, 1, 8, 8)
    write_video(tmp_path / "long.mp4", frames, fps=8)
    rows = [Example("cut", str(tmp_path / "long.mp4"), ("t",), start_s=6, end_s=8)]
    prepare(rows, tmp_path / "out", PrepareConfig(short_side=32, key_every=4, crf=4), workers=0)
    _, video = read_shards(str(tmp_path / "out")).fetch(0)
    info = probe(video)
    assert (info.height, info.width, info.num_frames) == (32, 64, 16)
    levels = read_clip(video, num_frames=2, image_size=SIZE).frames.float().mean((1, 2, 3))
    assert (levels - torch.tensor([64.0, 74.0])).abs().max() < 5


def test_frames_instead_of_video(examples: list[Example], tmp_path: Path) -> None:
    prepare(examples, tmp_path / "out", PrepareConfig(short_side=SIZE, frames=4), workers=0)
    shards = read_shards(str(tmp_path / "out"))
    for number, example in enumerate(examples):
        _, video = shards.fetch(number)
        assert video.times_s is not None and len(video.files) == 4
        one = read_clip(example.video, num_frames=4, image_size=SIZE)
        other = read_clip(video, num_frames=4, image_size=SIZE)
        assert (one.frames.float() - other.frames.float()).abs().mean() < 3
        assert torch.allclose(one.times_s, other.times_s, atol=1e-5)


def test_pictures_stay_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(90))
    prepare([Example("a", str(tmp_path / "a.jpg"), ("t",))], tmp_path / "out", PrepareConfig(), workers=0)
    with tarfile.open(tmp_path / "out/shard-000000.tar") as tar:
        assert tar.getnames() == ["000000000.jpg", "000000000.txt", "000000000.json"]
    assert read_clip(read_shards(str(tmp_path / "out")).fetch(0)[1], num_frames=1, image_size=8)


def test_shards_are_the_same_bytes_on_any_number_of_workers(
    examples: list[Example], packed: Path, tmp_path: Path
) -> None:
    config = PrepareConfig(short_side=SIZE, clips_per_shard=3, crf=10)
    out, told = tmp_path / "out", []
    prepare(examples, out, config, workers=2, progress=lambda done, of: told.append((done, of)))
    assert told[0] == (0, CLIPS) and told[-1] == (CLIPS, CLIPS)
    names = sorted(path.name for path in packed.iterdir())
    assert sorted(path.name for path in out.iterdir()) == names
    for name in names:
        assert (out / name).read_bytes() == (packed / name).read_bytes(), name
    # a shard that a kill left without its index is written again, the others are kept
    before = (out / "shard-000000.tar").stat().st_mtime_ns
    (out / "shard-000001.index.json").unlink()
    (out / "shard-000001.tar").write_bytes(b"half")
    prepare(examples, out, config, workers=0)
    assert (out / "shard-000000.tar").stat().st_mtime_ns == before
    assert (out / "shard-000001.tar").read_bytes() == (packed / "shard-000001.tar").read_bytes()


def test_damage_is_found_by_checksums(examples: list[Example], tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(examples[:4], out, PrepareConfig(short_side=SIZE, clips_per_shard=2), workers=0)
    assert verify(out) == []
    shard = out / "shard-000001.tar"
    whole = shard.read_bytes()
    data = bytearray(whole)
    data[1500] ^= 1
    shard.write_bytes(data)
    assert verify(out) == ["shard-000001.tar: its bytes have changed since it was written"]
    shard.write_bytes(data[:-600])
    assert "bytes" in verify(out)[0]
    with pytest.raises(HarvestError, match=r"copy it again, or remove .*shard-000001.index.json"):
        read_shards(str(out))
    shard.unlink()
    assert verify(out) == ["shard-000001.tar: it is gone, its index is there"]
    shard.write_bytes(whole)
    assert verify(out) == []
    (out / "broken.json").unlink()  # written last
    assert verify(out) == ["it was not finished: the same harvest prepare goes on"]


def test_what_cannot_be_read_is_named_and_left_out(examples: list[Example], tmp_path: Path) -> None:
    rows = [examples[0], Example("gone", str(tmp_path / "gone.mp4"), ("t",)), examples[1]]
    made = prepare(rows, tmp_path / "out", PrepareConfig(short_side=SIZE), workers=0)
    assert made.num_clips == 2 and made.broken == {"gone": "no such file"}
    assert json.loads((tmp_path / "out/broken.json").read_text()) == made.broken
    assert len(read_shards(str(tmp_path / "out"))) == 2


def test_folders_that_cannot_be_used_are_refused(
    examples: list[Example], tmp_path: Path, packed: Path
) -> None:
    with pytest.raises(HarvestError, match=r"prepared otherwise \(crf, rows differ\)"):
        prepare(examples[:2], packed, PrepareConfig(short_side=SIZE, clips_per_shard=3, crf=30), workers=0)
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(HarvestError, match="not empty"):
        prepare(examples, tmp_path, PrepareConfig(), workers=0)
    with pytest.raises(HarvestError, match="cannot write into"):
        prepare(examples, Path("/proc/nowhere"), PrepareConfig(), workers=0)
    with pytest.raises(HarvestError, match="holds no shards"):
        verify(tmp_path)
    for wrong in ({"short_side": 0}, {"crf": 99}, {"frames": 0}, {"max_fps": 0.0}, {"clips_per_shard": 0}):
        with pytest.raises(HarvestError):
            PrepareConfig(**wrong)


# ---------------------------------------------------------------------------------------------------------------
# Shards of others


def test_shards_of_video2dataset_and_img2dataset(examples: list[Example], tmp_path: Path) -> None:
    video = Path(examples[2].video).read_bytes()
    write_tar(
        tmp_path / "00000.tar",
        [
            ("00000_00000.mp4", video),
            ("00000_00000.txt", b"a caption"),
            ("00000_00000.json", json.dumps({"key": "00000_00000", "status": "success"}).encode()),
            ("sub/00001.jpg", jpeg(77)),
            ("sub/00001.json", json.dumps({"caption": "said in json"}).encode()),
            ("00002.jpg", jpeg(50)),
            ("00002.cls", b"3"),
            ("00003.000.jpg", jpeg(20)),
            ("00003.001.jpg", jpeg(200)),
            ("00003.json", json.dumps({"fps": 2, "texts": ["one", " ", "two"]}).encode()),
        ],
    )
    shards = read_shards(str(tmp_path / "00000.tar"))
    rows = [shards[i] for i in range(4)]
    assert [row.texts for row in rows] == [("a caption",), ("said in json",), (), ("one", "two")]
    assert [row.label for row in rows] == [None, None, 3, None]
    levels = [
        read_clip(shards.fetch(i)[1], num_frames=2, image_size=8).frames.float().mean((1, 2, 3)).tolist()
        for i in range(4)
    ]
    assert levels[1] == pytest.approx([77, 77], abs=3) and levels[3] == pytest.approx([20, 200], abs=3)


def test_what_is_odd_in_a_shard_is_named(tmp_path: Path, cache: Path) -> None:
    write_tar(
        tmp_path / "a.tar",
        [
            ("1.jpg", jpeg(10)),
            ("1.txt", "caf\xe9 \x93quoted\x94".encode("latin-1")),
            ("2.txt", b"no video"),
            ("3.jpg", jpeg(10)),
            ("4.jpg", jpeg(10)),
            ("4.json", b"{not json"),
            ("5.jpg", jpeg(10)),
            ("5.txt", "größe".encode()),
        ],
    )
    shards = read_shards(str(tmp_path / "a.tar"))
    assert [row.texts for row in shards] == [("café “quoted”",), ("größe",)]
    reasons = {name.rsplit("/", 1)[1]: reason for name, reason in shards.left_out.items()}
    assert reasons == {
        "2": "no video or picture (members: txt)",
        "3": "no caption and no label",
        "4": "its json cannot be read",
    }
    assert len(list((cache / "harvest/shards").iterdir())) == 1  # beside the shard nothing is written
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar"]
    again = read_shards(str(tmp_path / "a.tar"))  # from the cache
    assert again.left_out == shards.left_out and len(again) == 2


@pytest.mark.parametrize("keep", [0.3, 0.62, 0.95])
def test_a_shard_cut_short_gives_its_whole_samples(tmp_path: Path, keep: float) -> None:
    write_tar(
        tmp_path / "whole.tar",
        [m for n in range(9) for m in ((f"{n}.jpg", jpeg(20 * n)), (f"{n}.txt", b"t"))],
    )
    data = (tmp_path / "whole.tar").read_bytes()
    data = data[: int(len(data.rstrip(b"\0")) * keep)]
    (tmp_path / "cut.tar").write_bytes(data)
    shards = read_shards(str(tmp_path / "cut.tar"))
    assert 0 < len(shards) < 9 and any("cut short" in reason for reason in shards.left_out.values())
    for number in range(len(shards)):
        level = read_clip(shards.fetch(number)[1], num_frames=1, image_size=8).frames.float().mean()
        assert level == pytest.approx(20 * number, abs=3)
    # cut after it was opened: the sample is refused, the run goes on
    whole = read_shards(str(tmp_path / "whole.tar"))
    (tmp_path / "whole.tar").write_bytes(data)
    with pytest.raises(VideoError, match="cut short"):
        whole.fetch(8)


def test_nothing_in_a_shard(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("readme.md", b"hello")])
    with pytest.raises(HarvestError, match="hold no sample"):
        read_shards(str(tmp_path / "a.tar"))
    (tmp_path / "b.tar").write_bytes(b"this is no tar" * 100)
    with pytest.raises(HarvestError, match="hold no sample"):
        read_shards(str(tmp_path / "b.tar"))


# ---------------------------------------------------------------------------------------------------------------
# Names and addresses


def test_names_of_shards(tmp_path: Path) -> None:
    assert expand("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand("s3://b/{x,y}/{0..1}.tar") == [f"s3://b/{a}/{b}.tar" for a in "xy" for b in "01"]
    for name in ("b.tar", "a.tar"):
        write_tar(tmp_path / name, [])
    assert expand(str(tmp_path)) == [str(tmp_path / "a.tar"), str(tmp_path / "b.tar")]
    assert are_shards("x-{0..3}.tar") and are_shards("s3://b/x.tar") and are_shards(str(tmp_path))
    assert not are_shards("clips.jsonl") and not are_shards(str(tmp_path / "nothing"))
    for wrong in ("a-{3..1}.tar", "a-{3}.tar"):
        with pytest.raises(HarvestError, match="shards a-"):
            expand(wrong)
    with pytest.raises(HarvestError, match="no shards match"):
        expand(str(tmp_path / "z*.tar"))
    with pytest.raises(HarvestError, match="given twice"):
        read_shards([str(tmp_path / "a.tar"), str(tmp_path / "a.tar")])
    with pytest.raises(HarvestError, match=r"shard .*c.tar does not exist"):
        read_shards(str(tmp_path / "c.tar"))
    with pytest.raises(HarvestError, match=r"pip install s3fs"):
        read_shards("nosuch://bucket/a.tar")


class Bucket:
    """fsspec's file system in memory, out of reach as often as it is told."""

    def __init__(self, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.failures = self.reads = 0
        self.address = f"memory://{packed.name}-{id(self)}/shard-{{000000..000002}}.tar"
        for path in packed.iterdir():
            MemoryFileSystem().pipe_file(f"/{packed.name}-{id(self)}/{path.name}", path.read_bytes())
        for name in ("info", "cat_ranges"):
            monkeypatch.setattr(MemoryFileSystem, name, self.flaky(getattr(MemoryFileSystem, name)))

    def flaky(self, inner: Callable) -> Callable:
        def call(*args, **kwargs):
            self.reads += inner.__name__ == "cat_ranges"
            if self.failures > 0:
                self.failures -= 1
                raise ConnectionError("the bucket is out of reach")
            return inner(*args, **kwargs)

        return call


@pytest.fixture
def bucket(packed: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    return Bucket(packed, monkeypatch)


def test_a_bucket_gives_the_same_batches(packed: Path, bucket: Bucket) -> None:
    here, there = read_shards(str(packed)), read_shards(bucket.address)
    assert len(read_shards(bucket.address.split("{")[0] + "*.tar")) == len(there)
    bucket.reads = 0
    assert equal(take(loader(here), 3), take(loader(there), 3))
    assert bucket.reads == 3  # a batch is asked for in one go, and its captions are remembered


def test_an_unreachable_bucket_is_tried_again_and_then_told(bucket: Bucket) -> None:
    shards = read_shards(bucket.address)
    bucket.failures = 3
    expected = take(loader(shards), 1)
    bucket.failures = 10**6
    with pytest.raises(HarvestError, match=r"cannot be read after 5 tries: the bucket is out of reach"):
        take(loader(shards), 1)
    with pytest.raises(HarvestError, match="out of reach"):
        read_shards(bucket.address)
    bucket.failures = 0
    assert equal(take(loader(shards), 1), expected)


# ---------------------------------------------------------------------------------------------------------------
# The order


def test_the_order_is_that_of_a_manifest(examples: list[Example], packed: Path) -> None:
    shards = read_shards(str(packed))
    batches = take(loader(shards, batch=CLIPS, captions_per_clip=2), 2)
    plain = take(loader(examples, batch=CLIPS, captions_per_clip=2), 2)
    for epoch, (one, other) in enumerate(zip(batches, plain, strict=True)):
        assert one.example.tolist() == epoch_order(1, epoch, CLIPS).tolist()
        for a, b in zip(one[1:], other[1:], strict=True):
            assert a.equal(b)
        assert (one.video.float() - other.video.float()).abs().mean() < 4


def test_workers_ranks_and_resume_change_nothing(packed: Path) -> None:
    whole = take(loader(read_shards(str(packed)), batch=4), 6)
    assert equal(take(loader(read_shards(str(packed)), batch=4, workers=2), 6), whole)
    assert equal(take(loader(read_shards(str(packed)), batch=4, first_step=3), 3), whole[3:])
    for world in (2, 4):  # more ranks than shards too
        for rank in range(world):
            part = take(loader(read_shards(str(packed)), batch=4, rank=rank, world=world, first_step=2), 2)
            for step, batch in enumerate(part):
                assert batch.example.equal(whole[2 + step].example[rank::world])
                assert batch.video.equal(whole[2 + step].video[rank::world])


def test_a_damaged_sample_is_left_out_by_its_place(examples: list[Example], tmp_path: Path) -> None:
    members = []
    for number in range(4):
        video = b"no video" * 50 if number == 2 else Path(examples[number].video).read_bytes()
        members += [(f"{number}.mp4", video), (f"{number}.txt", b"clip x")]
    path = str(write_tar(tmp_path / "a.tar", members))
    reader = loader(read_shards(path), batch=4, workers=1)
    batches = take(reader, 3)
    assert reader.broken.keys() == {f"{path}#2"} and "Invalid data" in reader.broken[f"{path}#2"].reason
    again = loader(read_shards(path), batch=4, first_step=1, refused=reader.broken)
    assert equal(take(again, 2), batches[1:])


def test_shards_do_not_go_into_the_memory_cache(packed: Path) -> None:
    with pytest.raises(HarvestError, match=r"cache none with shards"):
        take(loader(read_shards(str(packed)), cache="memory"), 1)


@pytest.mark.slow
def test_an_epoch_over_many_samples_sees_each_once(tmp_path: Path) -> None:
    """HARVEST_SAMPLES=100000 for the figure in docs/results.md."""
    import os

    count = int(os.environ.get("HARVEST_SAMPLES", "2000"))
    picture = jpeg(100)
    for shard in range(10):
        members = []
        for number in range(shard * count // 10, (shard + 1) * count // 10):
            members += [(f"{number:08d}.jpg", picture), (f"{number:08d}.cls", str(number).encode())]
        write_tar(tmp_path / f"{shard}.tar", members)
    reader = loader(read_shards(str(tmp_path)), batch=100, workers=2, num_frames=1)
    weights, seen = [], []
    for step, batch in enumerate(reader):
        seen += batch.label.tolist()
        with open("/proc/self/statm") as file:
            weights.append(int(file.read().split()[1]))
        if step + 1 == count // 100:
            break
    assert sorted(seen) == list(range(count)) and seen != sorted(seen)
    third = len(weights) // 3
    assert max(weights[-third:]) < 1.05 * max(weights[third : 2 * third])


def test_the_index_lies_beside_the_shard() -> None:
    assert index_path("s3://b/shard-1.tar") == "s3://b/shard-1.index.json"


def test_numbered_pictures_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    pictures = [(f"0001.{number}.jpg", jpeg(20 * number)) for number in range(12)]
    write_tar(tmp_path / "a.tar", [*pictures, ("0001.txt", b"it grows lighter")])
    _, video = read_shards(str(tmp_path / "a.tar")).fetch(0)
    levels = read_clip(video, num_frames=12, image_size=8).frames.float().mean((1, 2, 3))
    assert (levels.diff() > 0).all()
