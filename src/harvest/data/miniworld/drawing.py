"""From a scene to pixels.

Lengths are in units of 1/64 of the frame's side, x to the right and y down; angles are in degrees, clockwise on the
screen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harvest.data.miniworld.motions import EXTENT, SYMMETRY, THERE

NUM_DRAWINGS = 8
HELD_FRAMES = 2
FRAMES_PER_S = 8


class State(NamedTuple):
    """How a thing is drawn: centre and radius in 1/64 of the frame, angle in whole degrees."""

    x: float
    y: float
    radius: float
    angle: int = 0
    visible: bool = True


@dataclass(frozen=True)
class Thing:
    """A coloured shape with its eight states."""

    colour: str
    shape: str
    rgb: tuple[int, int, int]
    states: tuple[State, ...]  # 8


@dataclass(frozen=True)
class Background:
    """A quiet texture between two muted colours, with a few grey specks."""

    kind: str
    low: tuple[int, int, int]
    high: tuple[int, int, int]
    period: float  # of the texture, in 1/64 of the frame
    angle: float  # radians
    seed: int  # of the noise
    specks: tuple[tuple[float, float, float, int], ...] = ()  # x, y, radius, grey


@dataclass(frozen=True)
class Scene:
    """Things on a background, back to front; drawing k shows state `order[k]` of every thing."""

    background: Background
    things: tuple[Thing, ...]
    order: tuple[int, ...] = THERE

    def __post_init__(self) -> None:
        if sorted(self.order) != list(range(NUM_DRAWINGS)):
            raise ValueError(f"order: expected a permutation of 0..7, got {self.order}")


@cache
def _mask(shape: str, half_pixels: int, angle: int) -> NDArray[np.float32]:
    """Coverage of each pixel, [side, side, 1] with an odd side, for a radius of half_pixels / 2."""
    radius = half_pixels / 2
    reach = math.floor(EXTENT[shape] * radius + 0.5)  # pixels on each side of the middle one
    fine = 4
    side = 2 * reach + 1
    steps = ((np.arange(side * fine) + 0.5) / fine - side / 2) / radius
    across, down = steps[None, :], steps[:, None]
    turn = math.radians(angle)
    u = across * math.cos(turn) + down * math.sin(turn)
    v = down * math.cos(turn) - across * math.sin(turn)
    distance = np.hypot(u, v)
    inside: NDArray[np.bool_]
    if shape == "circle":
        inside = distance <= 1.0
    elif shape == "ring":
        inside = (distance <= 1.05) & (distance >= 0.56)
    elif shape == "square":
        inside = np.maximum(abs(u), abs(v)) <= 0.84
    elif shape == "cross":
        inside = (np.minimum(abs(u), abs(v)) <= 0.34) & (np.maximum(abs(u), abs(v)) <= 1.1)
    elif shape == "triangle":
        inside = np.maximum(v, abs(u) * math.sin(math.pi / 3) - v / 2) <= 0.625
    else:  # a star of five points, tips at 1.25 and notches at 0.55: below the line from tip to notch
        wedge = math.pi / 5
        around = abs((np.arctan2(u, -v) + wedge) % (2 * wedge) - wedge)
        x, y = distance * np.cos(around), distance * np.sin(around)
        notch_x, notch_y = 0.55 * math.cos(wedge), 0.55 * math.sin(wedge)
        inside = (x - 1.25) * notch_y - y * (notch_x - 1.25) <= 0
    covered = inside.reshape(side, fine, side, fine).mean(axis=(1, 3))
    return covered.astype(np.float32)[:, :, None]


@lru_cache(maxsize=4)
def _grid(size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    steps = ((np.arange(size) + 0.5) * (64 / size)).astype(np.float32)
    return steps[None, :], steps[:, None]


def _draw_background(background: Background, size: int) -> NDArray[np.float32]:
    x, y = _grid(size)
    cos, sin = math.cos(background.angle), math.sin(background.angle)
    mix: NDArray[np.floating]
    if background.kind == "noise":
        cells = np.random.default_rng(background.seed).random((22, 22), dtype=np.float32)
        index = (np.arange(size) * 22) // size
        mix = cells[index[:, None], index[None, :]]
    elif background.kind == "stripes":
        mix = 0.5 + 0.5 * np.clip(3 * np.sin((x * cos + y * sin) * (2 * math.pi / background.period)), -1, 1)
    elif background.kind == "checks":
        half = background.period / 2
        mix = ((np.floor(x / half) + np.floor(y / half)) % 2).astype(np.float32)
    elif background.kind == "gradient":
        mix = 0.5 + ((x - 32) * cos + (y - 32) * sin) / 91
    else:
        away = np.hypot(
            x % background.period - background.period / 2, y % background.period - background.period / 2
        )
        mix = np.clip(background.period * 0.27 - away + 0.5, 0, 1)
    low = np.asarray(background.low, np.float32)
    high = np.asarray(background.high, np.float32)
    image = low + mix[:, :, None].astype(np.float32) * (high - low)
    for speck_x, speck_y, radius, grey in background.specks:
        left, right, top, bottom = (
            int(edge * size / 64)
            for edge in (speck_x - radius, speck_x + radius, speck_y - radius, speck_y + radius)
        )
        image[top : bottom + 1, left : right + 1] = grey
    return image


def drawings(scene: Scene, *, size: int = 64) -> NDArray[np.uint8]:
    """The eight drawings of a scene in the order they are shown, uint8 [8, size, size, 3]."""
    ground = _draw_background(scene.background, size)
    images = np.repeat(np.clip(ground + 0.5, 0, 255).astype(np.uint8)[None], NUM_DRAWINGS, axis=0)
    scale = size / 64
    for thing in scene.things:
        rgb = np.asarray(thing.rgb, np.float32)
        for image, state in zip(images, thing.states, strict=True):
            if not state.visible:
                continue
            mask = _mask(
                thing.shape, int(2 * state.radius * scale), state.angle % SYMMETRY.get(thing.shape, 1)
            )
            reach = mask.shape[0] // 2
            column, row = int(state.x * scale), int(state.y * scale)
            # A box that leaves the frame fails here on its shape, rather than being cut unseen.
            box = image[max(row - reach, 0) : row + reach + 1, max(column - reach, 0) : column + reach + 1]
            box[:] = (box + mask * (rgb - box) + 0.5).astype(np.uint8)
    return images[list(scene.order)]


def render(scene: Scene, *, size: int = 64) -> NDArray[np.uint8]:
    """The frames of a scene, uint8 [16, size, size, 3]: each drawing held for two frames, 8 frames a second."""
    return np.repeat(drawings(scene, size=size), HELD_FRAMES, axis=0)
