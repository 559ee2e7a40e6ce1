from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harvest.data.labels import boxed
from harvest.data.manifest import boxed_example
from harvest.data.miniworld import LABELS, MiniWorldConfig, acting_rows, write_miniworld
from harvest.data.video import read_clip
from harvest.interfaces import Box, Example, HarvestError


def test_boxes_stand_where_things_are(tmp_path: Path) -> None:
    """Inside its box a thing's colour is, and just around the box it is not."""
    world = write_miniworld(tmp_path / "world", MiniWorldConfig(seed=3, train=60, retrieval=1, questions=0))
    examples = [boxed_example(row, world.folder) for row in acting_rows(world, "train")]
    assert 30 < len(examples) < 60 and any(len(e.boxes) > 1 for e in examples)
    still = LABELS.index("stays still")
    assert all(box.labels == (still,) for e in examples for box in e.boxes[1:])
    contrast = []
    for example in examples:
        frame = read_clip(example.video, num_frames=16, image_size=64).frames[8].float()
        for box in example.boxes:
            left, top, right, bottom = (round(64 * side) for side in box.sides)
            inside = frame[:, top:bottom, left:right].flatten(1).mean(1)
            around = torch.ones(64, 64, dtype=torch.bool)
            around[max(0, top - 3) : bottom + 3, max(0, left - 3) : right + 3] = False
            contrast.append(float((inside - frame[:, around].mean(1)).abs().max()))
    assert sorted(contrast)[len(contrast) // 20] > 15  # a grey background would give next to nothing
    assert examples == [boxed_example(row, world.folder) for row in acting_rows(world, "train")]


def test_rows_with_boxes() -> None:
    box = Box((0.0, 0.0, 1.0, 1.0), (1,))
    rows = boxed([Example("a", "a.mp4", ("x",), boxes=(box,)), Example("b", "b.mp4", ("y",))], 2)
    assert [(e.id, e.texts) for e in rows] == [("a", ())]
    with pytest.raises(HarvestError, match="'a' has a box with label 1, the actions go from 0 to 0"):
        boxed([Example("a", "a.mp4", boxes=(box,))], 1)
    with pytest.raises(HarvestError, match="'a' is of the same stretch as another"):
        boxed([Example("a", "a.mp4", boxes=(box,)), Example("b", "a.mp4", boxes=(box,))], 2)
    with pytest.raises(HarvestError, match="none of the rows"):
        boxed([Example("b", "b.mp4", ("y",))], 2)
