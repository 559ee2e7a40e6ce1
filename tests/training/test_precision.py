"""Losses scaled for fp16, deterministic kernels, and what is compiled."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_loop import metrics, weights
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from harvest.config import LoopConfig, RunConfig
from harvest.interfaces import Batch, HarvestError, Losses
from harvest.model.text_encoder import TextEncoderConfig
from harvest.model.video_encoder import VideoEncoderConfig
from harvest.model.video_text import ModelConfig, VideoTextModel, compile_blocks
from harvest.objectives.post_pretraining import PostPretraining, PostPretrainingConfig
from harvest.objectives.reach import random_batch
from harvest.parallel import Precision
from harvest.tokens import Selection
from harvest.training.loop import train
from harvest.training.optim import OptimConfig, build_optimizer
from harvest.training.step import LossScale, OptimizerStep

CPU = torch.device("cpu")


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 8)

    def forward(self, batch: Batch, step: int) -> Losses:
        return Losses(self.layer(batch.video).float().square().mean() * 1e-4, {})


def stepped(precision: Precision, scale: LossScale | None, *, steps: int = 3) -> dict[str, Tensor]:
    model = Line()
    step = OptimizerStep(
        model, build_optimizer(model, OptimConfig(lr=1e-2)), CPU, precision, 1.0, None, scale
    )
    video = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    for number in range(steps):
        step(Batch(video, *[torch.empty(0)] * 4), number)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_a_scaled_loss_gives_the_same_step_to_the_bit() -> None:
    plain, scaled = stepped("fp32", None), stepped("fp32", LossScale())
    assert all(torch.equal(plain[name], scaled[name]) for name in plain)


def test_an_overflow_changes_nothing_but_the_scale() -> None:
    scale = LossScale()
    scale.scale.fill_(torch.finfo(torch.float32).max)
    assert all(torch.equal(t, Line().state_dict()[n]) for n, t in stepped("fp16", scale, steps=1).items())
    assert scale.scale == torch.finfo(torch.float32).max / 2 and scale.good_steps == 0


def test_fp16_comes_near_fp32() -> None:
    """Gradients of 1e-6 would be 0 in fp16 for the most part: scaled they are not."""
    exact, half = stepped("fp32", None), stepped("fp16", LossScale())
    for name, tensor in exact.items():
        torch.testing.assert_close(half[name], tensor, rtol=1e-2, atol=1e-3)


def test_fp16_does_not_go_with_fsdp() -> None:
    with pytest.raises(HarvestError, match=r"loop\.precision fp16"):
        LoopConfig(precision="fp16", parallel="fsdp")


def test_a_run_in_fp16_goes_on_to_the_bit(runs: Path, tiny_run: Callable[..., RunConfig]) -> None:
    config = tiny_run(loop={"precision": "fp16", "keep_last": 9}, tuning={"steps": 0}, data={"workers": 0})
    run = runs / "fp16"
    train(config, run)
    unbroken, last = weights(run), run / "checkpoints" / "step-00000006"
    state = load_file(last / "weights.safetensors")
    assert state["loss_scale.scale"] >= 1 and state["loss_scale.good_steps"] <= 6
    assert json.loads((last / "state.json").read_text())["step"] == 6
    shutil.rmtree(last)
    shutil.rmtree(run / "model")
    train(config, run)
    assert all(torch.equal(tensor, unbroken[name]) for name, tensor in weights(run).items())
    assert all(torch.equal(t, state[n]) for n, t in load_file(last / "weights.safetensors").items())


def test_deterministic_kernels_are_asked_for_during_a_run(
    runs: Path, tiny_run: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_run(loop={"steps": 3}, tuning={"steps": 0}, data={"workers": 0})
    train(config, runs / "plain")
    seen: list[bool] = []
    own = OptimizerStep.__call__

    def watched(self: OptimizerStep, *args: object, **settings: object) -> Losses:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return own(self, *args, **settings)

    monkeypatch.setattr(OptimizerStep, "__call__", watched)
    config = tiny_run(loop={"steps": 3, "deterministic": True}, tuning={"steps": 0}, data={"workers": 0})
    train(config, runs / "deterministic")
    assert seen == [True] * 3 and not torch.are_deterministic_algorithms_enabled()
    one, other = metrics(runs / "plain"), metrics(runs / "deterministic")
    assert [line["loss"] for line in one] == [line["loss"] for line in other]


def test_blocks_compile_on_a_gpu_where_nothing_else_is_said() -> None:
    assert not LoopConfig().compiles_on(CPU) and LoopConfig(compile=True).compiles_on(CPU)
    assert not LoopConfig(compile=False).compiles_on(torch.device("cuda"))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # as Dynamo looks at what goes in
def test_blocks_compile_whole_and_for_every_budget() -> None:
    """Without breaks, and not again for a budget or a length of captions that comes third."""
    sizes = {"width": 16, "depth": 2, "num_heads": 2, "mlp_width": 32, "embed_dim": 12}
    video = VideoEncoderConfig(image_size=16, patch_size=4, num_frames=4, **sizes)
    text = TextEncoderConfig(vocab_size=40, context_length=32, start_id=0, end_id=1, pad_id=2, **sizes)
    objective = PostPretraining(
        PostPretrainingConfig(masked_words_weight=0.0, text_tower="trained"),
        VideoTextModel(ModelConfig(video, text)),
        seed=0,
    )
    torch._dynamo.reset()
    counters.clear()
    counter = CompileCounter()
    compile_blocks(objective.model, backend=counter)
    found = []
    for step, budget in enumerate((8, 16, 24, 40, 48, 64)):
        objective.selection = Selection(budget=budget)
        objective(random_batch(objective.model.config, 4, 8 + 3 * step, CPU), step).total.backward()
        found.append(counter.frame_count)
    torch._dynamo.reset()
    assert counters["graph_break"] == {} and found[0] > 0
    assert found[2:] == found[2:3] * 4, found
