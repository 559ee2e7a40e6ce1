"""The teacher's cache: the same step with it and without it, what is drawn, and what does not belong together."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small import small_batch
from test_masked_alignment import objective_of

from harvest.config import RunConfig
from harvest.data.dataset import DataConfig
from harvest.files import begin_filling, finish_filling
from harvest.interfaces import Batch, HarvestError
from harvest.objectives.masked_alignment import MaskedAlignment, MaskedAlignmentConfig
from harvest.objectives.teacher_cache import WHAT, TeacherCache, describe, fill

CLIPS = 6


def clips() -> Batch:
    return small_batch(CLIPS)._replace(example=torch.arange(CLIPS))


def cached(
    folder: Path, objective: MaskedAlignment, *, share: float = 1.0, stored: str = "fp16", seed: int = 0
) -> tuple[TeacherCache, dict]:
    """Two shards of four and two clips."""
    video = clips().video
    grid = objective.model.grid(video)

    def batches(first: int, last: int):
        for start in range(first, last, 2):
            yield torch.arange(start, start + 2), video[start : start + 2]

    shards = [(0, partial(batches, 0, 4)), (1, partial(batches, 4, CLIPS))]
    settings = {"share": share, "stored": stored, "seed": seed}
    numbers = [str(i) for i in range(CLIPS)]
    made_of = describe(objective.teaching, grid, fit="crop", clips=numbers, **settings)
    begin_filling(folder, made_of, WHAT)
    fill(folder, objective.teaching, shards, grid, device=torch.device("cpu"), **settings)
    finish_filling(folder, made_of)
    return TeacherCache(folder, made_of=made_of), made_of


@pytest.mark.parametrize("keep", ["attention", "tube", "random"])
@pytest.mark.parametrize(("stored", "off"), [("fp16", 1e-3), ("fp8", 2e-2)])
def test_all_stored_gives_the_step_without_a_cache(
    tmp_path: Path, keep: str, stored: str, off: float
) -> None:
    objective = objective_of(selector=keep)
    order = torch.tensor([5, 0, 3, 2])
    batch = clips().rows(order)
    plain = [objective(batch, step).total.item() for step in range(3)]
    objective.teaching.cache, _ = cached(tmp_path, objective, stored=stored)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the teacher looked")

    objective.teaching.look = never  # type: ignore[method-assign]
    found = [objective(batch, step).total.item() for step in range(3)]
    assert found == pytest.approx(plain, abs=off)
    assert len(set(found)) == 3  # each step draws anew


def test_what_is_stored(tmp_path: Path) -> None:
    objective = objective_of()
    cache, _ = cached(tmp_path, objective, share=0.5, stored="fp8")
    places, attention, layers = cache.read([4, 1])
    assert places.shape == (2, 4 * 8) and layers.shape == (2, 2, 32, 12)
    video = clips().video[[4, 1]]
    grid = objective.model.grid(video)
    every, looked = objective.teaching.look(video, grid, attention=True)
    torch.testing.assert_close(attention, looked.gather(1, places), atol=1e-3, rtol=1e-2)
    for k, target in enumerate(objective.teaching.targets(every, places)):
        assert F.cosine_similarity(layers[:, k], target, dim=-1).min() > 0.99
    sizes = [path.stat().st_size for path in sorted(tmp_path.glob("shard-*"))]
    values = 4 * 2 * 32 * 12  # clips, layers, tubelets, width: one byte each
    assert values < sizes[0] < values + 4 * 32 * 8 + 1000


def test_draws_come_from_what_is_stored(tmp_path: Path) -> None:
    """A fifth of each frame, in proportion to attention, among the half that is stored; the targets are theirs."""
    objective = objective_of()
    cache, _ = cached(tmp_path, objective, share=0.5)
    batch = clips()
    grid = objective.model.grid(batch.video)
    seen = set()
    for step in range(20):
        generator = torch.Generator().manual_seed(step)
        keep, targets = cache.draw(batch.example, batch.video, grid, objective.selection, generator=generator)
        assert keep.shape == (CLIPS, 16) and (keep.sort(dim=1).values == keep).all()
        assert torch.equal(keep // 16, torch.arange(4).repeat_interleave(4).expand(CLIPS, -1))
        places = cache.read([0])[0][0].tolist()
        assert set(keep[0].tolist()) <= set(places)
        seen |= set(keep[0].tolist())
        if step == 0:
            layers, _ = objective.teaching.look(batch.video, grid, attention=True)
            for own, wanted in zip(targets, objective.teaching.targets(layers, keep), strict=True):
                assert F.cosine_similarity(own, wanted, dim=-1).min() > 0.999
    assert len(seen) > 24
    fixed, _ = cached(tmp_path / "fixed", objective, share=0.25)
    keeps = [
        fixed.draw(
            batch.example, batch.video, grid, objective.selection, generator=torch.Generator().manual_seed(s)
        )[0]
        for s in range(2)
    ]
    assert torch.equal(*keeps)  # what is kept is all that is stored


def stop(folder: Path) -> None:
    """Make a finished cache one whose filling was stopped before the end."""
    (folder / "cache.json").rename(folder / "filling.json")


def test_a_stopped_filling_goes_on_and_gives_the_same(tmp_path: Path) -> None:
    objective = objective_of()
    cached(tmp_path / "whole", objective, share=0.5)
    cached(tmp_path / "stopped", objective, share=0.5)
    stop(tmp_path / "stopped")
    (tmp_path / "stopped" / "shard-00001.safetensors").unlink()
    with pytest.raises(HarvestError, match="no finished teacher cache"):
        TeacherCache(tmp_path / "stopped", made_of={})
    cached(tmp_path / "stopped", objective, share=0.5)
    for name in ("shard-00000.safetensors", "shard-00001.safetensors", "cache.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()
    assert not (tmp_path / "stopped" / "filling.json").exists()


def test_a_stopped_filling_of_something_else_is_not_taken_over(tmp_path: Path) -> None:
    objective = objective_of()
    _, made_of = cached(tmp_path, objective, share=0.5)
    stop(tmp_path)
    for change in ({"crop": "squash"}, {"seed": 1}, {"teacher": "another"}):
        with pytest.raises(HarvestError, match=f"{next(iter(change))}: .*\n.*remove this one"):
            begin_filling(tmp_path, made_of | change, WHAT)
    begin_filling(tmp_path, made_of, WHAT)
    (tmp_path / "filling.json").unlink()
    with pytest.raises(HarvestError, match=r"no filling\.json"):
        begin_filling(tmp_path, made_of, WHAT)


def test_another_teacher_or_other_clips_are_another_cache(tmp_path: Path) -> None:
    objective = objective_of()
    _, made_of = cached(tmp_path, objective)
    for change in ({"clips": "other"}, {"stored": "fp8"}, {"layers": [1]}, {"crop": "squash"}):
        with pytest.raises(HarvestError, match=next(iter(change))):
            TeacherCache(tmp_path, made_of=made_of | change)
    with torch.no_grad():
        next(objective.teaching.teacher.parameters()).add_(1.0)
    grid = objective.model.grid(clips().video)
    numbers = [str(i) for i in range(CLIPS)]
    other = describe(objective.teaching, grid, share=1.0, stored="fp16", fit="crop", clips=numbers, seed=0)
    with pytest.raises(HarvestError, match="teacher: "):
        TeacherCache(tmp_path, made_of=other)
    (tmp_path / "shard-00000.safetensors").write_bytes(b"broken")
    with pytest.raises(HarvestError, match="shard-00000"):
        TeacherCache(tmp_path, made_of=made_of)


def test_what_cannot_be_drawn_says_so(tmp_path: Path) -> None:
    objective, batch = objective_of(), clips()
    cache, _ = cached(tmp_path, objective, share=0.25)
    grid, generator = objective.model.grid(batch.video), torch.Generator()
    half = dataclasses.replace(objective.selection, drop_ratio=0.5)
    with pytest.raises(HarvestError, match="32 tubelets are kept and 16 stored"):
        cache.draw(batch.example, batch.video, grid, half, generator=generator)
    few = dataclasses.replace(objective.selection, drop_ratio=0.9, selector="random")
    with pytest.raises(HarvestError, match="may want any tubelet"):
        cache.draw(batch.example, batch.video, grid, few, generator=generator)
    with pytest.raises(HarvestError, match="lacks clip 77"):
        cache.read([77])
    with pytest.raises(HarvestError, match="teacher_cache_ratio"):
        MaskedAlignmentConfig(teacher_cache_ratio=0.0)
    with pytest.raises(HarvestError, match=r"--data\.times middle"):
        RunConfig("x", MaskedAlignmentConfig(teacher_cache="folder"), data=DataConfig(times="random"))
