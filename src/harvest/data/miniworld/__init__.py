"""The mini-world: generated captioned clips, written as real H.264 files with manifests.

Every clip is eight drawings, each held for two frames, and every motion of a group is an order of the same eight
drawings. A model that averages over frames therefore cannot tell the motions of a group apart, whatever it has
learnt: only order can. `docs/miniworld.md` tells the story; the files read in the order motions, drawing, scenes,
captions, splits, writing. They keep to numpy and PyAV, so that worker processes start fast.
"""

from harvest.data.miniworld.absent import absent_scenes
from harvest.data.miniworld.acting import acting_rows
from harvest.data.miniworld.directions import directions
from harvest.data.miniworld.drawing import Scene, drawings, render
from harvest.data.miniworld.motions import (
    COLOURS,
    GROUPS,
    LABELS,
    MOTIONS,
    SHAPES,
    gerund,
    is_held_out,
    reverse_of,
)
from harvest.data.miniworld.scenes import make_scene
from harvest.data.miniworld.splits import MiniWorld, MiniWorldConfig, make_clip
from harvest.data.miniworld.writing import write_miniworld

__all__ = [
    "COLOURS",
    "GROUPS",
    "LABELS",
    "MOTIONS",
    "SHAPES",
    "MiniWorld",
    "MiniWorldConfig",
    "Scene",
    "absent_scenes",
    "acting_rows",
    "directions",
    "drawings",
    "gerund",
    "is_held_out",
    "make_clip",
    "make_scene",
    "render",
    "reverse_of",
    "write_miniworld",
]
