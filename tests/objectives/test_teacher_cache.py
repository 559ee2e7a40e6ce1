"""The teacher's cache: the same step with it and without it, what is drawn, and what does not belong together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small import small_batch
from test_masked_alignment import objective_of
from torch import Tensor

from harvest.config import LoopConfig, RunConfig
from harvest.data import stored_rows
from harvest.data.dataset import ClipDataset, DataConfig
from harvest.data.stored_rows import StoredRows
from harvest.interfaces import Batch, Example, HarvestError
from harvest.objectives import stores
from harvest.objectives.contract import Ready
from harvest.objectives.masked_alignment import MaskedAlignment, MaskedAlignmentConfig
from harvest.objectives.teacher_cache import prepare
from harvest.parallel import World

CLIPS = 6


def clips() -> Batch:
    return small_batch(CLIPS)._replace(example=torch.arange(CLIPS))


def cached(
    folder: Path, objective: MaskedAlignment, *, share: float = 1.0, stored: str = "fp16", seed: int = 0
) -> Callable[[Tensor], Tensor]:
    """The objective with its cache; gives the rows of clips."""
    settings = {"teacher_cache": str(folder), "teacher_cache_ratio": share, "teacher_cache_type": stored}
    objective.config = dataclasses.replace(objective.config, **settings)
    data = DataConfig(num_frames=4, times="middle")
    run = RunConfig("x", objective.config, data=data, loop=LoopConfig(precision="fp32", seed=seed))
    rows = [Example(str(n), f"{n}.mp4", label=0) for n in range(CLIPS)]
    dataset = ClipDataset(rows, data, image_size=16, encode_text=None, seed=seed)

    def read(rows: Sequence[Example]) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(rows), 2):
            numbers = torch.arange(start, min(start + 2, len(rows)))
            yield numbers, clips().video[[int(rows[n].id) for n in numbers]]

    prepare(objective, Ready(run, dataset, None, World(), read, folder))
    assert dataset.stored is not None and dataset.stored[0] == "example"
    return dataset.stored[1]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (stored_rows, stores):
        monkeypatch.setattr(module, "rows_a_block", lambda num_rows, size: 4)


def read(rows: Callable[[Tensor], Tensor], numbers: list[int]) -> dict[str, Tensor]:
    assert isinstance(rows, StoredRows)
    return rows.read(torch.tensor(numbers))


def drawn(
    rows: Callable[[Tensor], Tensor], objective: MaskedAlignment, step: int
) -> tuple[Tensor, list[Tensor]]:
    batch = clips()._replace(stored=rows(torch.arange(CLIPS)))
    return objective.teaching.draw(
        batch,
        objective.model.grid(batch.video),
        objective.selection,
        generator=torch.Generator().manual_seed(step),
    )  # type: ignore[return-value]


@pytest.mark.parametrize("keep", ["attention", "tube", "random"])
@pytest.mark.parametrize(("stored", "off"), [("fp16", 1e-3), ("fp8", 2e-2)])
def test_all_stored_gives_the_step_without_a_cache(
    tmp_path: Path, keep: str, stored: str, off: float
) -> None:
    objective = objective_of(selector=keep)
    order = torch.tensor([5, 0, 3, 2])
    batch = clips().rows(order)
    plain = [objective(batch, step).total.item() for step in range(3)]
    batch = batch._replace(stored=cached(tmp_path, objective, stored=stored)(batch.example))

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the teacher looked")

    objective.teaching.look = never  # type: ignore[method-assign]
    found = [objective(batch, step).total.item() for step in range(3)]
    assert found == pytest.approx(plain, abs=off)
    assert len(set(found)) == 3  # each step draws anew


def test_what_is_stored(tmp_path: Path) -> None:
    objective = objective_of()
    rows = cached(tmp_path, objective, share=0.5, stored="fp8")
    places, attention, layers = read(rows, [4, 1]).values()
    places, attention, layers = places.long(), attention.float(), layers.float()
    assert places.shape == (2, 4 * 8) and layers.shape == (2, 2, 32, 12)
    video = clips().video[[4, 1]]
    grid = objective.model.grid(video)
    every, looked = objective.teaching.look(video, grid, attention=True)
    torch.testing.assert_close(attention, looked.gather(1, places), atol=1e-3, rtol=1e-2)
    for k, target in enumerate(objective.teaching.targets(every, places)):
        assert F.cosine_similarity(layers[:, k], target, dim=-1).min() > 0.99
    values = 2 * 32 * 12  # layers, tubelets, width: one byte each
    assert rows(torch.tensor([4])).shape == (1, values + 32 * (4 + 2))


def test_draws_come_from_what_is_stored(tmp_path: Path) -> None:
    """A fifth of each frame, in proportion to attention, among the half that is stored; the targets are theirs."""
    objective = objective_of()
    rows, batch = cached(tmp_path, objective, share=0.5), clips()
    places = set(read(rows, [0])["places"][0].tolist())
    grid = objective.model.grid(batch.video)
    seen = set()
    for step in range(20):
        keep, targets = drawn(rows, objective, step)
        assert keep.shape == (CLIPS, 16) and (keep.sort(dim=1).values == keep).all()
        assert torch.equal(keep // 16, torch.arange(4).repeat_interleave(4).expand(CLIPS, -1))
        assert set(keep[0].tolist()) <= places
        seen |= set(keep[0].tolist())
        if step == 0:
            layers, _ = objective.teaching.look(batch.video, grid, attention=True)
            for own, wanted in zip(targets, objective.teaching.targets(layers, keep), strict=True):
                assert F.cosine_similarity(own, wanted, dim=-1).min() > 0.999
    assert len(seen) > 24
    fixed = cached(tmp_path / "fixed", objective, share=0.25)
    assert torch.equal(
        *(drawn(fixed, objective, step)[0] for step in range(2))
    )  # what is kept is all that is stored


def test_a_stopped_filling_goes_on_and_gives_the_same(tmp_path: Path) -> None:
    objective = objective_of()
    cached(tmp_path / "whole", objective, share=0.5)
    cached(tmp_path / "stopped", objective, share=0.5)
    [whole], [stopped] = ((tmp_path / name).iterdir() for name in ("whole", "stopped"))
    assert whole.name == stopped.name
    (stopped / "cache.json").rename(stopped / "filling.json")
    (stopped / "block-00001.bin").unlink()
    cached(tmp_path / "stopped", objective, share=0.5)
    for name in ("block-00000.bin", "block-00001.bin", "cache.json"):
        assert (whole / name).read_bytes() == (stopped / name).read_bytes()
    assert not (stopped / "filling.json").exists()


def test_another_teacher_or_other_settings_have_a_store_of_their_own(tmp_path: Path) -> None:
    objective = objective_of()
    for changes in ({}, {"stored": "fp8"}, {"share": 0.5}, {"seed": 1}, {}):
        cached(tmp_path, objective, **changes)
    assert len(list(tmp_path.iterdir())) == 4
    with torch.no_grad():
        next(objective.teaching.teacher.parameters()).add_(1.0)
    cached(tmp_path, objective)
    assert len(list(tmp_path.iterdir())) == 5


def test_what_cannot_be_drawn_says_so(tmp_path: Path) -> None:
    objective = objective_of()
    rows = cached(tmp_path, objective, share=0.25)
    objective.selection = dataclasses.replace(objective.selection, drop_ratio=0.5)
    with pytest.raises(HarvestError, match="32 tubelets are kept and 16 stored"):
        drawn(rows, objective, 0)
    objective.selection = dataclasses.replace(objective.selection, drop_ratio=0.9, selector="random")
    with pytest.raises(HarvestError, match="may want any tubelet"):
        drawn(rows, objective, 0)
    with pytest.raises(HarvestError, match="teacher_cache_ratio"):
        MaskedAlignmentConfig(teacher_cache_ratio=0.0)
    with pytest.raises(HarvestError, match=r"--data\.times middle"):
        RunConfig("x", MaskedAlignmentConfig(teacher_cache="folder"), data=DataConfig(times="random"))
