"""The runs that Harvest knows: one function each, returning the whole configuration, and its tiny twin.

`harvest recipes` lists them; `harvest train NAME --optim.lr 1e-5 …` overrides any leaf. A tiny twin is the same
recipe at a size that two CPU cores train in under a minute; the tests run them all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from harvest.config import RunConfig, StartConfig
from harvest.data.miniworld import MiniWorldConfig
from harvest.model.alignment import student_tower
from harvest.recipes.fine_tuning import (
    ft_ava_b16,
    ft_ava_l16,
    ft_choice_b16,
    ft_choice_l14,
    ft_k400_b16,
    ft_k400_l16,
    ft_k710_b16,
    ft_k710_l16,
    ft_msrvtt_b16,
    ft_msrvtt_qa_b16,
    ft_msrvtt_qa_l14,
    ft_ssv2_b16,
    ft_ssv2_l16,
    umt_ft_msrvtt_b16,
    umt_ft_msrvtt_l16,
    umt_ft_msrvtt_mc_b16,
    umt_ft_msrvtt_mc_l16,
    umt_ft_msrvtt_qa_b16,
    umt_ft_msrvtt_qa_l16,
)
from harvest.recipes.mini import (
    mini_actions,
    mini_adapt,
    mini_ft_actions,
    mini_ft_boxes,
    mini_ft_choice,
    mini_ft_qa,
    mini_ft_retrieval,
    mini_harvest,
    mini_image,
    mini_umt_qa,
    mini_umt_stage1,
    mini_umt_stage2,
    mini_videomae,
)
from harvest.recipes.post_pretraining import adapt_b16, harvest_b16, harvest_l14
from harvest.recipes.umt import umt_stage1_b16, umt_stage1_l16, umt_stage2_b16, umt_stage2_l16, videomae_b16

_ALL: tuple[Callable[[], RunConfig], ...] = (
    mini_image,
    mini_harvest,
    harvest_b16,
    harvest_l14,
    adapt_b16,
    mini_adapt,
    umt_stage1_b16,
    umt_stage1_l16,
    umt_stage2_b16,
    umt_stage2_l16,
    mini_umt_stage1,
    mini_umt_stage2,
    mini_ft_retrieval,
    mini_ft_actions,
    mini_ft_qa,
    mini_ft_choice,
    mini_ft_boxes,
    mini_umt_qa,
    mini_videomae,
    mini_actions,
    videomae_b16,
    umt_ft_msrvtt_b16,
    ft_k710_b16,
    ft_k400_b16,
    ft_ssv2_b16,
    ft_msrvtt_b16,
    ft_msrvtt_qa_b16,
    ft_choice_b16,
    ft_ava_b16,
    ft_msrvtt_qa_l14,
    ft_choice_l14,
    umt_ft_msrvtt_l16,
    umt_ft_msrvtt_qa_b16,
    umt_ft_msrvtt_qa_l16,
    umt_ft_msrvtt_mc_b16,
    umt_ft_msrvtt_mc_l16,
    ft_k710_l16,
    ft_k400_l16,
    ft_ssv2_l16,
    ft_ava_l16,
)
RECIPES: dict[str, Callable[[], RunConfig]] = {recipe.__name__.replace("_", "-"): recipe for recipe in _ALL}


def _small_student(start: StartConfig) -> StartConfig:
    """A tower from scratch at the size of a twin; other starts as they are."""
    sizes = start.scratch
    if sizes is None or sizes.text is not None or sizes.video.width <= 128:
        return start
    old = sizes.video
    video = student_tower(
        width=64,
        depth=3,
        num_heads=2,
        image_size=64,
        patch_size=8,
        num_frames=old.num_frames,
        tubelet_size=old.tubelet_size,
    )
    return dataclasses.replace(start, scratch=dataclasses.replace(sizes, video=video))


def tiny(name: str) -> RunConfig:
    """The tiny twin of a recipe: the same code path on a few generated clips, seconds long.

    Twins of recipes that start from CLIP, or are taught by it, take `mini-image` instead, so they need no download.
    """
    config = RECIPES[name]()
    needs = config.objective.needs
    start = _small_student(config.start)
    if start.scratch is None:
        start = dataclasses.replace(start, model="mini-image")
    if start.fusion is not None:
        start = dataclasses.replace(start, fusion=dataclasses.replace(start.fusion, depth=1, num_heads=4))
    train = config.data.train if config.data.train.startswith("mini-world") else "mini-world"
    is_fine_tuned = name.startswith(("ft-", "umt-ft-"))
    data = dataclasses.replace(
        config.data,
        train=needs.mini_world or train,
        workers=0 if is_fine_tuned else min(1, config.data.workers),  # one path with workers is enough
        flip=False,
    )
    twin = dataclasses.replace(
        config,
        start=start,
        data=data,
        world=MiniWorldConfig(seed=7, train=96, retrieval=100, questions=20),
        optim=dataclasses.replace(config.optim, warmup_steps=2),
        loop=dataclasses.replace(
            config.loop, steps=6, global_batch=16, save_every=3, log_every=1, threads=1, checkpointing=False
        ),
        tuning=dataclasses.replace(config.tuning, steps=min(2, config.tuning.steps), global_batch=8),
    )
    return needs.tiny(twin)
