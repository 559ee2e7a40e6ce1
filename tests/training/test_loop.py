"""Whole runs of the tiny twins, from real mp4 files to a model folder."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from harvest.config import RunConfig, StartConfig, read_config, to_json
from harvest.data.read_once import eval_batches
from harvest.files import PART, checksums_of
from harvest.interfaces import Batch, HarvestError, Losses
from harvest.model.adaptation import AdaptConfig
from harvest.model.folder import load_model
from harvest.objectives.answer_decoding import AnswerDecodingConfig
from harvest.objectives.image_text import ImageTextConfig
from harvest.objectives.masked_alignment import MaskedAlignmentConfig
from harvest.objectives.multimodal import MultimodalConfig
from harvest.objectives.pixel_reconstruction import PixelReconstructionConfig
from harvest.objectives.post_pretraining import PostPretraining, PostPretrainingConfig
from harvest.objectives.question_answering import QuestionAnsweringConfig
from harvest.objectives.text_tuning import TextTuningConfig
from harvest.recipes import RECIPES
from harvest.training.checkpoint import newest_weights
from harvest.training.loop import train
from harvest.training.start import build_objective, start_model

TinyRun = Callable[..., RunConfig]

# Seconds that a run of a test may take to get on; more where the machine has much else to do.
PATIENCE_S = float(os.environ.get("HARVEST_PATIENCE_S", "200"))


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(run / "model" / "model.safetensors")


def start(config: RunConfig, run: Path, **environment: str) -> subprocess.Popen[str]:
    """`harvest train --config … --out run` as a process of its own."""
    asked = run.parent / f"{run.name}.json"
    asked.write_text(to_json(config))
    return subprocess.Popen(
        [sys.executable, "-m", "harvest", "train", "--config", str(asked), "--out", str(run)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str], code: int = 0) -> str:
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code, errors
    return errors


@pytest.mark.parametrize("name", RECIPES)
def test_the_tiny_twin_of_every_recipe_runs_end_to_end(name: str, runs: Path, tiny_run: TinyRun) -> None:
    config = tiny_run(name)
    run = runs / f"twin-{name}"
    assert train(config, run) == run / "model"
    lines = metrics(run)
    assert [line["step"] for line in lines] == list(range(1, config.total_steps + 1))
    fills_words = getattr(config.objective, "masked_words_weight", 0) > 0
    parts = {
        ImageTextConfig: {"itc", "paraphrase"},
        PostPretrainingConfig: {"vtc", "mlm", "words_right"} if fills_words else {"vtc"},
        MaskedAlignmentConfig: {"alignment"},
        MultimodalConfig: {"alignment", "vtc", "vtm", "mlm"} if fills_words else {"vtc", "vtm"},
        AnswerDecodingConfig: {"answer", "answers_right"},
        PixelReconstructionConfig: {"pixels"},
    }.get(type(config.objective), set())
    assert parts <= lines[0].keys() and {"loss", "lr", "clips_per_s", "waiting"} <= lines[0].keys()
    assert read_config(run / "config.json") == config
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert len(kept) == 2 and kept[-1] == f"step-{config.total_steps:08d}"
    assert list((run / "tensorboard").iterdir()) and not (run / "broken.json").exists()
    model, tokenizer = load_model(run / "model")
    is_tower = config.start.scratch is not None and config.start.scratch.text is None  # no text tower
    assert (tokenizer is None) == is_tower
    if tokenizer is not None:
        assert model.encode_text(tokenizer(["a red circle"])).pooled.shape == (1, 128)
    fuses = fills_words or isinstance(
        config.objective, MultimodalConfig | QuestionAnsweringConfig | AnswerDecodingConfig
    )
    assert (model.fusion is not None) == fuses
    assert (model.answers is not None) == isinstance(config.objective, AnswerDecodingConfig)
    before = (run / "model" / "model.safetensors").read_bytes()
    train(config, run)  # a finished run has nothing left to do
    assert (run / "model" / "model.safetensors").read_bytes() == before and metrics(run) == lines


def test_the_tuning_stage_sees_all_in_smaller_batches(
    runs: Path, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, float, int]] = []
    inner = PostPretraining.forward

    def forward(self: PostPretraining, batch: Batch, step: int) -> Losses:
        seen.append((step, self.selection.drop_ratio, len(batch.video)))
        return inner(self, batch, step)

    monkeypatch.setattr(PostPretraining, "forward", forward)
    tuning = {"steps": 2, "drop_ratio": 0.25, "global_batch": 6, "lr": 0.125}
    train(tiny_run(loop={"steps": 3}, tuning=tuning), runs / "tuning")
    steps = seen[1:]  # without the small forward pass that finds what the losses reach
    assert steps == [(0, 0.9, 16), (1, 0.9, 16), (2, 0.9, 16), (3, 0.25, 6), (4, 0.25, 6)]
    assert metrics(runs / "tuning")[3]["lr"] == 0.125


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_weights_are_blended_with_the_image_models(
    share: float, runs: Path, image_model: Path, tiny_run: TinyRun
) -> None:
    run = runs / f"blend-{share}"
    changes = {
        "text_tuning": TextTuningConfig()
    }  # without: a tuned text tower is the image model's from then on
    train(tiny_run(objective=changes, loop={"steps": 2}, tuning={"steps": 0}, blend=share), run)
    trained = safetensors.torch.load_file(run / "checkpoints" / "step-00000002" / "weights.safetensors")
    image, tokenizer = load_model(image_model)
    old = image.state_dict()
    old["video.patches.weight"] = old["video.patches.weight"].repeat(1, 2) / 2
    for name in ("video.place_positions", "video.prefix"):
        old[name] = old[name] + old["video.time_positions.table"][0]
    moved = 0
    for name, tensor in weights(run).items():
        new = trained[f"model.{name}"]
        if name in old and not name.startswith("video.time_positions"):
            torch.testing.assert_close(tensor, torch.lerp(old[name], new, share), msg=name)
            moved += not torch.equal(old[name], new)
        else:
            assert torch.equal(tensor, new)  # positions in time and the fusion decoder have no image twin
    assert moved > 20
    if share == 0.0:  # a still clip is an image again, but for the positions in time, which stay trained
        model, _ = load_model(run / "model")
        with torch.no_grad():
            assert model.video.time_positions.gate is not None
            model.video.time_positions.gate.zero_()
            stills = torch.randint(256, (3, 1, 3, 64, 64), generator=torch.Generator().manual_seed(0)).byte()
            expected = image.encode_video(stills).pooled
            for clip in (stills, stills.expand(-1, 8, -1, -1, -1).contiguous()):
                torch.testing.assert_close(model.encode_video(clip).pooled, expected, atol=1e-5, rtol=1e-4)
            ids = tokenizer(["a red circle moves left"])
            torch.testing.assert_close(model.encode_text(ids).pooled, image.encode_text(ids).pooled)


@pytest.mark.parametrize(
    ("name", "loop"), [("fp32", {"precision": "fp32"}), ("checkpointing", {"checkpointing": True})]
)
def test_settings_change_the_speed_and_hardly_the_loss(
    name: str, loop: dict, runs: Path, tiny_run: TinyRun
) -> None:
    plain = runs / "plain"
    if not (plain / "model").exists():
        train(tiny_run(loop={"steps": 3}, tuning={"steps": 0}), plain)
    train(tiny_run(loop={"steps": 3, **loop}, tuning={"steps": 0}), runs / name)
    losses, expected = ([line["loss"] for line in metrics(run)] for run in (runs / name, plain))
    assert losses == pytest.approx(expected, rel=0.02)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_give_the_same_run(runs: Path, tiny_run: TinyRun) -> None:
    scratch = tiny_run("mini-image").start.scratch
    assert scratch is not None
    towers = {
        "video": dataclasses.replace(scratch.video, depth=1),
        "text": dataclasses.replace(scratch.text, depth=1),
    }
    config = tiny_run(
        "mini-image",
        start={"scratch": dataclasses.replace(scratch, **towers)},
        loop={"steps": 2, "precision": "fp32"},
    )
    train(config, runs / "eager")
    compiled = dataclasses.replace(config, loop=dataclasses.replace(config.loop, compile=True))
    finished(start(compiled, runs / "compiled"))
    losses, expected = ([line["loss"] for line in metrics(runs / name)] for name in ("compiled", "eager"))
    assert losses == pytest.approx(expected, rel=1e-4)
    assert weights(runs / "compiled").keys() == weights(runs / "eager").keys()
    load_model(runs / "compiled" / "model")


def test_training_starts_from_the_very_image_model(image_model: Path, tiny_run: TinyRun) -> None:
    """Also from one that was trained here, whose single time has learned a position."""
    image, _ = load_model(image_model)
    assert image.video.time_positions.table.any()
    model, _, _ = start_model(tiny_run(), [])
    stills = torch.randint(256, (3, 1, 3, 64, 64), generator=torch.Generator().manual_seed(0)).byte()
    with torch.no_grad():
        expected = image.encode_video(stills).pooled
        for clip in (stills, stills.expand(-1, 8, -1, -1, -1).contiguous()):
            torch.testing.assert_close(model.encode_video(clip).pooled, expected, atol=1e-5, rtol=1e-4)


# ---- what goes wrong ---------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run(runs: Path, tiny_run: TinyRun) -> None:
    config = tiny_run(loop={"save_every": 1}, optim={"lr": 1e25, "warmup_steps": 0, "max_grad_norm": None})
    with pytest.raises(HarvestError, match=r"the loss is (nan|inf) at step \d.*Lower --optim.lr"):
        train(config, runs / "nan")
    kept = sorted((runs / "nan" / "checkpoints").iterdir())
    assert kept and all(
        tensor.isfinite().all()
        for folder in kept
        for tensor in safetensors.torch.load_file(folder / "weights.safetensors").values()
    )
    assert not (runs / "nan" / "model").exists()


def test_a_gradient_that_is_not_finite_never_replaces_a_checkpoint(
    runs: Path, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = PostPretraining.forward

    def forward(self: PostPretraining, batch: Batch, step: int) -> Losses:
        losses = inner(self, batch, step)
        if step < 2:
            return losses
        root = (losses.total - losses.total.detach()).clamp(min=0).sqrt()  # zero, with an infinite slope
        return Losses(losses.total + root, losses.parts)

    monkeypatch.setattr(PostPretraining, "forward", forward)
    with pytest.raises(HarvestError, match="step 3 left values that are not finite"):
        train(tiny_run(loop={"save_every": 1}), runs / "gradient")
    kept = sorted(path.name for path in (runs / "gradient" / "checkpoints").iterdir())
    assert kept == ["step-00000001", "step-00000002"]


def test_a_folder_of_another_run_is_refused(runs: Path, tiny_run: TinyRun, tmp_path: Path) -> None:
    (runs / "other").mkdir()
    (runs / "other" / "config.json").write_text(to_json(tiny_run("harvest-b16")))
    with pytest.raises(
        HarvestError, match=r"(?s)other holds another run.*recipe: 'harvest-b16' there, 'mini-harvest'"
    ):
        train(tiny_run(), runs / "other")
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(HarvestError, match="is not empty and holds no run"):
        train(tiny_run(), tmp_path)
    with pytest.raises(HarvestError, match="is a file"):
        train(tiny_run(), tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_run_killed_while_it_claimed_its_folder_goes_on(runs: Path, tiny_run: TinyRun) -> None:
    (runs / "claimed").mkdir()
    (runs / "claimed" / f".config.json.1{PART}").write_text("{")
    train(tiny_run(loop={"steps": 1}, tuning={"steps": 0}), runs / "claimed")


def test_a_checkpoint_of_another_model_lists_the_keys(runs: Path, tiny_run: TinyRun) -> None:
    run, config = runs / "foreign", tiny_run(loop={"steps": 2}, tuning={"steps": 0})
    train(config, run)
    weights_file = run / "checkpoints" / "step-00000002" / "weights.safetensors"
    tensors = safetensors.torch.load_file(weights_file)
    tensors["model.pool.probe"] = tensors.pop("model.log_scale")
    safetensors.torch.save_file(tensors, weights_file)
    state = json.loads((weights_file.parent / "state.json").read_text())
    state["checksums"] |= {"weights.safetensors": checksums_of(weights_file.parent)["weights.safetensors"]}
    (weights_file.parent / "state.json").write_text(json.dumps(state))
    with pytest.raises(
        HarvestError, match=r"(?s)missing \(1\): model.log_scale.*left over \(1\): model.pool.probe"
    ):
        train(config, run)


def test_blending_without_an_image_model_is_refused_before_the_first_step(
    runs: Path, tiny_run: TinyRun
) -> None:
    with pytest.raises(HarvestError, match="blend needs an image model"):
        train(tiny_run("mini-image", blend=0.5), runs / "no-image")
    assert not (runs / "no-image" / "metrics.jsonl").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_saves_and_the_run_goes_on(number: signal.Signals, runs: Path, tiny_run: TinyRun) -> None:
    run = runs / number.name
    config = tiny_run(loop={"steps": 9000, "save_every": 9000})
    process = start(config, run)
    wait_for(process, lambda: lines_of(run) >= 3)
    process.send_signal(number)
    errors = finished(process, code=128 + number)
    assert "and saved; the same command goes on" in errors and "Traceback" not in errors
    [saved] = (run / "checkpoints").iterdir()
    last = metrics(run)[-1]["step"]
    assert saved.name == f"step-{last:08d}" and 3 <= last < 9000


def lines_of(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(process: subprocess.Popen[str], is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not is_so():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.002)


def test_a_model_of_harvest_gets_a_matching_head_when_it_is_fine_tuned(runs: Path, tiny_run: TinyRun) -> None:
    train(tiny_run("mini-harvest", loop={"steps": 2}, tuning={"steps": 0}), runs / "to-match")
    before = weights(runs / "to-match")
    config = tiny_run("mini-ft-retrieval", loop={"steps": 2}, tuning={"steps": 0}, optim={"lr": 0.0})
    start = StartConfig(model=str(runs / "to-match"))
    train(dataclasses.replace(config, start=start), runs / "matched")
    after = weights(runs / "matched")
    assert after.keys() - before.keys() == {"fusion.head_match.weight", "fusion.head_match.bias"}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert metrics(runs / "matched")[-1]["vtm"] > 0


# ---- two processes -----------------------------------------------------------------------------------------------


@contextmanager
def ranks(size: int, config: RunConfig, run: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """A run on several processes, as torchrun starts them; none outlives the block.

    The store through which they meet lives here, as in torchrun's agent: a free port that is only told to them
    could be taken by another test before they bind it.
    """
    if size == 1:
        processes = [start(config, run)]
    else:
        store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "GLOO_SOCKET_IFNAME": "lo"}
        shared |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "PYTHONFAULTHANDLER": "1"}
        processes = [
            start(config, run, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), **shared)
            for rank in range(size)
        ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()


def on_ranks(size: int, config: RunConfig, run: Path, code: int = 0) -> list[str]:
    """What each rank of a run says that ends by itself."""
    with ranks(size, config, run) as processes:
        try:
            said = [
                process.communicate(timeout=PATIENCE_S)[1] for process in processes
            ]  # also where one fails
        except subprocess.TimeoutExpired:
            for process in processes:
                process.send_signal(signal.SIGABRT)  # it says where it waits
            stuck = [process.communicate()[1] for process in processes]
            pytest.fail("\n\n".join(["no rank may wait for ever:", *stuck]))
    assert [process.returncode for process in processes] == [code] * size, "\n".join(said)
    return said


def same_on_ranks(tiny_run: TinyRun, **changes: object) -> RunConfig:
    """Nothing here depends on a rank's own draws: nothing is dropped, every word hidden."""
    settings: dict = {
        "objective": {"drop_ratio": 0.0, "text_mask_ratio": 1.0},
        "loop": {"steps": 4, "precision": "fp32", "global_batch": 8},
        # Adam's first steps are signs of gradients: where one is nearly zero, rounding would decide.
        # And factors of a hundred on a learning rate would magnify rounding a hundredfold.
        "optim": {"eps": 1e-3, "lr_factors": {}},
        "tuning": {"steps": 0},
    }
    for part, change in changes.items():
        settings[part] = settings[part] | change
    return tiny_run(**settings)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_train_the_same_model(runs: Path, tiny_run: TinyRun, parallel: str) -> None:
    if not (runs / "one" / "model").exists():
        train(same_on_ranks(tiny_run, loop={"steps": 10}), runs / "one")
    run = runs / f"two-{parallel}"
    on_ranks(2, same_on_ranks(tiny_run, loop={"steps": 10, "parallel": parallel}), run)
    alone, together = weights(runs / "one"), weights(run)
    assert alone.keys() == together.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(
            together[name], tensor, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    losses, expected = ([line["loss"] for line in metrics(r)] for r in (run, runs / "one"))
    assert losses == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("umt-ft-msrvtt-qa-b16", {}),  # its objective is built with a tokenizer
        ("umt-stage2-b16", {}),  # its vocabulary is learned from captions of clips and of pictures
        ("mini-ft-actions", {"adapt": AdaptConfig("lora", rank=4)}),
    ],
)
def test_a_sharded_run_writes_its_model(name: str, changes: dict, runs: Path, tiny_run: TinyRun) -> None:
    loop = {"steps": 2, "parallel": "fsdp"}
    config, run = tiny_run(name, loop=loop, tuning={"steps": 0}, **changes), runs / f"writes-{name}"
    if name.startswith("umt-ft"):
        config = dataclasses.replace(config, start=tiny_run("mini-harvest").start)
    on_ranks(2, config, run)
    model, tokenizer = load_model(run / "model")
    assert (tokenizer is not None) == (model.config.text is not None)
    assert all(tensor.isfinite().all() for tensor in weights(run).values())


def forget_after(step: int, run: Path) -> None:
    """As a run is that was killed when this step was the last one saved."""
    shutil.rmtree(run / "model")
    for checkpoint in (run / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)


@pytest.mark.slow  # HARVEST_RANKS=2,1,4 for the row in docs/results.md
@pytest.mark.timeout(1200)
def test_a_sharded_run_goes_on_to_the_bit_on_other_numbers_of_processes_and_without_shards(
    runs: Path, tiny_run: TinyRun
) -> None:
    loop = {"save_every": 1, "keep_last": 9, "average_decay": 0.9}
    ddp = same_on_ranks(tiny_run, loop=loop)
    fsdp, run = same_on_ranks(tiny_run, loop={**loop, "parallel": "fsdp"}), runs / "sharded"
    on_ranks(2, fsdp, run)
    unbroken, lines = weights(run), [line["loss"] for line in metrics(run)]
    assert len(list((run / "checkpoints/step-00000002/state").glob("*.distcp"))) == 2  # each rank its shares

    def goes_on(other: Path, config: RunConfig, size: int) -> dict[str, Tensor]:
        on_ranks(size, config, other) if size > 1 else train(config, other)
        again = weights(other)
        for name, tensor in unbroken.items():
            torch.testing.assert_close(again[name], tensor, atol=1e-5, rtol=1e-5)
        assert [line["loss"] for line in metrics(other)] == pytest.approx(lines, rel=1e-6)
        load_model(other / "model")
        return again

    for size in map(int, os.environ.get("HARVEST_RANKS", "2,1").split(",")):
        other = runs / f"sharded-{size}"
        shutil.copytree(run, other)
        forget_after(2, other)
        again = goes_on(other, fsdp, size)
        assert size != 2 or all(torch.equal(again[name], tensor) for name, tensor in unbroken.items())
    other = runs / "sharded-and-not"
    shutil.copytree(run, other)
    forget_after(1, other)
    goes_on(other, ddp, 2)
    assert (other / "checkpoints/step-00000002/weights.safetensors").exists()
    forget_after(2, other)
    goes_on(other, fsdp, 2)
    assert (other / "checkpoints/step-00000003/state").is_dir()
    last, expected = newest_weights(other), newest_weights(run)
    assert last.keys() == expected.keys() and len(last) > 100
    for name, tensor in expected.items():
        torch.testing.assert_close(
            last[name], tensor, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_what_one_process_cannot_do_ends_all(runs: Path, tiny_run: TinyRun) -> None:
    """The main process finds something in its way; the other one does not wait for it for ever."""
    run = runs / "full"
    config = same_on_ranks(tiny_run, loop={"save_every": 2})
    on_ranks(2, config, run)
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "model")
    (run / "checkpoints").write_text("in the way")
    first, second = on_ranks(2, config, run, code=2)
    assert "could not save a checkpoint" in first
    assert "process 0 of 2: could not save a checkpoint" in " ".join(second.split())


@pytest.mark.parametrize("name", ["ft-k400-b16", "mini-actions"])
def test_a_tower_without_words_is_fine_tuned_for_actions(
    name: str, runs: Path, stage1_run: Path, tiny_run: TinyRun
) -> None:
    """UMT's path from stage 1 to recognition: no words anywhere."""
    config = tiny_run(name, start={"model": str(stage1_run)}, loop={"steps": 3})
    run = runs / f"from-stage1-{name}"
    before = safetensors.torch.load_file(stage1_run / "model" / "model.safetensors")
    start = start_model(config, [])[0].state_dict()
    assert all(torch.equal(start[key], tensor) for key, tensor in before.items())
    train(config, run)
    assert read_config(run / "config.json").start.scratch is None  # the sizes are the run's
    model, tokenizer = load_model(run / "model")
    assert tokenizer is None and model.config.text is None
    after = weights(run)
    assert before.keys() == after.keys()
    assert not torch.equal(before["video.blocks.0.mlp.up.weight"], after["video.blocks.0.mlp.up.weight"])


def test_stage_2_goes_on_from_stage_1(stage1_run: Path, tiny_run: TinyRun, tmp_path: Path) -> None:
    """Defect 16: a training checkpoint of stage 1 loads nothing into the reference's stage 2, silently."""
    config = tiny_run("umt-stage2-b16")
    model, tokenizer, _ = start_model(config, ["a red circle"])
    tower = weights(stage1_run)
    own = model.state_dict()
    assert {name for name in tower if name.startswith("video.")} <= own.keys() and tokenizer is not None
    assert all(torch.equal(own[name], tensor) for name, tensor in tower.items() if name.startswith("video."))
    objective = build_objective(config, model)
    assert objective.teaching is not None
    checkpoint = newest_weights(stage1_run)
    heads = {k: t for k, t in checkpoint.items() if k.startswith("teaching.")}
    assert heads and all(torch.equal(objective.state_dict()[k], t) for k, t in heads.items())
    shutil.copytree(stage1_run / "model", tmp_path / "model")  # the model alone has no heads
    alone = dataclasses.replace(
        config, start=dataclasses.replace(config.start, model=str(tmp_path / "model"))
    )
    made = build_objective(alone, start_model(alone, ["a red circle"])[0])
    assert not torch.equal(
        made.state_dict()["teaching.heads.heads.0.linear.weight"],
        heads["teaching.heads.heads.0.linear.weight"],
    )
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(HarvestError, match=r"no model\.safetensors"):
        start_model(alone, ["a red circle"])
    nowhere = dataclasses.replace(config, start=dataclasses.replace(config.start, text=None))
    with pytest.raises(HarvestError, match=r"--start\.text"):
        start_model(nowhere, [])


@pytest.mark.parametrize("name", ["umt-stage1-b16", "umt-stage2-b16"])
def test_umt_goes_on_to_the_bit(name: str, runs: Path, tiny_run: TinyRun) -> None:
    """Dropout, hidden words, negatives and pictures in between are functions of the step too."""
    whole, stopped = runs / f"whole-{name}", runs / f"stopped-{name}"
    config = tiny_run(name, loop={"steps": 4, "save_every": 2})
    train(config, whole)
    train(config, stopped)
    shutil.rmtree(stopped / "model")
    shutil.rmtree(stopped / "checkpoints" / "step-00000004")  # as if killed after step 2
    train(config, stopped)
    first, second = weights(whole), weights(stopped)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", ["umt-stage1-b16", "umt-stage2-b16"])
def test_a_teacher_in_8_bits_teaches_the_same_and_has_a_cache_of_its_own(
    name: str, runs: Path, tiny_run: TinyRun, tmp_path: Path
) -> None:
    cache = {
        "teacher_cache": str(tmp_path / "cache"),
        "teacher_cache_ratio": 1.0,
        "teacher_cache_type": "fp16",
    }
    config = tiny_run(name, loop={"steps": 3}, data={"times": "middle", "crop_scale": (1.0, 1.0)})
    config = dataclasses.replace(
        config, objective=dataclasses.replace(config.objective, selector="random", **cache)
    )
    rounded = dataclasses.replace(config, objective=dataclasses.replace(config.objective, teacher_int8=True))
    train(config, runs / f"teacher-exact-{name}")
    train(rounded, runs / f"teacher-int8-{name}")
    assert len(list((tmp_path / "cache").glob("teacher-*/cache.json"))) == 2
    exact, other = (
        [line["loss"] for line in metrics(runs / f"teacher-{run}-{name}")] for run in ("exact", "int8")
    )
    assert exact != other and exact == pytest.approx(other, rel=5e-3)


@pytest.mark.parametrize("name", ["umt-stage1-b16", "umt-stage2-b16"])
def test_the_teacher_s_cache_is_filled_once(name: str, runs: Path, tiny_run: TinyRun, tmp_path: Path) -> None:
    """A second run with the same cache never asks the teacher, and takes the same steps; pictures are looked at."""
    config = tiny_run(name, loop={"steps": 3}, data={"times": "middle", "crop_scale": (1.0, 1.0)})
    settings = {
        "teacher_cache": str(tmp_path / "cache"),
        "teacher_cache_ratio": 1.0,
        "teacher_cache_type": "fp16",
    }
    with_cache = dataclasses.replace(config, objective=dataclasses.replace(config.objective, **settings))
    train(config, runs / f"cache-none-{name}")
    train(with_cache, runs / f"cache-first-{name}")
    blocks = sorted((tmp_path / "cache").glob("teacher-*/block-*"))
    written = [path.stat().st_mtime_ns for path in blocks]
    train(with_cache, runs / f"cache-second-{name}")
    assert blocks and [path.stat().st_mtime_ns for path in blocks] == written
    plain, first, second = (
        [line["loss"] for line in metrics(runs / f"{run}-{name}")]
        for run in ("cache-none", "cache-first", "cache-second")
    )
    assert first == second and first == pytest.approx(plain, rel=5e-3)


def test_the_teacher_s_cache_holds_clips_as_the_run_shows_them(
    runs: Path, tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops = []

    def read(*given: Any, **settings: Any) -> Iterator[tuple[Tensor, Tensor]]:
        crops.append(settings["fit"])
        return eval_batches(*given, **settings)

    monkeypatch.setattr("harvest.training.prepare.eval_batches", read)
    data = {"times": "middle", "crop_scale": (1.0, 1.0), "fit": "squash"}
    config = tiny_run("mini-umt-stage1", loop={"steps": 1}, data=data)
    cached = dataclasses.replace(config.objective, teacher_cache=str(tmp_path / "cache"))
    train(dataclasses.replace(config, objective=cached), runs / "cache-squashed")
    assert set(crops) == {"squash"}
    [noted] = (tmp_path / "cache").glob("teacher-*/cache.json")
    assert "squash" in json.loads(noted.read_text())["shown"]
