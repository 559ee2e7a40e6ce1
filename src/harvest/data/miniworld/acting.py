"""Who does what where: the mini-world's clips with boxes, for action detection."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from harvest.data.miniworld.drawing import NUM_DRAWINGS
from harvest.data.miniworld.motions import EXTENT, LABEL_NUMBER
from harvest.data.miniworld.splits import MiniWorld, make_clip

KEY_DRAWING = NUM_DRAWINGS // 2
"""Begins in the middle of the clip."""


def acting_rows(world: MiniWorld, split: Literal["train", "retrieval"]) -> Iterator[dict[str, Any]]:
    """The clips of a split with a box for every thing that is seen in the middle of the clip.

    Rows of `id`, `video`, `start_s`, `end_s` and `boxes`: sides as shares of the picture, and the number of the motion,
    which is "stays still" for all but the actor. Things that are hidden then have no box, clips of events and clips
    that show nothing then have no row.
    """
    count = world.config.train if split == "train" else world.config.retrieval
    for index in range(count):
        scene, row = make_clip(world.config, split, index)
        if row["kind"] not in ("one", "two", "three"):
            continue
        boxes = []
        for number, thing in enumerate(scene.things):  # the actor is the first
            state = thing.states[scene.order[KEY_DRAWING]]
            if not state.visible:
                continue
            reach = EXTENT[thing.shape] * state.radius
            sides = (state.x - reach, state.y - reach, state.x + reach, state.y + reach)
            label = row["label"] if number == 0 else LABEL_NUMBER["stays still"]
            boxes.append({"sides": [min(1.0, max(0.0, side / 64)) for side in sides], "labels": [label]})
        if boxes:
            yield {"id": row["id"], "video": row["video"], "start_s": 0.0, "end_s": 2.0, "boxes": boxes}
