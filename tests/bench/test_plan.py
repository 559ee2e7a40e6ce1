"""The arithmetic of a plan, with numbers worked by hand, and its constants, measured."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

import harvest.bench.plan as planning
from harvest.bench import host
from harvest.bench.plan import (
    BYTES_A_TOKEN,
    BYTES_A_WORD,
    OVERHEAD_GB,
    Memory,
    Probe,
    memory_of,
    plan,
    probe,
    sizes_of,
)
from harvest.bench.step import make_objective, model_config, num_seen, step_gflop
from harvest.bench.work import WORDS, gflop_of
from harvest.cli import main
from harvest.config import RunConfig
from harvest.interfaces import HarvestError
from harvest.model.video_text import ModelConfig, VideoTextModel
from harvest.objectives.reach import random_batch
from harvest.recipes import RECIPES
from harvest.tokens import Selection

FOUND = Probe(
    device="a desk",
    matmul_gflop_per_s=1000.0,
    copy_gb_per_s=20.0,
    decode_clips_per_s=4.0,
    decoded="a clip",
    step_gflop_per_s=None,
    memory_gb=None,
)


def changed(config: RunConfig, part: str, **settings: object) -> RunConfig:
    return dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **settings)})


def test_sizes_come_from_the_start_or_from_the_recipe_that_makes_it() -> None:
    assert sizes_of(RECIPES["harvest-b16"]()) == model_config("b16", frames=8)
    assert sizes_of(RECIPES["harvest-l14"]()) == model_config("l14", frames=8)
    later = sizes_of(RECIPES["ft-msrvtt-b16"]())  # from a run of harvest-b16
    assert (later.video.width, later.video.num_frames, later.fusion is not None) == (768, 8, True)
    student = sizes_of(RECIPES["umt-stage1-b16"]())
    assert student.text is None and student.video.num_times * student.video.num_patches == 1568
    with pytest.raises(HarvestError, match="does not know the sizes of 'elsewhere'"):
        sizes_of(changed(RECIPES["harvest-b16"](), "start", model="elsewhere"))


@pytest.mark.parametrize(
    ("recipe", "kept", "expected"),
    # costs.md, whole training step: UMT's first stage with its teacher; ViT-B/16 alone, fine-tuned on all tubelets
    [("umt-stage1-b16", 320, 465), ("umt-stage1-l16", 320, 1611), ("ft-k400-b16", 1568, 1077)],
)
def test_work_by_formula(recipe: str, kept: int, expected: float) -> None:
    config = RECIPES[recipe]()
    assert gflop_of(config, sizes_of(config), kept) == pytest.approx(expected, rel=0.04)


def test_post_pretraining_costs_what_bench_step_says() -> None:
    config = RECIPES["harvest-b16"]()
    sizes = sizes_of(config)
    plain = gflop_of(config, sizes, 157)
    assert plain == pytest.approx(step_gflop(sizes, kept=157, words=WORDS))
    cached = gflop_of(changed(config, "objective", cache_texts=True), sizes, 157)
    assert cached == pytest.approx(step_gflop(sizes, kept=157, words=WORDS, cache_texts=True))
    chunked = gflop_of(changed(config, "objective", chunk_clips=16), sizes, 157)
    assert chunked == pytest.approx(plain * 4 / 3)
    assert plain < gflop_of(changed(config, "loop", checkpointing=True), sizes, 157) < plain * 4 / 3


def test_memory_by_hand() -> None:
    """All weights train on 1 device: 4 for each, 4 its gradient, 8 its moments, 2 its copy in bf16."""
    config = RECIPES["umt-stage1-b16"]()
    still = dataclasses.replace(config.data, times="middle", crop_scale=(1.0, 1.0), flip=False)
    cached = dataclasses.replace(config.objective, teacher_cache="cache")
    config = dataclasses.replace(config, data=still, objective=cached)
    sizes = sizes_of(config)
    with torch.device("meta"):
        weights = sum(p.numel() for p in VideoTextModel(sizes).parameters())
    alone = memory_of(config, sizes, 320, gpus=1)
    assert alone.fixed_gb == pytest.approx(18 * weights / 1e9 + OVERHEAD_GB)
    ddp, fsdp = (
        memory_of(changed(config, "loop", parallel=how), sizes, 320, gpus=8).fixed_gb
        for how in ("ddp", "fsdp")
    )
    assert ddp == pytest.approx(alone.fixed_gb + 4 * weights / 1e9)
    assert fsdp == pytest.approx((16 / 8 + 2) * weights / 1e9 + OVERHEAD_GB)
    blocks = BYTES_A_TOKEN * 320 * 768 * 12
    pixels = 8 * 3 * 224**2 + 6 * 320 * 768
    assert alone.clip_gb == pytest.approx((blocks + pixels) / 1e9)
    half = changed(config, "loop", precision="fp16")
    assert memory_of(half, sizes, 320, gpus=1) == alone  # as wide as bf16
    light = memory_of(changed(config, "loop", checkpointing=True), sizes, 320, gpus=1)
    assert light.clip_gb == pytest.approx((blocks / 12 + 4 * 320 * 768 * 12 + pixels) / 1e9)


def test_the_largest_batch() -> None:
    assert Memory(2.0, 0.5).at(10) == 7.0
    assert Memory(2.0, 0.5).largest_batch(10.2) == 16
    assert Memory(2.0, 0.5).largest_batch(1.0) == 0
    assert Memory(2.0, 0.5, most_clips=4).at(100) == 4.0
    assert Memory(2.0, 0.5, most_clips=4).largest_batch(10.0) is None
    assert Memory(2.0, 0.5, most_clips=40).largest_batch(10.0) == 16


def test_a_plan_by_hand() -> None:
    config = RECIPES["harvest-b16"]()
    made = plan(config, FOUND, gpus=8, gpu="h200")
    main_part, tuning = made.stages
    assert (main_part.kept, tuning.kept) == (157, 1568)
    assert (main_part.steps, main_part.global_batch, tuning.global_batch) == (104_000, 1024, 256)
    rate = 8 * 0.3 * 989e3 / main_part.gflop_per_clip
    assert main_part.clips_per_s == pytest.approx(rate)
    # 8 devices x 8 workers x 4 clips: 256 a second are read, and far more could be computed
    assert main_part.bound == "decode" and main_part.hours == pytest.approx(104_000 * 1024 / 256 / 3600)
    assert main_part.workers == -int(-rate // 32)
    fast = plan(config, dataclasses.replace(FOUND, decode_clips_per_s=1e5), gpus=8, gpu="h200")
    assert fast.stages[0].bound == "compute" and fast.stages[0].workers == 1
    assert fast.stages[0].hours == pytest.approx(104_000 * 1024 / rate / 3600)
    assert fast.hours == pytest.approx(sum(stage.hours for stage in fast.stages))
    assert {line.source for line in made.lines} == {"measured", "formula", "data sheet", "assumed", "recipe"}
    unread = plan(config, dataclasses.replace(FOUND, decode_clips_per_s=None), gpus=8, gpu="h200")
    assert unread.stages[0].bound == "unknown" and unread.stages[0].workers is None


def test_a_plan_says_first_whether_a_day_is_enough_and_what_else_would_be() -> None:
    config = RECIPES["harvest-b16"]()
    slow = plan(config, FOUND, gpus=8, gpu="h200")
    assert slow.hours > 24 and [line.what for line in slow.lines[:3]] == ["within a day", "for a day", ""]
    assert slow.lines[0].figure.startswith("no: 5.1 days")
    words = slow.lines[1].figure.replace(",", "").split()
    assert words[0] == "--data.workers" and int(words[2]) == 8 * int(words[1])
    enough, fewer = (changed(config, "data", workers=int(words[1]) - less) for less in (0, 1))
    met = plan(enough, FOUND, gpus=8, gpu="h200")
    assert met.hours <= 24 < plan(fewer, FOUND, gpus=8, gpu="h200").hours
    assert met.lines[0].figure.startswith("yes: 2") and met.lines[1].what != "for a day"
    computing = plan(config, dataclasses.replace(FOUND, decode_clips_per_s=1e5), gpus=1, gpu="a10")
    needed = int(computing.lines[1].figure.split()[0])
    found = dataclasses.replace(FOUND, decode_clips_per_s=1e5)
    assert plan(config, found, gpus=needed, gpu="a10").hours <= 24.1


def test_a_plan_counts_what_the_machine_around_the_devices_needs() -> None:
    def told(config: RunConfig) -> dict[str, str]:
        return {line.what: line.figure for line in plan(config, FOUND, gpus=8, gpu="h200").lines}

    config = RECIPES["harvest-b16"]()
    shared = 8 * 8 * host.PREFETCH * 128 * 8 * 3 * 224**2 / 1e9
    assert told(config)["shared memory of all devices' workers (/dev/shm)"] == f"{shared:.1f} GB"
    stored = told(changed(config, "objective", cache_texts=True, text_store_type="fp16"))
    assert stored["encoded captions on disk"] == "11.0 GB for 10.7 million"
    assert "encoded captions on disk" not in told(config)
    assert "frames in memory" in told(RECIPES["mini-harvest"]())
    row = 78 * 8 * (6 + 6 * 512)  # of 40 % of the places: place and attention, and six layers in 8 bits
    umt = RECIPES["umt-stage1-b16"]()
    still = dataclasses.replace(umt.data, times="middle", crop_scale=(1.0, 1.0), flip=False)
    umt = dataclasses.replace(umt, data=still)
    seen = told(changed(umt, "objective", teacher_cache="cache"))
    assert seen["what a teacher sees, on disk"] == f"{row / 1e6:.3f} MB a clip"
    frames, both = (
        told(one)["shared memory of all devices' workers (/dev/shm)"]
        for one in (umt, changed(umt, "objective", teacher_cache="c"))
    )
    ratio = float(both.split()[0].replace(",", "")) / float(frames.split()[0].replace(",", ""))
    assert ratio == pytest.approx(1 + row / (8 * 3 * 224**2), rel=0.01)


def test_what_was_timed_here_counts_for_this_machine_alone() -> None:
    config = RECIPES["mini-harvest"]()
    timed = dataclasses.replace(FOUND, step_gflop_per_s=100.0, memory_gb=8.0)
    here = plan(config, timed, gpus=1, gpu=None)
    assert here.stages[0].clips_per_s == pytest.approx(100.0 / here.stages[0].gflop_per_clip)
    assert here.stages[0].bound == "compute" and here.stages[0].workers == 0  # decoded once, into memory
    assumed = plan(config, FOUND, gpus=1, gpu=None)
    assert assumed.stages[0].clips_per_s == pytest.approx(0.3 * 1000 / assumed.stages[0].gflop_per_clip)
    assert plan(config, timed, gpus=1, gpu="l4").stages[0].clips_per_s > 1000


def test_a_batch_that_does_not_fit_is_told_with_ways_out() -> None:
    config = changed(RECIPES["harvest-l14"](), "loop", checkpointing=False, global_batch=4096)
    told = [
        line.figure for line in plan(config, FOUND, gpus=1, gpu="l4").lines if "largest batch" in line.what
    ]
    assert (
        "its share is 4,096" in told[0]
        and "--objective.chunk-clips" in told[0]
        and "--loop.checkpointing" in told[0]
    )


def kept_for_backward(config: ModelConfig, clips: int) -> int:
    """Bytes that autograd saves of a step's forward pass, weights and inputs aside."""
    objective = make_objective(config, cache_texts=False, plain=False)
    objective.selection = Selection(0.9)
    batch = random_batch(config, clips, WORDS, torch.device("cpu"))
    known = {t.untyped_storage().data_ptr() for t in (*batch, *objective.parameters(), *objective.buffers())}
    sizes: dict[int, int] = {}
    saved: list[torch.Tensor] = []  # kept, so that no place is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
            saved.append(tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        objective(batch, 0)
    return sum(sizes.values())


def test_what_blocks_keep_is_as_measured() -> None:
    def deeper(video: int, fusion: int) -> ModelConfig:
        base = model_config("mini", frames=4)
        assert base.text is not None and base.fusion is not None
        return dataclasses.replace(
            base,
            video=dataclasses.replace(base.video, depth=video),
            text=dataclasses.replace(base.text, depth=1),
            fusion=dataclasses.replace(base.fusion, depth=fusion),
        )

    def of_a_clip(config: ModelConfig) -> int:
        return kept_for_backward(config, 3) - kept_for_backward(config, 2)

    one = of_a_clip(deeper(1, 1))
    seen, width = num_seen(deeper(1, 1).video, 13), 128
    assert (of_a_clip(deeper(2, 1)) - one) / (seen * width) == pytest.approx(BYTES_A_TOKEN, rel=0.1)
    assert (of_a_clip(deeper(1, 2)) - one) / (WORDS * width) == pytest.approx(BYTES_A_WORD, rel=0.2)


def test_this_machine_is_looked_at() -> None:
    found = probe(RECIPES["mini-harvest"](), seconds=0.3)
    assert found.matmul_gflop_per_s > 0 and found.copy_gb_per_s > 0
    assert found.decode_clips_per_s is not None and found.decode_clips_per_s > 0
    assert (found.step_gflop_per_s is None) or found.step_gflop_per_s > 0


def test_as_a_user_types_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(planning, "probe", lambda config, data: dataclasses.replace(FOUND, decoded=str(data)))
    command = [
        "plan",
        "harvest-b16",
        "--gpus",
        "8",
        "--gpu",
        "h200",
        "--data",
        "clips.csv",
        "--loop.steps",
        "10",
    ]
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["gpus"] == 8 and told["stages"][0]["steps"] == 10 and told["probe"]["decoded"] == "clips.csv"
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "harvest-b16 on 8 x h200" in shown and "data sheet" in shown and "bound by" in shown
    for wrong in (["--gpu", "abacus"], ["--gpus", "0"], ["--gpus", "two"]):
        assert main(["plan", "harvest-b16", *wrong]) == 2
    assert "the table has b200, h200" in capsys.readouterr().err
