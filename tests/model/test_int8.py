"""Matrices in 8 bits: what is exact, how far off the rest is, and a teacher that has them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harvest.model.importing.pretrained import load_pretrained
from harvest.model.inflation import as_teacher
from harvest.model.int8 import Int8Linear, in_8_bits, round_rows
from harvest.model.layers import Block
from harvest.model.teacher import look, outputs


def test_whole_numbers_up_to_127_are_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = (
        torch.randint(-127, 128, size, generator=generator).float() for size in ((24, 64), (5, 3, 64))
    )
    weight[:, 0] = x[..., 0] = 127.0
    bias = torch.randn(24, generator=generator)
    assert torch.equal(Int8Linear(weight, bias)(x), F.linear(x, weight, bias))


def test_an_outlier_costs_its_own_token_precision_and_no_other() -> None:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(256, 64)
    x = torch.randn(10, 256, generator=generator)
    x[3, 7] = 1000.0
    off = (Int8Linear(linear.weight, linear.bias)(x) - linear(x)).norm(dim=1)
    others = off[torch.arange(10) != 3]
    size = linear(x).norm(dim=1)[torch.arange(10) != 3]
    assert (others < 0.02 * size).all() and off[3] > 10 * others.max()


def test_a_token_of_zeros_is_the_bias_and_types_are_those_of_linear() -> None:
    linear = nn.Linear(32, 16)
    own = Int8Linear(linear.weight, linear.bias)
    assert torch.equal(own(torch.zeros(3, 32)), linear.bias.detach().expand(3, 16))
    assert own(torch.zeros(2, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert own(torch.zeros(2, 32)).dtype == linear(torch.zeros(2, 32)).dtype == torch.bfloat16


def test_rounding_is_to_the_nearest_of_both_signs() -> None:
    rounded, scale = round_rows(torch.tensor([[127.0, -126.6, 0.4], [0.0, 0.0, 0.0], [-1e-30, 0.0, 1e-30]]))
    assert rounded.tolist() == [[127, -127, 0], [0, 0, 0], [-127, 0, 127]]
    assert scale[0] == 1 and scale.isfinite().all() and (scale > 0).all()


@pytest.mark.parametrize("key_bias", [True, False])
def test_a_block_is_as_before_but_for_rounding(key_bias: bool) -> None:
    torch.manual_seed(0)
    block = Block(64, 4, 256, "gelu", 1e-6, key_bias=key_bias).eval().requires_grad_(False)
    if block.attention.query_value_bias is not None:
        block.attention.query_value_bias.normal_()
    x = torch.randn(2, 10, 64)
    exact = block(x) - x
    in_8_bits([block])
    assert (block(x) - x - exact).norm() < 0.02 * exact.norm()


def test_a_trained_teacher_in_8_bits_sees_what_it_saw() -> None:
    image, _, _ = load_pretrained("mini-image")
    frames = (torch.rand(12, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)

    def seen(int8: bool) -> tuple[list[Tensor], Tensor]:
        teacher = as_teacher(image, int8=int8)
        looks, attention = look(teacher, frames, layers=(1, 3), attention=True)
        assert attention is not None
        return outputs(teacher, looks, layers=(1, 3), places=None), attention

    (exact, where), (rounded, there) = seen(False), seen(True)
    for one, other in zip(exact, rounded, strict=True):
        off = 1 - F.cosine_similarity(one, other, dim=-1)
        assert off.max() > 0 and off.mean() < 1e-3
    assert (where - there).abs().sum(dim=-1).max() < 0.05 * where.sum(dim=-1).max()


def test_the_image_model_keeps_its_own_matrices_and_the_last_block_is_left() -> None:
    image, _, _ = load_pretrained("mini-image")
    teacher = as_teacher(image, dtype=torch.bfloat16, int8=True)
    kinds = [type(block.mlp.up) for block in teacher.blocks]
    assert kinds == [Int8Linear] * 3 + [nn.Linear]
    assert teacher.blocks[0].mlp.up.scale.dtype == torch.float32
    assert teacher.blocks[3].mlp.up.weight.dtype == torch.bfloat16
    assert all(type(block.mlp.up) is nn.Linear for block in image.video.blocks)
    named = dict(teacher.named_buffers())
    assert named["blocks.0.attention.qkv.rounded"].dtype == torch.int8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_rounds_and_multiplies_as_a_cpu_does() -> None:
    linear = nn.Linear(64, 32)
    own = Int8Linear(linear.weight, linear.bias)
    x = torch.randn(3, 20, 64, generator=torch.Generator().manual_seed(0))
    here = own(x)
    torch.testing.assert_close(own.cuda()(x.cuda()).cpu(), here, rtol=1e-5, atol=1e-5)
