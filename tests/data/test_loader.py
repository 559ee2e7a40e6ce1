import dataclasses
import os
import signal
import time
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from harvest.data.dataset import ClipDataset, DataConfig, Refused
from harvest.data.loader import TrainLoader
from harvest.data.read_once import clip_numbers, eval_batches
from harvest.data.sampler import epoch_order
from harvest.data.video import read_clip, write_video
from harvest.interfaces import Batch, Clip, Example, HarvestError

NUM_CLIPS = 11
SIZE = 16


def encode_text(texts: list[str]) -> Tensor:
    """Four numbers that tell texts apart."""
    return torch.tensor([[len(text), *(text + "   ").encode()[:3]] for text in texts])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of one brightness each that grows by one a frame, told apart by it."""
    folder = tmp_path_factory.mktemp("clips")
    for clip in range(NUM_CLIPS):
        level = 20 * clip + torch.arange(12)
        frames = level.byte()[:, None, None, None].expand(12, 3, SIZE, SIZE * 2).contiguous()
        write_video(folder / f"{clip}.mp4", frames, fps=6)
    (folder / "broken.mp4").write_text("no video")
    return folder


@pytest.fixture(scope="module")
def examples(folder: Path) -> list[Example]:
    """One caption, two captions, none but a label; and two rows of one clip."""
    rows = [
        Example(f"e{clip}", str(folder / f"{clip}.mp4"), tuple("ab"[: 1 + clip % 2]), label=clip)
        for clip in range(NUM_CLIPS)
    ]
    return [*rows, Example("again", str(folder / "3.mp4"), ("c", "d", "e"))]


def loader(
    examples: list[Example], *, batch=6, rank=0, world=1, first_step=0, seed=1, refused=None, **config
) -> TrainLoader:
    config = {"num_frames": 3, "workers": 0, **config}
    dataset = ClipDataset(examples, DataConfig(**config), image_size=SIZE, encode_text=encode_text, seed=seed)
    return TrainLoader(
        dataset, global_batch=batch, rank=rank, world=world, first_step=first_step, refused=refused or {}
    )


def take(loader: TrainLoader, count: int) -> list[Batch]:
    return list(islice(loader, count))


def equal(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        x.equal(y) for one, two in zip(a, b, strict=True) for x, y in zip(one, two, strict=True)
    )


# ---------------------------------------------------------------------------------------------------------------
# The order


@given(st.integers(0, 2**40), st.integers(0, 1000), st.integers(1, 200))
def test_an_epoch_is_a_permutation(seed: int, epoch: int, n: int) -> None:
    assert epoch_order(seed, epoch, n).sort().values.equal(torch.arange(n))
    assert epoch_order(seed, epoch, n).equal(epoch_order(seed, epoch, n))


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(epoch_order(seed, epoch, 50).tolist()) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 10)), max_size=3),
    st.integers(1, 4),
    st.integers(0, 40),
)
def test_steps_use_up_the_order_without_gap(changes: list[tuple[int, int]], world: int, steps: int) -> None:
    batches, start = [(0, 3 * world)], 0
    for length, clips in changes:
        start += length
        batches.append((start, clips * world))
    examples = [Example(str(i), f"{i}.mp4", ("t",)) for i in range(7)]
    ranks = [loader(examples, batch=batches, rank=rank, world=world) for rank in range(world)]
    seen = []
    for step in range(steps):
        shares = [rank.sampler.keys(step) for rank in ranks]
        assert len({len(share) for share in shares}) == 1
        assert ranks[0].sampler.position_of(step) == len(seen)
        assert sum(map(len, shares)) == ranks[0].batch_at(step)
        seen += sorted(key for share in shares for key in share)
    assert seen == [divmod(position, 7) for position in range(len(seen))]


@pytest.mark.parametrize("batch, world", [(5, 2), (0, 1), ([(1, 4)], 1), ([(0, 4), (0, 8)], 1), ([], 1)])
def test_impossible_batches_are_refused(examples: list[Example], batch, world: int) -> None:
    with pytest.raises(HarvestError):
        loader(examples, batch=batch, world=world)


# ---------------------------------------------------------------------------------------------------------------
# What a batch holds


def test_a_batch(examples: list[Example]) -> None:
    (batch,) = take(loader(examples, batch=12, captions_per_clip=2), 1)
    assert batch.video.shape == (12, 3, 3, SIZE, SIZE) and batch.video.dtype == torch.uint8
    assert batch.text_ids.shape == (12, 2, 4) and batch.caption.shape == (12, 2)
    assert all(x.dtype == torch.int64 for x in batch[1:-1]) and len(batch.stored) == 0
    captions = loader(examples).dataset.captions()
    assert len(captions) == sum(len(e.texts) for e in examples)
    samples = epoch_order(1, 0, 12)
    assert batch.example.equal(clip_numbers(examples)[samples])
    assert batch.example.tolist().count(3) == 2  # two rows of one clip
    for row, sample in enumerate(samples.tolist()):
        example = examples[sample]
        assert int(batch.label[row]) == (-1 if example.label is None else example.label)
        texts = [captions[number] for number in batch.caption[row]]
        assert batch.text_ids[row].equal(encode_text(texts))
        assert set(texts) <= set(example.texts)
        assert len(set(texts)) == min(2, len(example.texts))  # no caption twice while there is another
        level = batch.video[row].float().mean((1, 2, 3)) - 20 * int(batch.example[row])
        assert (level > -2.5).all() and (level < 13.5).all() and (level.diff() > 0).all()


def test_every_caption_gets_its_turn(examples: list[Example]) -> None:
    seen = {
        n
        for batch in take(loader(examples, batch=12, cache="memory"), 30)
        for n in batch.caption.flatten().tolist()
    }
    assert seen == set(range(len(loader(examples).dataset.captions())))


def test_examples_without_captions(examples: list[Example], folder: Path) -> None:
    labelled = [Example(str(i), str(folder / f"{i}.mp4"), label=i) for i in range(4)]
    for cache in ("none", "memory"):
        (batch,) = take(loader(labelled, batch=4, cache=cache), 1)
        assert batch.caption.eq(-1).all() and batch.text_ids.equal(encode_text([""]).expand(4, 1, 4))
    with pytest.raises(
        HarvestError, match=r"1 of 12 training examples have neither caption nor label \(first: 'x'"
    ):
        loader([*examples[:-1], Example("x", "x.mp4")])
    with pytest.raises(HarvestError, match="empty"):
        loader([])


def test_random_times_crops_and_flips_differ_between_epochs(examples: list[Example]) -> None:
    one, *_, other = take(loader(examples[:1], batch=1, crop_scale=(0.3, 0.9), flip=True), 4)
    assert one.video.shape == other.video.shape and not one.video.equal(other.video)


def test_flip(tmp_path: Path) -> None:
    ramp = torch.linspace(0, 250, 32).byte().expand(4, 3, 16, 32).contiguous()
    write_video(tmp_path / "ramp.mp4", ramp, fps=4)
    for cache in ("none", "memory"):
        batches = take(
            loader([Example("r", str(tmp_path / "ramp.mp4"), ("t",))], batch=1, flip=True, cache=cache), 40
        )
        rises = [
            bool(batch.video[..., -1].float().mean() > batch.video[..., 0].float().mean())
            for batch in batches
        ]
        assert 8 < sum(rises) < 32


@pytest.mark.parametrize("workers, cache", [(0, "none"), (1, "none"), (0, "memory")])
def test_a_clip_that_names_a_side_is_not_mirrored(tmp_path: Path, workers: int, cache: str) -> None:
    ramp = torch.linspace(0, 250, 32).byte().expand(4, 3, 16, 32).contiguous()
    write_video(tmp_path / "ramp.mp4", ramp, fps=4)
    rows = [
        Example(text, str(tmp_path / "ramp.mp4"), (text,), start_s=i / 8)
        for i, text in enumerate(("moves left", "moves"))
    ]

    def rising(**how: bool) -> list[set[bool]]:
        batches = take(loader(rows, batch=2, flip=True, workers=workers, cache=cache, **how), 12)
        found: list[set[bool]] = [set(), set()]
        for batch in batches:
            for example, video in zip(batch.example.tolist(), batch.video.float(), strict=True):
                found[example].add(bool(video[..., -1].mean() > video[..., 0].mean()))
        return found

    assert rising() == [{True}, {True, False}]
    assert rising(flip_sides=True) == [{True, False}, {True, False}]


@pytest.mark.parametrize("several", [False, True])
def test_a_clip_whose_class_names_a_side_is_not_mirrored(tmp_path: Path, several: bool) -> None:
    write_video(tmp_path / "a.mp4", torch.zeros(4, 3, 16, 16, dtype=torch.uint8), fps=4)
    rows = [Example(str(n), str(tmp_path / "a.mp4"), start_s=n / 8, label=n) for n in range(2)]
    if several:
        rows = [dataclasses.replace(row, label=None, labels=(0,) if row.label else (0, 1)) for row in rows]
    names = ("pushing something", "pushing something from left to right")
    config = DataConfig(num_frames=2, flip=True)
    dataset = ClipDataset(rows, config, image_size=16, encode_text=None, seed=0, class_names=names)
    assert [dataset._may_mirror(n) for n in range(2)] == ([False, True] if several else [True, False])
    dataset.config = dataclasses.replace(config, flip_sides=True)
    assert all(dataset._may_mirror(n) for n in range(2))


def test_a_part_of_a_long_caption(examples: list[Example]) -> None:
    long = "A dog runs. It stops at a tree. It looks up."
    rows = [dataclasses.replace(e, texts=(long,)) for e in examples]
    parts = {
        tuple(encode_text([part])[0].tolist())
        for part in ("A dog runs.", "It stops at a tree.", "It looks up.")
    }

    def shown(**how: object) -> tuple[list[Tensor], TrainLoader]:
        reader = loader(rows, batch=6, caption_words=5, **how)
        return [batch.text_ids for batch in take(reader, 6)], reader

    whole, reader = shown()
    assert all(ids.equal(encode_text([long]).expand_as(ids)) for ids in whole) and reader.shortened == 0
    first, reader = shown(long_captions="first")
    assert all(ids.equal(encode_text(["A dog runs."]).expand_as(ids)) for ids in first)
    assert reader.shortened == 36 and set(reader.dataset.captions()) == {"A dog runs."}
    drawn, reader = shown(long_captions="sentence")
    assert {tuple(row.flatten().tolist()) for ids in drawn for row in ids} == parts
    again, _ = shown(long_captions="sentence", first_step=3)
    assert all(one.equal(other) for one, other in zip(again, drawn[3:], strict=False))
    helped, counted = shown(long_captions="sentence", workers=1)
    assert all(one.equal(other) for one, other in zip(helped, drawn, strict=True))
    assert counted.shortened == reader.shortened == 36
    with pytest.raises(HarvestError, match="take first"):
        reader.dataset.captions()


def test_crops_on_the_device_show_what_crops_of_workers_show(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(256, (1, 3, 3, 6), generator=generator).float()
    picture = torch.nn.functional.interpolate(coarse, size=(96, 192), mode="bicubic").clamp(0, 255).byte()
    write_video(tmp_path / "wide.mp4", picture.expand(4, -1, -1, -1).contiguous(), fps=4, crf=4)
    rows = [Example("wide", str(tmp_path / "wide.mp4"), ("t",))]
    settings = {"batch": 1, "crop_scale": (0.3, 0.9), "flip": True}
    by_workers = take(loader(rows, **settings), 6)
    on_device = take(loader(rows, **settings, crop_on="device", workers=1), 6)
    assert equal(on_device[3:], take(loader(rows, **settings, crop_on="device", first_step=3), 3))
    for one, other in zip(by_workers, on_device, strict=True):
        assert one.video.shape == other.video.shape
        near = (one.video.float() - other.video.float()).abs().mean()
        mirrored = (one.video.float() - other.video.flip(-1).float()).abs().mean()
        assert near < 12 < 20 < mirrored, (near, mirrored)
    with pytest.raises(HarvestError, match="crop_on device"):
        DataConfig(crop_on="device", crop_scale=(0.5, 1.0), rand_augment=2)
    with pytest.raises(HarvestError, match="for random crops"):
        DataConfig(crop_on="device")


# ---------------------------------------------------------------------------------------------------------------
# The same, whoever loads it


@pytest.mark.parametrize("config", [{}, {"crop_scale": (0.4, 1.0), "flip": True}, {"cache": "memory"}])
def test_any_step_can_be_the_first(examples: list[Example], config: dict) -> None:
    unbroken = take(loader(examples, batch=[(0, 4), (3, 6)], **config), 7)
    for first in (1, 3, 5):
        assert equal(
            take(loader(examples, batch=[(0, 4), (3, 6)], first_step=first, **config), 2),
            unbroken[first : first + 2],
        )
    assert not equal(take(loader(examples, batch=4, seed=2, **config), 1), unbroken[:1])


def test_workers_change_nothing(examples: list[Example], folder: Path) -> None:
    rows = [*examples, Example("broken", str(folder / "broken.mp4"), ("t",))]
    alone, helped = loader(rows), loader(rows, workers=2)
    assert equal(take(alone, 5), take(helped, 5))
    assert alone.broken == helped.broken != {}


def test_spawned_workers_change_nothing(examples: list[Example], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harvest.data.workers.start_method", lambda _, workers: "spawn" if workers else None)
    assert equal(take(loader(examples), 2), take(loader(examples, workers=1), 2))


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_ranks_share_the_batch(examples: list[Example], cache: str) -> None:
    whole = take(loader(examples, cache=cache), 3)
    halves = [take(loader(examples, rank=rank, world=2, cache=cache), 3) for rank in range(2)]
    for step, batch in enumerate(whole):
        for field, values in enumerate(batch):
            for rank in range(2):
                assert halves[rank][step][field].equal(values[rank::2])


def test_the_memory_cache_changes_nothing(examples: list[Example], folder: Path) -> None:
    rows = [*examples, Example("broken", str(folder / "broken.mp4"), ("t",))]
    for config in ({"times": "middle"}, {"times": "middle", "flip": True, "captions_per_clip": 2}):
        plain, cached = loader(rows, **config), loader(rows, cache="memory", workers=2, **config)
        assert equal(take(plain, 6), take(cached, 6))
        assert plain.broken.keys() == cached.broken.keys() != set()


def test_cached_random_times_are_drawn_once(examples: list[Example]) -> None:
    batches = take(loader(examples, batch=12, cache="memory"), 2)
    clips = [dict(zip(b.example.tolist(), b.video, strict=True)) for b in batches]
    assert all(clips[0][n].equal(clips[1][n]) for n in clips[0])
    middle = take(loader(examples, batch=12, cache="memory", times="middle"), 1)[0]
    assert not middle.video.equal(batches[0].video)


def test_filling_the_cache_tells_how_far_it_is(examples: list[Example]) -> None:
    told = []
    cached = loader(examples, cache="memory")
    cached.progress = lambda done, of: told.append((done, of))
    take(cached, 1)
    assert told[-1] == (NUM_CLIPS, NUM_CLIPS)


# ---------------------------------------------------------------------------------------------------------------
# Broken videos


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_the_next_sample_takes_the_place_of_a_broken_one(
    examples: list[Example], folder: Path, cache: str
) -> None:
    rows = [
        *examples[:6],
        Example("broken", str(folder / "broken.mp4"), ("t",)),
        Example("gone", "gone.mp4", ("t",)),
    ]
    reader = loader(rows, batch=8, cache=cache, times="middle")
    batches = take(reader, 3)
    assert set(reader.broken) == {"broken", "gone"}
    assert reader.broken["gone"].reason == "no such file"
    assert "Invalid data" in reader.broken["broken"].reason
    assert reader.broken_ratio == 2 / 8
    for epoch, batch in enumerate(batches):
        samples = epoch_order(1, epoch, 8).tolist()
        stand_ins = [next(s for s in samples[place:] + samples if s < 6) for place in range(8)]
        assert batch.example.tolist() == stand_ins


@pytest.mark.parametrize("cache", ["none", "memory"])
@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_broken_videos_stop_the_run(examples: list[Example], cache: str, workers: int) -> None:
    gone = [Example(f"gone{i}", f"gone{i}.mp4", ("t",)) for i in range(40)]
    with pytest.raises(HarvestError, match=r"videos tried cannot be read .*First: gone.*no such file"):
        take(loader([*examples, *gone], cache=cache, workers=workers), 20)
    reader = loader([*examples, *gone], cache=cache, workers=workers, max_broken_ratio=0.9)
    assert len(take(reader, 12)) == 12 and len(reader.broken) > 20


@pytest.fixture
def hostile(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Example]:
    """A file that crashes the decoder and one that keeps it busy for ever."""

    def read(path: str, **options):
        if "crash" in path:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "hang" in path:
            time.sleep(1000)
        return read_clip(path, **options)

    monkeypatch.setattr("harvest.data.dataset.read_clip", read)
    monkeypatch.setattr("harvest.data.read_once.read_clip", read)
    return [Example(name, str(folder / f"{name}.mp4"), ("t",)) for name in ("crash", "hang")]


def test_a_decoder_that_crashes_or_hangs_costs_one_sample(
    examples: list[Example], hostile: list[Example]
) -> None:
    rows = [*examples[:6], *hostile]
    options = {"batch": 8, "workers": 2, "times": "middle", "video_limit_s": 2.0}
    reader = loader(rows, **options)
    batches = take(reader, 4)
    assert reader.broken["crash"].reason == "the decoder crashed (SIGSEGV)"
    assert reader.broken["hang"].reason == "reading took longer than 2 s"
    assert reader.broken_ratio == 2 / 8
    for epoch, batch in enumerate(batches):
        samples = epoch_order(1, epoch, 8).tolist()
        assert batch.example.tolist() == [
            next(s for s in samples[place:] + samples if s < 6) for place in range(8)
        ]
    # What was found broken is not tried again when a run goes on: that would take longer than a test may.
    again = loader(rows, first_step=2, refused=reader.broken, **{**options, "video_limit_s": 900})
    assert equal(take(again, 2), batches[2:])


def test_a_video_is_left_out_from_its_position_on_only(examples: list[Example]) -> None:
    """A run that goes on from before a video failed sees it again where it had seen it."""
    unbroken = take(loader(examples, batch=12), 3)
    first = epoch_order(1, 1, 12).tolist().index(4) + 12
    again = take(loader(examples, batch=12, refused={"e4": Refused("flaky", first)}), 3)
    assert equal(again[:1], unbroken[:1]) and 4 in again[0].example.tolist()
    assert not any(4 in batch.example.tolist() for batch in again[1:])


def test_evaluation_survives_a_crash(examples: list[Example], hostile: list[Example]) -> None:
    rows, refused = [examples[0], hostile[0], examples[1]], []
    batches = list(
        eval_batches(
            rows,
            num_frames=2,
            image_size=SIZE,
            batch_size=4,
            workers=1,
            on_broken=lambda example, reason: refused.append((example.id, reason)),
        )
    )
    assert batches[0][0].tolist() == [0, 2] and refused == [("crash", "the decoder crashed (SIGSEGV)")]


def test_a_mistake_in_a_worker_is_told_as_it_is(
    examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistake(*_: object, **__: object) -> Clip:
        raise RuntimeError("a mistake in the reader")

    monkeypatch.setattr("harvest.data.dataset.read_clip", mistake)
    with pytest.raises(RuntimeError, match="a mistake in the reader") as error:
        next(iter(loader(examples, workers=1)))
    assert not isinstance(error.value, HarvestError) and "memory" not in str(error.value)


@pytest.mark.parametrize("count", [1, 3, 300])
@pytest.mark.parametrize("cache", ["none", "memory"])
def test_nothing_but_broken_videos(count: int, cache: str) -> None:
    gone = [Example(f"gone{i}", f"gone{i}.mp4", ("t",)) for i in range(count)]
    with pytest.raises(HarvestError, match="videos tried cannot be read"):
        take(loader(gone, cache=cache, max_broken_ratio=1.0), 1)


@pytest.mark.parametrize(
    "config",
    [
        {"num_frames": 0},
        {"crop_scale": (0, 1)},
        {"max_broken_ratio": 2},
        {"workers": -1},
        {"video_limit_s": 0},
    ],
)
def test_impossible_settings_are_refused(config: dict) -> None:
    with pytest.raises(HarvestError):
        DataConfig(**config)


# ---------------------------------------------------------------------------------------------------------------
# Evaluation


@pytest.mark.parametrize("workers", [0, 2])
def test_every_clip_once_and_in_order(examples: list[Example], folder: Path, workers: int) -> None:
    rows = [*examples[:4], Example("broken", str(folder / "broken.mp4"), ("t",)), *examples[3:]]
    refused: list[tuple[str, str]] = []
    batches = list(
        eval_batches(
            rows,
            num_frames=3,
            image_size=SIZE,
            batch_size=4,
            workers=workers,
            on_broken=lambda example, reason: refused.append((example.id, reason)),
        )
    )
    numbers = torch.cat([numbers for numbers, _ in batches])
    assert numbers.tolist() == [0, 1, 2, 3, *range(5, 12)]  # 4 is the broken one, "again" is clip 3
    assert [id for id, _ in refused] == ["broken"]
    video = torch.cat([video for _, video in batches])
    first = {int(clip): rows[row].video for row, clip in reversed(list(enumerate(clip_numbers(rows))))}
    for number, clip in zip(numbers.tolist(), video, strict=True):
        assert clip.equal(read_clip(first[number], num_frames=3, image_size=SIZE).frames)


def test_nothing_to_evaluate() -> None:
    assert list(eval_batches([], num_frames=3, image_size=8, batch_size=4, workers=0)) == []
    gone = [Example("gone", "gone.mp4")]
    assert list(eval_batches(gone, num_frames=3, image_size=8, batch_size=4, workers=0)) == []


def test_stretches_of_one_video_are_different_clips() -> None:
    rows = [Example("1", "a"), Example("2", "a", end_s=3), Example("3", "a"), Example("4", "a", start_s=1)]
    assert clip_numbers(rows).tolist() == [0, 1, 0, 2]


# ---------------------------------------------------------------------------------------------------------------
# Repeated augmentation


def test_views_of_a_clip_stand_together_and_differ(examples: list[Example]) -> None:
    of = dict(batch=8, views_per_clip=2, crop_scale=(0.3, 0.6), rand_augment=2, times="middle")
    first, second = take(loader(examples, **of), 2)
    for batch in (first, second):
        assert batch.video.shape[0] == 8
        assert batch.example[0::2].equal(batch.example[1::2])
        assert not batch.video[0::2].equal(batch.video[1::2])
    samples = epoch_order(1, 0, 12)[:8]
    numbers = clip_numbers(examples)[samples]
    assert torch.cat([first.example, second.example])[0::2].equal(numbers)
    assert equal(take(loader(examples, **of), 2), [first, second])


def test_views_share_a_decoding_and_a_rank(examples: list[Example]) -> None:
    """Without anything to draw, two views are the same frames; ranks take whole clips."""
    of = dict(batch=8, views_per_clip=2)
    whole = take(loader(examples, **of), 2)
    for batch in whole:
        assert batch.video[0::2].equal(batch.video[1::2])
    parts = [take(loader(examples, rank=rank, world=2, **of), 2) for rank in range(2)]
    for step, batch in enumerate(whole):
        both = torch.stack([part[step].example[0::2] for part in parts], dim=1).flatten()
        assert both.equal(batch.example[0::2])
    cached = take(loader(examples, cache="memory", **of), 2)
    assert equal([b._replace(video=b.label) for b in cached], [b._replace(video=b.label) for b in whole])
    with pytest.raises(HarvestError, match="2 views of a clip together: take a multiple of 4"):
        loader(examples, batch=6, world=2, views_per_clip=2)


def test_options_come_whole_and_in_their_order(tmp_path: Path, examples: list[Example]) -> None:
    asked = [
        dataclasses.replace(e, texts=(f"{e.id} a", f"{e.id} b", f"{e.id} c"), label=n % 3)
        for n, e in enumerate(examples)
    ]
    (batch,) = take(loader(asked, batch=12, captions_per_clip=0), 1)
    samples = epoch_order(1, 0, 12)
    assert batch.caption.tolist() == [[3 * s, 3 * s + 1, 3 * s + 2] for s in samples.tolist()]
    assert batch.label.tolist() == [s % 3 for s in samples.tolist()] and batch.text_ids.shape == (12, 3, 4)
