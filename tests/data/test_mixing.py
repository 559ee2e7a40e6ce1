"""Clips and pictures in turns: which a step shows, and that a run goes on at any step with the batches it would have had."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from harvest.data.columns import columns_of_rows
from harvest.data.dataset import ClipDataset, DataConfig
from harvest.data.mixing import MixedLoader
from harvest.data.video import VideoError
from harvest.interfaces import Clip, Example, HarvestError


def encode(texts: list[str]) -> torch.Tensor:
    return torch.tensor([[int(text)] for text in texts])


@pytest.fixture(autouse=True)
def no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips of black frames, without a file."""

    def read(video: str, *, num_frames: int, image_size: int, **_: object) -> Clip:
        frames = torch.zeros(num_frames, 3, image_size, image_size, dtype=torch.uint8)
        return Clip(frames.numpy(), np.zeros(num_frames))

    monkeypatch.setattr("harvest.data.dataset.read_clip", read)


def dataset(rows: int, num_frames: int, *, first: int = 0) -> ClipDataset:
    examples = [
        Example(id=f"{num_frames}-{i}", video=f"{i}.mp4", texts=(str(first + i),)) for i in range(rows)
    ]
    config = DataConfig(num_frames=num_frames, workers=0)
    return ClipDataset(examples, config, image_size=2, encode_text=encode, seed=3)


def mixed(first_step: int = 0, **settings: object) -> MixedLoader:
    batches = settings.pop("global_batch", 4)
    return MixedLoader(dataset(20, 4), dataset(10, 1, first=100), batches, first_step=first_step, **settings)


def take(batches: MixedLoader, count: int) -> list:
    return list(itertools.islice(iter(batches), count))


def test_a_step_shows_one_kind_in_proportion() -> None:
    frames = [batch.video.shape[1] for batch in take(mixed(), 30)]
    assert frames.count(1) == 10 and frames.count(4) == 20
    places = [step for step, count in enumerate(frames) if count == 1]
    assert {b - a for a, b in itertools.pairwise(places)} == {3}  # spread evenly
    assert [batch.video.shape[1] for batch in take(mixed(share=0.5), 10)].count(1) == 5


def test_every_row_of_both_kinds_comes_once_an_epoch() -> None:
    seen = [int(i) for batch in take(mixed(global_batch=2), 15) for i in batch.text_ids.flatten()]
    assert sorted(seen) == [*range(20), *range(100, 110)]


def test_it_goes_on_at_any_step() -> None:
    whole = take(mixed(), 24)
    for first in (1, 7, 13):
        for again, batch in zip(take(mixed(first), 24 - first), whole[first:], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(again, batch, strict=True))


def test_stages_of_other_sizes_and_ranks() -> None:
    stages = mixed(global_batch=[(0, 4), (6, 2)])
    sizes = [len(batch.video) for batch in take(stages, 9)]
    assert sizes == [4] * 6 + [2] * 3 == [stages.batch_at(step) for step in range(9)]
    ranks = [take(mixed(rank=rank, world=2), 6) for rank in range(2)]
    for alone, *parts in zip(take(mixed(), 6), *ranks, strict=True):
        together = torch.stack([part.text_ids for part in parts], dim=1).flatten(0, 1)
        assert torch.equal(alone.text_ids, together)
        assert len({part.video.shape for part in parts}) == 1  # all ranks show one kind


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_that_is_none(share: float) -> None:
    with pytest.raises(HarvestError, match="image_ratio"):
        mixed(share=share)


def test_a_broken_video_leaves_the_picture_of_that_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids are unique within a manifest; a run that goes on leaves out what it left out, and no more."""

    def read(video: str, *, num_frames: int, image_size: int, **_: object) -> Clip:
        if (video, num_frames) == ("2.mp4", 4):
            raise VideoError(video, "broken")
        frames = torch.zeros(num_frames, 3, image_size, image_size, dtype=torch.uint8)
        return Clip(frames.numpy(), np.zeros(num_frames))

    monkeypatch.setattr("harvest.data.dataset.read_clip", read)

    def both(**settings: object) -> MixedLoader:
        videos, pictures = dataset(20, 4), dataset(10, 1, first=100)
        for rows in (videos, pictures):
            rows.examples = columns_of_rows(dataclasses.replace(e, id=e.video) for e in rows.examples)
        return MixedLoader(videos, pictures, 4, **settings)

    whole = both()
    batches = take(whole, 30)
    assert set(whole.broken) == {"video 2.mp4"}
    went_on = both(first_step=12, refused=whole.broken)
    for one, other in zip(batches[12:], take(went_on, 18), strict=True):
        assert torch.equal(one.text_ids, other.text_ids)
