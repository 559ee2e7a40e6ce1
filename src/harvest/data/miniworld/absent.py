"""Sentences about scenes that are in none of some clips, for calibrating and testing search."""

from __future__ import annotations

import numpy as np

from harvest.data.miniworld.motions import COLOURS, LABELS, MOTIONS, SHAPES, is_held_out
from harvest.interfaces import HarvestError


def absent_scenes(present: set[tuple[str, str, str]], count: int, *, seed: int) -> list[str]:
    """Sentences in the mini-world's words about scenes that are not `present`: (motion, colour, shape)."""
    rng = np.random.default_rng(seed)
    free = [
        (motion, colour, shape)
        for motion in LABELS
        for colour in COLOURS
        for shape in SHAPES
        # what stays still may stand beside what moves; nobody paints spinning circles
        if (motion, colour, shape) not in present
        and motion != "stays still"
        and not (motion.startswith("spins") and shape in ("circle", "ring"))
        and not is_held_out(colour, shape, motion)
    ]
    if len(free) < count:
        raise HarvestError(f"{count} absent scenes were asked for, and there are {len(free)}")
    sentences = []
    for place in rng.permutation(len(free))[:count]:
        motion, colour, shape = free[place]
        phrases = MOTIONS[motion].phrases
        sentences.append(f"the {colour} {shape} {phrases[int(rng.integers(len(phrases)))]}")
    return sentences
