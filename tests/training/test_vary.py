"""Budgets and frames that change from step to step, as functions of (seed, step)."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from harvest.config import RunConfig
from harvest.data.manifest import read_manifest
from harvest.evaluation.embed import embed_texts
from harvest.interfaces import Batch, HarvestError, Losses
from harvest.model.importing.pretrained import load_pretrained
from harvest.objectives.post_pretraining import PostPretraining
from harvest.objectives.text_tuning import TextTuningConfig
from harvest.recipes.mini import mini_harvest, mini_umt_stage1
from harvest.training.loop import train
from harvest.training.vary import VaryConfig, show_frames, show_size, value_at

TinyRun = Callable[..., RunConfig]


def test_drawn_values_are_a_function_of_seed_and_step() -> None:
    drawn = [value_at((8, 16, 32), step, order="drawn", steps=600, seed=3) for step in range(600)]
    assert drawn == [value_at((8, 16, 32), step, order="drawn", steps=600, seed=3) for step in range(600)]
    assert drawn != [value_at((8, 16, 32), step, order="drawn", steps=600, seed=4) for step in range(600)]
    assert all(150 < count < 250 for count in Counter(drawn).values()) and len(Counter(drawn)) == 3
    assert value_at((), 5, order="drawn", steps=10, seed=0) is None


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_growing_values_never_fall_and_share_the_stage(steps: int) -> None:
    values = [value_at((4, 8, 16, 64), step, order="growing", steps=steps, seed=0) for step in range(steps)]
    assert values == sorted(values, key=lambda value: value or 0) and values[0] == 4
    if steps == 100:
        assert Counter(values) == {4: 25, 8: 25, 16: 25, 64: 25}


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 8])
def test_frames_are_evenly_spaced(frames: int) -> None:
    empty = torch.empty(0)
    batch = Batch(torch.arange(8).view(1, 8, 1, 1, 1), empty, empty, empty, empty)
    seen = show_frames(batch, frames).video.flatten()
    assert len(seen) == frames and (seen.diff() >= 1).all()
    assert frames == 1 or seen.diff().max() - seen.diff().min() <= 1
    assert show_frames(batch, None) is batch
    picture = batch._replace(video=batch.video[:, :1])
    assert show_frames(picture, frames) is picture


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"budgets": (0, 4)}, "vary.budgets: expected at least 1"),
        ({"num_frames": (-1,)}, "vary.num_frames: expected at least 1"),
        ({"budgets": (8, 4), "order": "growing"}, "expected rising numbers"),
        ({"image_sizes": (0,)}, "vary.image_sizes: expected at least 1"),
    ],
)
def test_wrong_settings(wrong: dict, message: str) -> None:
    with pytest.raises(HarvestError, match=message):
        VaryConfig(**wrong)


@pytest.mark.parametrize("num_frames", [3, 16])
def test_frames_that_no_clip_has(num_frames: int) -> None:
    with pytest.raises(HarvestError, match=r"vary\.num_frames: expected multiples of 2"):
        dataclasses.replace(mini_harvest(), vary=VaryConfig(num_frames=(num_frames,)))


def test_a_run_at_several_budgets_and_frames(
    runs: Path, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int | None, float]] = []
    inner = PostPretraining.forward

    def forward(self: PostPretraining, batch: Batch, step: int) -> Losses:
        seen.append((batch.video.shape[1], self.selection.budget, self.selection.drop_ratio))
        return inner(self, batch, step)

    monkeypatch.setattr(PostPretraining, "forward", forward)
    vary = {"budgets": (5, 9, 30), "num_frames": (4, 8), "order": "growing"}
    config = tiny_run(loop={"steps": 6}, tuning={"steps": 1, "drop_ratio": 0.25}, vary=vary)
    train(config, runs / "varied")
    del seen[0]  # the small forward pass that finds what the losses reach
    assert [(frames, budget) for frames, budget, _ in seen[:6]] == [
        (4, 5), (4, 5), (4, 9), (8, 9), (8, 30), (8, 30),
    ]  # fmt: skip
    assert seen[6] == (8, None, 0.25)  # the last stage is tuning's


def test_a_run_at_several_sizes(runs: Path, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    inner = PostPretraining.forward

    def forward(self: PostPretraining, batch: Batch, step: int) -> Losses:
        seen.append(batch.video.shape[-1])
        return inner(self, batch, step)

    monkeypatch.setattr(PostPretraining, "forward", forward)
    vary = {"image_sizes": (32, 48, 64), "order": "growing"}
    config = tiny_run(loop={"steps": 6}, tuning={"steps": 1}, vary=vary)
    train(config, runs / "sizes")
    assert seen[1:] == [32, 32, 48, 48, 64, 64, 64]  # after the small pass that finds what the losses reach
    for sizes, message in (((60,), "multiples of 8"), ((128,), "up to its 64 pixels")):
        with pytest.raises(HarvestError, match=message):
            train(tiny_run(vary={"image_sizes": sizes}), runs / f"sizes-{sizes[0]}")
    with pytest.raises(HarvestError, match="beside a teacher"):
        dataclasses.replace(mini_umt_stage1(), vary=VaryConfig(image_sizes=(32,)))


def test_draws_of_budgets_frames_and_sizes_are_apart() -> None:
    vary = VaryConfig(budgets=(5, 9), num_frames=(4, 8), image_sizes=(32, 64))
    config = dataclasses.replace(mini_harvest(), vary=vary)
    drawn = {
        (config.selection_at(step).budget, config.num_frames_at(step), config.image_size_at(step))
        for step in range(200)
    }
    assert len(drawn) == 8
    last = config.loop.steps
    assert (config.num_frames_at(last), config.image_size_at(last)) == (None, None)


def test_a_picture_of_another_size() -> None:
    empty = torch.empty(0)
    ramp = torch.arange(64).repeat_interleave(2).expand(1, 2, 3, 128, -1).to(torch.uint8)
    half = show_size(Batch(ramp, empty, empty, empty, empty), 64).video
    assert half.dtype == torch.uint8 and half.shape == (1, 2, 3, 64, 64)
    assert torch.equal(half[0, 0, 0, 0, 2:-2], torch.arange(2, 62).to(torch.uint8))


def test_a_budget_that_a_clip_has_not_is_refused_before_the_first_step(runs: Path, tiny_run: TinyRun) -> None:
    with pytest.raises(
        HarvestError, match="a budget of 129 tubelets is more than a clip has: 2 times 64 places"
    ):
        train(tiny_run(vary={"budgets": (5, 129), "num_frames": (4, 8)}), runs / "too-many")


HIDES_NOTHING = {"steps": 2, "drop_ratio": 0.0}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("videomae-b16", {"vary": {"budgets": (8, 512)}}, "pixel reconstruction needs hidden tubelets"),
        ("mini-umt-stage1", {"tuning": HIDES_NOTHING}, r"\d+ tubelets are kept and \d+ stored"),
        (
            "mini-umt-stage1",
            {"tuning": {"steps": 2, "drop_ratio": 0.8, "selector": "random"}},
            "selector random may want any tubelet",
        ),
        ("mini-harvest", {"tuning": {"steps": 2, "drop_ratio": 0.6, "selector": "merge"}}, "selector merge"),
        (
            "mini-image",
            {"tuning": {"steps": 2, "drop_ratio": 0.6, "selector": "attention"}},
            "where it looks",
        ),
    ],
)
def test_a_stage_that_cannot_train_is_refused_before_the_first_step(
    name: str, changes: dict, message: str, tmp_path: Path, runs: Path, tiny_run: TinyRun
) -> None:
    config = tiny_run(name, **changes)
    if name == "mini-umt-stage1":
        fixed = dataclasses.replace(config.data, times="middle", crop_scale=(1.0, 1.0))
        cached = dataclasses.replace(config.objective, teacher_cache=str(tmp_path / "cache"))
        config = dataclasses.replace(config, data=fixed, objective=cached)
    run = runs / tmp_path.name
    with pytest.raises(HarvestError, match=message):
        train(config, run)
    assert not (run / "metrics.jsonl").exists() and not (tmp_path / "cache").exists()


def test_a_last_stage_that_hides_nothing_has_nothing_to_rebuild(tiny_run: TinyRun) -> None:
    with pytest.raises(HarvestError, match=r"tuning\.drop_ratio"):
        tiny_run("videomae-b16", tuning=HIDES_NOTHING)


def test_a_run_with_nested_sizes_turns_the_shared_space(runs: Path, tiny_run: TinyRun) -> None:
    changes = {"dims": (16, 64), "text_tuning": TextTuningConfig()}
    config = tiny_run(objective=changes, loop={"steps": 2}, tuning={"steps": 0}, blend=0.5)
    folder = train(config, runs / "nested")
    plain, tokenizer, _ = load_pretrained(config.start.model)
    nested, _, _ = load_pretrained(folder)
    captions = [e.texts[0] for e in read_manifest(runs / "mini-world-96-7" / "train.jsonl")]
    before, after = (embed_texts(m, tokenizer, captions) for m in (plain, nested))
    torch.testing.assert_close(after @ after.T, before @ before.T, atol=1e-5, rtol=0)  # the same cosines
    assert after[:, :16].var(dim=0).sum() > 1.5 * before[:, :16].var(dim=0).sum()  # in fewer entries
    metrics = json.loads((runs / "nested" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"vtc", "vtc_16", "vtc_64"} <= metrics.keys()
