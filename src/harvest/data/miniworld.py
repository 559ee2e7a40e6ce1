"""The mini-world: generated captioned clips, written as real H.264 files with manifests.

Every clip is eight drawings, each held for two frames, and every motion of a group is an order of the
same eight drawings. A model that averages over frames therefore cannot tell the motions of a group
apart, whatever it has learnt: only order can. `docs/miniworld.md` tells the story.

Lengths are in units of 1/64 of the frame's side, x to the right and y down; angles are in degrees,
clockwise on the screen. This module keeps to numpy and PyAV, so that its worker processes start fast.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from functools import cache, lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter
from numpy.random import Generator
from numpy.typing import NDArray

Appearance = tuple[str, str]  # colour, shape
_T = TypeVar("_T")

NUM_DRAWINGS = 8
HELD_FRAMES = 2
FRAMES_PER_S = 8
_VERSION = 3  # raise it when the same config would give other files

# --------------------------------------------------------------------------------------- the vocabulary

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 38, 38),
    "green": (44, 178, 56),
    "blue": (48, 84, 236),
    "yellow": (246, 228, 52),
    "orange": (252, 138, 22),
    "purple": (158, 56, 206),
    "cyan": (56, 214, 226),
    "white": (246, 246, 246),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
_TURNING_SHAPES = ("square", "triangle", "star", "cross")
_EXTENT = {"circle": 1.0, "square": 1.2, "triangle": 1.25, "star": 1.25, "cross": 1.16, "ring": 1.05}
_SYMMETRY = {"square": 90, "triangle": 120, "star": 72, "cross": 90}  # degrees after which it looks the same
_SPIN_STEP = 15  # less than half of every symmetry above, so the direction is never in doubt
BACKGROUNDS = {
    "noise": "grainy",
    "stripes": "striped",
    "checks": "checked",
    "gradient": "smooth",
    "dots": "dotted",
}


class Motion(NamedTuple):
    """A motion: an order of the eight states of its group."""

    name: str
    group: str
    order: tuple[int, ...]  # a permutation of 0..7
    phrases: tuple[str, ...]  # ways to say it; the first is the name


_THERE = (0, 1, 2, 3, 4, 5, 6, 7)
_BACK = _THERE[::-1]
_THERE_AND_BACK = (0, 2, 4, 6, 7, 5, 3, 1)
_BACK_AND_THERE = _THERE_AND_BACK[4:] + _THERE_AND_BACK[:4]
_TO_AND_FRO = (0, 4, 7, 3, 1, 5, 6, 2)


def _spread(verbs: str, places: str, endings: str = "") -> tuple[str, ...]:
    """Every verb with every place with every ending, each list separated by `|`."""
    return tuple(
        " ".join(word for word in (verb, place, ending) if word)
        for place in places.split("|")
        for ending in endings.split("|")
        for verb in verbs.split("|")
    )


_GO = "moves|slides|drifts"
_TURN_BACK = "goes|moves"
_RETURNS = "and comes back|and returns"


def _straight(name: str, group: str, order: tuple[int, ...], places: str) -> Motion:
    phrases = _spread(_GO, places)
    assert phrases[0] == name
    return Motion(name, group, order, phrases)


def _returning(name: str, group: str, order: tuple[int, ...], places: str, returns: str = _RETURNS) -> Motion:
    phrases = _spread(_TURN_BACK, places, returns)
    assert phrases[0] == name
    return Motion(name, group, order, phrases)


def _all_motions() -> Iterator[Motion]:
    left, right = "left|to the left", "right|to the right"
    yield _straight("moves left", "horizontal", _BACK, left)
    yield _straight("moves right", "horizontal", _THERE, right)
    yield _returning("goes left and comes back", "horizontal", _BACK_AND_THERE, left)
    yield _returning("goes right and comes back", "horizontal", _THERE_AND_BACK, right)
    yield Motion(
        "bounces from side to side",
        "horizontal",
        _TO_AND_FRO,
        ("bounces from side to side", "swings from side to side", "bounces left and right"),
    )
    up, down = "up|upwards", "down|downwards"
    yield _straight("moves up", "vertical", _THERE, up)
    yield _straight("moves down", "vertical", _BACK, down)
    back_down = "and comes back down|and returns down"
    back_up = "and comes back up|and returns up"
    yield _returning("goes up and comes back down", "vertical", _THERE_AND_BACK, up, back_down)
    yield _returning("goes down and comes back up", "vertical", _BACK_AND_THERE, down, back_up)
    yield Motion(
        "bounces up and down",
        "vertical",
        _TO_AND_FRO,
        ("bounces up and down", "hops up and down", "swings up and down"),
    )
    for group, there, back in (
        ("diagonal_rising", ("up", "right", "upper"), ("down", "left", "lower")),
        ("diagonal_falling", ("up", "left", "upper"), ("down", "right", "lower")),
    ):
        for (rise, side, half), straight, returning in (
            (there, _THERE, _THERE_AND_BACK),
            (back, _BACK, _BACK_AND_THERE),
        ):
            places = f"{rise} and {side}|to the {half} {side}"
            yield _straight(f"moves {rise} and {side}", group, straight, places)
            yield _returning(f"goes {rise} and {side} and comes back", group, returning, places)
    for name, order, more in (
        ("grows", _THERE, "gets bigger|becomes larger"),
        ("shrinks", _BACK, "gets smaller|becomes smaller"),
        (
            "grows and then shrinks",
            _THERE_AND_BACK,
            "gets bigger and then smaller|becomes larger and then smaller",
        ),
        (
            "shrinks and then grows",
            _BACK_AND_THERE,
            "gets smaller and then bigger|becomes smaller and then larger",
        ),
    ):
        yield Motion(name, "size", order, (name, *more.split("|")))
    for name, order, more in (  # states 0 to 3 are hidden, 4 to 7 are visible
        ("appears", _THERE, "comes into view|becomes visible"),
        (
            "disappears",
            (4, 5, 6, 7, 0, 1, 2, 3),
            "goes out of view|becomes invisible",
        ),
        (
            "shows up for a moment",
            (0, 1, 4, 5, 6, 7, 2, 3),
            "appears for a moment|comes into view briefly",
        ),
        (
            "vanishes for a moment",
            (4, 5, 0, 1, 2, 3, 6, 7),
            "disappears for a moment|goes out of view briefly",
        ),
        (
            "blinks",
            (4, 0, 5, 1, 6, 2, 7, 3),
            "flashes on and off|flickers",
        ),
    ):
        yield Motion(name, "visibility", order, (name, *more.split("|")))
    for way, order in (("clockwise", _THERE), ("counterclockwise", _BACK)):
        circling = f"goes in circles {way}|circles {way}|goes round {way}"
        yield Motion(f"goes in circles {way}", "circle", order, tuple(circling.split("|")))
    for way, order in (("clockwise", _THERE), ("counterclockwise", _BACK)):
        spinning = f"spins {way}|turns {way}|rotates {way}"
        yield Motion(f"spins {way}", "spin", order, tuple(spinning.split("|")))
    still = "stays still|stays in place|rests"
    yield Motion("stays still", "still", _THERE, tuple(still.split("|")))


MOTIONS: dict[str, Motion] = {motion.name: motion for motion in _all_motions()}
LABELS: tuple[str, ...] = tuple(MOTIONS)
GROUPS: dict[str, tuple[str, ...]] = {}
for _motion in MOTIONS.values():
    GROUPS[_motion.group] = (*GROUPS.get(_motion.group, ()), _motion.name)
_QUESTION_GROUPS = tuple(group for group, names in GROUPS.items() if len(names) >= 4)
_PATHS = ("horizontal", "vertical", "diagonal_rising", "diagonal_falling", "circle")
_LABEL = {name: number for number, name in enumerate(LABELS)}
_COLOUR_NUMBER = {name: number for number, name in enumerate(COLOURS)}
_SHAPE_NUMBER = {name: number for number, name in enumerate(SHAPES)}
_GROUP_NUMBER = {name: number for number, name in enumerate(GROUPS)}

_ING = {
    "goes": "going", "moves": "moving", "slides": "sliding", "drifts": "drifting",
    "comes": "coming", "returns": "returning", "bounces": "bouncing", "swings": "swinging",
    "hops": "hopping", "grows": "growing", "gets": "getting", "becomes": "becoming",
    "shrinks": "shrinking", "appears": "appearing", "stays": "staying",
    "disappears": "disappearing", "shows": "showing", "vanishes": "vanishing", "blinks": "blinking",
    "flashes": "flashing", "flickers": "flickering", "circles": "circling", "spins": "spinning",
    "turns": "turning", "rotates": "rotating", "rests": "resting",
}  # fmt: skip


def gerund(phrase: str) -> str:
    """The phrase as it follows a noun: "moves left" becomes "moving left"."""
    words = phrase.split()
    return " ".join(  # after "in", as in "goes in circles", a word is a noun
        word if position and words[position - 1] == "in" else _ING.get(word, word)
        for position, word in enumerate(words)
    )


def is_held_out(colour: str, shape: str, motion: str) -> bool:
    """Whether this combination is kept out of every split but the held-out ones (about one in ten).

    An appearance misses all motions of a group or none. Were single motions held out, a model that
    never looks at order could tell them apart by knowing which of them it has never read.
    """
    group = MOTIONS[motion].group
    if group == "still":
        return False
    number = _COLOUR_NUMBER[colour] + 3 * _SHAPE_NUMBER[shape] + 7 * _GROUP_NUMBER[group]
    return number % 10 == 0


@cache
def _appearances(group: str, *, held_out: bool = False) -> tuple[Appearance, ...]:
    motion = GROUPS[group][0]
    return tuple(
        (colour, shape)
        for colour in COLOURS
        for shape in SHAPES
        if (group != "spin" or shape in _TURNING_SHAPES) and is_held_out(colour, shape, motion) == held_out
    )


# ---------------------------------------------------------------------------------------------- scenes


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
    order: tuple[int, ...] = _THERE

    def __post_init__(self) -> None:
        if sorted(self.order) != list(range(NUM_DRAWINGS)):
            raise ValueError(f"order: expected a permutation of 0..7, got {self.order}")


@cache
def _mask(shape: str, half_pixels: int, angle: int) -> NDArray[np.float32]:
    """Coverage of each pixel, [side, side, 1] with an odd side, for a radius of half_pixels / 2."""
    radius = half_pixels / 2
    reach = math.floor(_EXTENT[shape] * radius + 0.5)  # pixels on each side of the middle one
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
                thing.shape, int(2 * state.radius * scale), state.angle % _SYMMETRY.get(thing.shape, 1)
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


# ------------------------------------------------------------------------------------- drawing at random


def _rng(*key: object) -> Generator:
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def _choice(rng: Generator, options: Sequence[_T]) -> _T:
    return options[int(rng.integers(len(options)))]


def _some(rng: Generator, options: Sequence[_T], count: int) -> list[_T]:
    return [options[number] for number in rng.permutation(len(options))[:count]]


def _between(rng: Generator, low: float, high: float) -> float:
    return low + (high - low) * float(rng.random())


def _half(value: float) -> float:
    return round(2 * value) / 2


def _margin(shape: str, radius: float) -> float:
    return _EXTENT[shape] * radius + 0.75  # the quarter more than half a pixel covers rounding to pixels


def _radii(rng: Generator, crowd: float) -> list[float]:
    """Eight radii from small to large; `crowd` < 1 makes room for more things."""
    low, high = _between(rng, 6.25, 7.25), _between(rng, 13.25, 14.25)
    return [_half(crowd * (low + (high - low) * k / 7)) for k in range(NUM_DRAWINGS)]


def _radius(rng: Generator, crowd: float) -> float:
    # Drawn as a random drawing of a growing thing, so that a size says nothing about the motion.
    return _choice(rng, _radii(rng, crowd))


def _angle(rng: Generator) -> int:
    return _SPIN_STEP * int(rng.integers(24))


def _path(rng: Generator, kind: str, margin: float) -> list[tuple[float, float]]:
    """Eight places along a path of which no place is nearer than `margin` to the edge."""
    room = 64 - 2 * margin
    steps = [k / 7 for k in range(NUM_DRAWINGS)]
    if kind == "circle":
        radius = _between(rng, 11, min(17, room / 2))
        x, y = (_between(rng, margin + radius, 64 - margin - radius) for _ in range(2))
        start = _between(rng, 0, 2 * math.pi)
        turns = [start + k * math.pi / 4 for k in range(NUM_DRAWINGS)]
        return [(x + radius * math.cos(turn), y + radius * math.sin(turn)) for turn in turns]
    if kind in ("horizontal", "vertical"):
        longest = min(42, room)
        length = _between(rng, max(26, 0.75 * longest), longest)
        begin = _between(rng, margin, 64 - margin - length)
        beside = _between(rng, margin, 64 - margin)
        if kind == "horizontal":
            return [(begin + length * step, beside) for step in steps]
        return [(beside, begin + length * (1 - step)) for step in steps]
    width = _between(rng, 20, min(30, room))
    height = min(max(width * _between(rng, 0.8, 1.25), 20), min(30, room))
    left = _between(rng, margin, 64 - margin - width)
    top = _between(rng, margin, 64 - margin - height)
    if kind == "diagonal_rising":
        return [(left + width * step, top + height * (1 - step)) for step in steps]
    return [(left + width * (1 - step), top + height * (1 - step)) for step in steps]


def _place(rng: Generator, margin: float) -> tuple[float, float]:
    """A place for a thing that does not move: that of a random drawing of one that does."""
    return _choice(rng, _path(rng, _choice(rng, _PATHS), margin))


def _states(rng: Generator, group: str, shape: str, crowd: float) -> tuple[State, ...]:
    angle = _angle(rng)
    if group == "size":
        radii = _radii(rng, crowd)
        x, y = _place(rng, _margin(shape, radii[-1]))
        return tuple(State(x, y, radius, angle) for radius in radii)
    radius = _radius(rng, crowd)
    margin = _margin(shape, radius)
    if group in _PATHS:
        return tuple(State(x, y, radius, angle) for x, y in _path(rng, group, margin))
    x, y = _place(rng, margin)
    if group == "visibility":
        return tuple(State(x, y, radius, angle, k >= NUM_DRAWINGS // 2) for k in range(NUM_DRAWINGS))
    step = _SPIN_STEP if group == "spin" else 0
    return tuple(State(x, y, radius, angle + k * step) for k in range(NUM_DRAWINGS))


def _thing(rng: Generator, colour: str, shape: str, states: Iterable[State]) -> Thing:
    red, green, blue = (min(max(value + int(rng.integers(-9, 10)), 0), 255) for value in COLOURS[colour])
    return Thing(colour, shape, (red, green, blue), tuple(states))


def _apart(one: Thing, other: Thing) -> bool:
    return all(
        math.hypot(a.x - b.x, a.y - b.y)
        > _EXTENT[one.shape] * a.radius + _EXTENT[other.shape] * b.radius + 1.5
        for a in one.states
        for b in other.states
    )


def _background(rng: Generator) -> Background:
    grey = _between(rng, 34, 96)
    tint = rng.uniform(-14, 14, size=3)
    contrast = _between(rng, 14, 34)
    low = tuple(int(max(grey + value, 12)) for value in tint)
    high = tuple(int(max(grey + contrast + value, 12)) for value in tint)
    specks = tuple(
        (_between(rng, 4, 60), _between(rng, 4, 60), _between(rng, 0.6, 1.4), int(rng.integers(90, 140)))
        for _ in range(int(rng.integers(4)))
    )
    return Background(
        kind=_choice(rng, tuple(BACKGROUNDS)),
        low=low,  # type: ignore[arg-type]
        high=high,  # type: ignore[arg-type]
        period=_between(rng, 9, 18),
        angle=_between(rng, 0, math.pi),
        seed=int(rng.integers(2**32)),
        specks=specks,
    )


def make_scene(rng: Generator, motion: str, *, actor: Appearance, still: Sequence[Appearance] = ()) -> Scene:
    """A scene in which `actor` makes the motion and the others stay still, without ever touching.

    An appearance is (colour, shape). The motion only sets the order of the drawings: nothing that is
    drawn depends on which motion of its group it is.
    """
    group = MOTIONS[motion].group
    background = _background(rng)
    crowd = (1.0, 0.76, 0.66)[len(still)]
    things: list[Thing] = []
    while len(things) <= len(still):
        things = [_thing(rng, *actor, _states(rng, group, actor[1], crowd))]
        for colour, shape in still:
            for _ in range(12):
                other = _thing(rng, colour, shape, _states(rng, "still", shape, crowd))
                if all(_apart(other, thing) for thing in things):
                    things.append(other)
                    break
            else:
                break
    return Scene(background, tuple(things), MOTIONS[motion].order)


def _event_scene(
    rng: Generator, event: str, one: Appearance, two: Appearance
) -> tuple[Scene, dict[str, Any]]:
    """A scene of two things that have to do with each other; the second value says who did what."""
    background = _background(rng)
    radius_one, radius_two = (_half(_between(rng, 6.5, 8.5)) for _ in range(2))
    if event == "follow":
        radius_one, radius_two = _half(radius_one - 0.75), _half(radius_two - 0.75)
    angle_one, angle_two = _angle(rng), _angle(rng)
    margin_one, margin_two = _margin(one[1], radius_one), _margin(two[1], radius_two)
    margin = max(margin_one, margin_two)
    steps = [k / 7 for k in range(NUM_DRAWINGS)]
    order = _choice(rng, (_THERE, _BACK))
    rightwards = order == _THERE
    about: dict[str, Any]
    if event == "pass":  # the one moves over the other
        x_two, y_two = _between(rng, 29, 35), _between(rng, margin, 64 - margin)
        y_one = min(max(y_two + _between(rng, -3, 3), margin), 64 - margin)
        begin = _between(rng, margin_one, margin_one + 1.5)
        end = 64 - _between(rng, margin_one, margin_one + 1.5)
        states_one = [State(begin + (end - begin) * step, y_one, radius_one, angle_one) for step in steps]
        states_two = [State(x_two, y_two, radius_two, angle_two)] * NUM_DRAWINGS
        about = {"motion": "moves right" if rightwards else "moves left", "front": one, "behind": two}
    elif event == "swap":
        gap = margin_one + margin_two + 1
        length = _between(rng, max(gap, 26), min(40, 64 - 2 * margin))
        begin = _between(rng, margin, 64 - margin - length)
        y = _between(rng, margin, 64 - margin)
        states_one = [State(begin + length * step, y, radius_one, angle_one) for step in steps]
        states_two = [State(begin + length * (1 - step), y, radius_two, angle_two) for step in steps]
        about = {"motion": None, "one": one, "two": two}
    elif event == "follow":  # the one is on the left, so it follows to the right and leads to the left
        gap = margin_one + margin_two + 0.5
        length = _between(rng, 20, 64 - margin_one - margin_two - gap)
        begin = _between(rng, margin_one, 64 - margin_two - gap - length)
        y = _between(rng, margin, 64 - margin)
        states_one = [State(begin + length * step, y, radius_one, angle_one) for step in steps]
        states_two = [State(begin + gap + length * step, y, radius_two, angle_two) for step in steps]
        last, first = (one, two) if rightwards else (two, one)
        about = {"motion": "moves right" if rightwards else "moves left", "leads": first, "follows": last}
    else:  # "vanish" and "jump": the one in states 2 and 3, the other in 5 and 6
        jump = _between(rng, 9, 13) if event == "jump" else 0.0
        hidden = event == "vanish"
        while True:
            x_one, y_one = _place(rng, margin_one)
            x_two, y_two = _place(rng, margin_two)
            if (
                abs(x_one - x_two) > margin_one + margin_two
                and min(y_one - margin_one, y_two - margin_two) > jump
            ):
                break
        states_one = [
            State(
                x_one,
                y_one - (jump if k in (2, 3) else 0),
                radius_one,
                angle_one,
                not (hidden and k in (2, 3)),
            )
            for k in range(NUM_DRAWINGS)
        ]
        states_two = [
            State(
                x_two,
                y_two - (jump if k in (5, 6) else 0),
                radius_two,
                angle_two,
                not (hidden and k in (5, 6)),
            )
            for k in range(NUM_DRAWINGS)
        ]
        order = _THERE if rightwards else (0, 1, 5, 6, 4, 2, 3, 7)
        first, second = (one, two) if rightwards else (two, one)
        about = {"motion": None, "first": first, "second": second}
    # The one is drawn last: it is in front.
    things = (_thing(rng, *two, states_two), _thing(rng, *one, states_one))
    return Scene(background, things, order), about


# --------------------------------------------------------------------------------------------- captions


def _name(appearance: Appearance, article: str = "a") -> str:
    colour, shape = appearance
    if article == "a" and colour == "orange":
        article = "an"
    return f"{article} {colour} {shape}"


# Terse, as the captions of the web are: few words that a reader could guess without the clip.
_ONE = (
    "{a} {does}",
    "the {it} {does}",
    "{it} {does}",
    "{a} {doing}",
    "{it} {doing}",
)
_TWO = (
    "{a} {does} while {b} stays still",
    "the {it} {does}, the {other} stays still",
    "{it} {doing}, {other} staying still",
    "{it} {doing} beside a still {other}",
    "{a} {does}, {b} rests",
)
_THREE = (
    "{a} {does} while {b} and {c} stay still",
    "the {it} {does}, the {other} and the {third} stay still",
    "{it} {doing} beside a still {other} and a still {third}",
    "{a} {does}, {b} and {c} rest",
)
_PASS = (
    "{a} passes in front of {b}",
    "the {it} passes in front of the {other}",
    "{it} passing in front of {other}",
    "{a} {does} in front of {b}",
    "{a} crosses over {b}",
)
_SWAP = (
    "{a} and {b} swap places",
    "the {it} and the {other} swap places",
    "{it} and {other} swapping places",
    "{a} changes places with {b}",
    "{a} and {b} trade places",
)
_FOLLOW = (
    "{a} follows {b} to the {side}",
    "the {it} follows the {other} to the {side}",
    "{it} following {other} to the {side}",
    "{b} leads {a} to the {side}",
    "{a} {does} behind {b}",
)
_ORDER = (
    "first {the_a} {does}, then {the_b}",
    "{the_a} {does} before {the_b}",
    "{the_a} {does}, then {the_b}",
    "{the_b} {does} after {the_a}",
    "{the_a} {does} first, {the_b} second",
)
_HAPPENS = {
    "vanish": ("vanishes for a moment", "disappears for a moment", "goes away for a moment"),
    "jump": ("jumps", "hops up", "makes a jump"),
}


def _say(template: str, things: Sequence[Appearance], does: str = "", side: str = "") -> str:
    names = {"a": things[0], "b": things[min(1, len(things) - 1)], "c": things[-1]}
    plain = {"it": names["a"], "other": names["b"], "third": names["c"]}
    return template.format(
        does=does,
        doing=gerund(does) if "{doing}" in template else "",
        side=side,
        the_a=_name(names["a"], "the"),
        the_b=_name(names["b"], "the"),
        **{key: _name(value) for key, value in names.items()},
        **{key: " ".join(value) for key, value in plain.items()},
    )


def _captions(
    rng: Generator,
    templates: Sequence[str],
    things: Sequence[Appearance],
    *,
    phrases: Sequence[str] = ("",),
    side: str = "",
    background: str | None = None,
    count: int = 5,
) -> tuple[str, ...]:
    """`count` different captions; about one in six names the background where that is given."""
    said: dict[str, None] = {}
    while len(said) < count:
        text = _say(_choice(rng, templates), things, _choice(rng, phrases), side)
        if background is not None and rng.random() < 1 / 6:
            text = f"{text} on a {BACKGROUNDS[background]} background"
        said[text] = None
    return tuple(said)


_STILL = (
    "{a} {place}",
    "the {it} is {place}",
    "{place} there is {a}",
    "a picture of {a} {place}",
    "we see {a} {place}",
    "here is {a} {place}",
)
_EMPTY = ("nothing but a {texture} background", "an empty {texture} background", "there is nothing here")
_PLACES = (
    ("in the top left corner", "at the top", "in the top right corner"),
    ("on the left", "in the middle", "on the right"),
    ("in the bottom left corner", "at the bottom", "in the bottom right corner"),
)


def _still_captions(rng: Generator, scene: Scene, drawing: int, count: int = 3) -> tuple[str, ...]:
    """`count` captions of one drawing as a picture: what can be seen, where and, in half of them, how big."""
    state = scene.order[drawing]
    seen = [thing for thing in scene.things if thing.states[state].visible]
    if not seen:
        texture = BACKGROUNDS[scene.background.kind]
        return tuple(text.format(texture=texture) for text in _some(rng, _EMPTY, count))
    thing = _choice(rng, seen)
    x, y, radius, *_ = thing.states[state]
    # Thirds of where centres can be, which is nearer to the middle than thirds of the frame.
    column, row = (0 if value < 25 else 2 if value > 39 else 1 for value in (x, y))
    size = "small " if radius < 8.75 else "big " if radius > 11.75 else ""
    said: dict[str, None] = {}
    while len(said) < count:
        word = size if rng.random() < 0.5 else ""
        what = f"{word}{thing.colour} {thing.shape}"
        article = "an" if what.startswith("orange") else "a"
        template = _choice(rng, _STILL)
        said[template.format(a=f"{article} {what}", it=what, place=_PLACES[row][column])] = None
    return tuple(said)


# ------------------------------------------------------------------------------------------- the splits


@dataclass(frozen=True)
class MiniWorldConfig:
    """How much of the mini-world to make.

    `train` and `retrieval` count clips, `questions` the clips of each set of questions (and of
    `actions`); `size` is the side of a frame in pixels, even and at least 64.
    """

    seed: int = 0
    train: int = 12000
    retrieval: int = 500
    questions: int = 400
    size: int = 64


@dataclass(frozen=True)
class MiniWorld:
    """A finished mini-world: its folder and the paths of its manifests."""

    folder: Path
    config: MiniWorldConfig
    train: Path = field(init=False)
    stills: Path = field(init=False)  # drawings of the training clips, as pictures
    retrieval: Path = field(init=False)
    motion_choice: Path = field(init=False)
    motion_choice_held_out: Path = field(init=False)
    appearance_choice: Path = field(init=False)
    order_choice: Path = field(init=False)
    questions: Path = field(init=False)
    actions: Path = field(init=False)
    labels: Path = field(init=False)  # JSON list: the motions in label order

    def __post_init__(self) -> None:
        for split in _SPLITS:
            object.__setattr__(self, split, self.folder / f"{split}.jsonl")
        object.__setattr__(self, "stills", self.folder / "stills.jsonl")
        object.__setattr__(self, "labels", self.folder / "labels.json")


class _Clip(NamedTuple):
    scene: Scene
    row: dict[str, Any]


def _row(
    texts: Sequence[str],
    *,
    kind: str,
    motion: str | None,
    actor: Appearance,
    label: int | None = None,
    question: str | None = None,
    answer: str | None = None,
) -> dict[str, Any]:
    return {
        "texts": list(texts),
        "label": label,
        "question": question,
        "answer": answer,
        "kind": kind,
        "group": None if motion is None else MOTIONS[motion].group,
        "motion": motion,
        "colour": actor[0],
        "shape": actor[1],
    }


# In proportion to the number of motions, with more of the few and small groups.
_GROUP_SHARES = {
    "horizontal": 5, "vertical": 5, "diagonal_rising": 4, "diagonal_falling": 4, "size": 5, "visibility": 5,
    "circle": 2, "spin": 2, "still": 2,
}  # fmt: skip
_GROUP_DRAW = tuple(group for group, share in _GROUP_SHARES.items() for _ in range(share))
_MOVING_GROUP_DRAW = tuple(group for group in _GROUP_DRAW if group != "still")
_MOST_RETRIEVAL = 5000  # about half of what the pairs of appearances allow


def _others(rng: Generator, taken: Appearance, count: int) -> list[Appearance]:
    everything = [(colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) != taken]
    return _some(rng, everything, count)


def _train_clip(rng: Generator, config: MiniWorldConfig, index: int) -> _Clip:
    kind = rng.random()
    if kind >= 0.88:
        return _event_clip(rng, _choice(rng, ("pass", "swap", "follow", "vanish", "jump")))
    num_still = 0 if kind < 0.68 else 1 if kind < 0.85 else 2
    group = _choice(rng, _MOVING_GROUP_DRAW if num_still else _GROUP_DRAW)
    actor = _choice(rng, _appearances(group))
    still = _others(rng, actor, num_still)
    motion = MOTIONS[_choice(rng, GROUPS[group])]
    scene = make_scene(rng, motion.name, actor=actor, still=still)
    texts = _captions(
        rng,
        (_ONE, _TWO, _THREE)[num_still],
        [actor, *still],
        phrases=motion.phrases,
        background=scene.background.kind,
    )
    name = ("one", "two", "three")[num_still]
    return _Clip(scene, _row(texts, kind=name, motion=motion.name, actor=actor, label=_LABEL[motion.name]))


def _event_clip(rng: Generator, event: str) -> _Clip:
    group = {"vanish": "visibility", "jump": "still"}.get(event, "horizontal")
    one, two = _some(rng, _appearances(group), 2)
    scene, about = _event_scene(rng, event, one, two)
    motion = about["motion"]
    background = scene.background.kind
    if event in _HAPPENS:
        order = [about["first"], about["second"]]
        texts = _captions(rng, _ORDER, order, phrases=_HAPPENS[event], background=background)
        return _Clip(scene, _row(texts, kind=event, motion=None, actor=order[0]))
    if event == "swap":
        texts = _captions(rng, _SWAP, _some(rng, (one, two), 2), background=background)
        return _Clip(scene, _row(texts, kind=event, motion=None, actor=one))
    templates = _PASS if event == "pass" else _FOLLOW
    pair = [one, two] if event == "pass" else [about["follows"], about["leads"]]
    texts = _captions(
        rng,
        templates,
        pair,
        phrases=MOTIONS[motion].phrases,
        side=motion.split()[-1],
        background=background,
    )
    return _Clip(scene, _row(texts, kind=event, motion=motion, actor=pair[0], label=_LABEL[motion]))


_PER_APPEARANCE = 10  # motions in the retrieval set


@lru_cache(maxsize=2)
def _retrieval_plan(seed: int, count: int) -> tuple[tuple[str, Appearance, tuple[Appearance, ...]], ...]:
    """Motion, actor and still things of each retrieval clip.

    Three in five appearances are one thing, the others two. An actor of a pair never stands alone as
    well, or the caption of the lone one would fit two clips.
    """
    rng = _rng(seed, "retrieval plan")
    everything = _some(rng, [(colour, shape) for colour in COLOURS for shape in SHAPES], 48)
    lone, paired = everything[:30], everything[30:]
    plan: list[tuple[str, Appearance, tuple[Appearance, ...]]] = []
    seen: set[tuple[Appearance, ...]] = set()
    while len(plan) < count:
        still: tuple[Appearance, ...] = ()
        if len(seen) % 5 < 3 and lone:
            actor = lone.pop()
        else:
            actor = _choice(rng, paired)
            still = tuple(_others(rng, actor, 1))
            if (actor, *still) in seen:
                continue
        seen.add((actor, *still))
        able = [
            name
            for name, motion in MOTIONS.items()
            if actor in _appearances(motion.group) and not (still and motion.group == "still")
        ]
        plan.extend((name, actor, still) for name in _some(rng, able, _PER_APPEARANCE))
    return tuple(plan[:count])


def _retrieval_clip(rng: Generator, config: MiniWorldConfig, index: int) -> _Clip:
    motion, actor, still = _retrieval_plan(config.seed, config.retrieval)[index]
    scene = make_scene(rng, motion, actor=actor, still=still)
    # The background stays unsaid: it would find the clip without looking at its motion.
    templates = _TWO if still else _ONE
    texts = _captions(rng, templates, [actor, *still], phrases=MOTIONS[motion].phrases, count=1)
    kind = "two" if still else "one"
    return _Clip(scene, _row(texts, kind=kind, motion=motion, actor=actor, label=_LABEL[motion]))


def _motion_choice_clip(rng: Generator, config: MiniWorldConfig, index: int, held_out: bool = False) -> _Clip:
    groups = [group for group in _QUESTION_GROUPS if _appearances(group, held_out=held_out)]
    group = groups[index % len(groups)]
    actor = _choice(rng, _appearances(group, held_out=held_out))
    options = _some(rng, GROUPS[group], 4)
    label = int(rng.integers(4))
    template, wording = _choice(rng, _ONE), int(rng.integers(30))
    texts = []
    for name in options:
        phrases = MOTIONS[name].phrases
        texts.append(_say(template, [actor], phrases[wording % len(phrases)]))
    scene = make_scene(rng, options[label], actor=actor)
    return _Clip(scene, _row(texts, kind="one", motion=options[label], actor=actor, label=label))


def _held_out_clip(rng: Generator, config: MiniWorldConfig, index: int) -> _Clip:
    return _motion_choice_clip(rng, config, index, held_out=True)


def _appearance_choice_clip(rng: Generator, config: MiniWorldConfig, index: int) -> _Clip:
    group = _choice(rng, _GROUP_DRAW)
    able = _appearances(group)
    actor = _choice(rng, able)
    near = [other for other in able if (other[0] == actor[0]) != (other[1] == actor[1])]
    far = [other for other in able if other[0] != actor[0] and other[1] != actor[1]]
    options = [actor, *_some(rng, near, 2), *_some(rng, far, 1)]
    options = _some(rng, options, 4)
    motion = _choice(rng, GROUPS[group])
    template, does = _choice(rng, _ONE), _choice(rng, MOTIONS[motion].phrases)
    scene = make_scene(rng, motion, actor=actor)
    texts = [_say(template, [option], does) for option in options]
    return _Clip(scene, _row(texts, kind="one", motion=motion, actor=actor, label=options.index(actor)))


def _order_choice_clip(rng: Generator, config: MiniWorldConfig, index: int) -> _Clip:
    event = ("vanish", "jump")[index % 2]
    one, two = _some(rng, _appearances("visibility" if event == "vanish" else "still"), 2)
    scene, about = _event_scene(rng, event, one, two)
    right = [about["first"], about["second"]]
    template, does = _choice(rng, _ORDER), _choice(rng, _HAPPENS[event])
    label = int(rng.integers(2))
    orders = [right, right[::-1]] if label == 0 else [right[::-1], right]
    texts = [_say(template, order, does) for order in orders]
    return _Clip(scene, _row(texts, kind=event, motion=None, actor=right[0], label=label))


_FILL_IN = {
    "moves left": "moves [mask]",
    "moves right": "moves [mask]",
    "moves up": "moves [mask]",
    "moves down": "moves [mask]",
    "grows": "[mask]",
    "shrinks": "[mask]",
}


def _question_clip(rng: Generator, config: MiniWorldConfig, index: int) -> _Clip:
    kind = ("motion", "colour", "shape")[index % 3]
    motion = tuple(_FILL_IN)[index // 3 % len(_FILL_IN)]
    if kind != "motion":
        motion = _choice(rng, GROUPS[_choice(rng, _GROUP_DRAW)])
    actor = _choice(rng, _appearances(MOTIONS[motion].group))
    colour, shape = actor
    if kind == "motion":
        question, answer = f"the {colour} {shape} {_FILL_IN[motion]}", motion.split()[-1]
    elif kind == "colour":  # "the", since "an" would give orange away
        question, answer = f"the [mask] {shape} {motion}", colour
    else:
        question, answer = f"the {colour} [mask] {motion}", shape
    scene = make_scene(rng, motion, actor=actor)
    return _Clip(scene, _row((), kind=kind, motion=motion, actor=actor, question=question, answer=answer))


def _action_clip(rng: Generator, config: MiniWorldConfig, index: int) -> _Clip:
    motion = LABELS[index % len(LABELS)]
    actor = _choice(rng, _appearances(MOTIONS[motion].group))
    scene = make_scene(rng, motion, actor=actor)
    return _Clip(scene, _row((motion,), kind="one", motion=motion, actor=actor, label=_LABEL[motion]))


_SPLITS: dict[str, Callable[[Generator, MiniWorldConfig, int], _Clip]] = {
    "train": _train_clip,
    "retrieval": _retrieval_clip,
    "motion_choice": _motion_choice_clip,
    "motion_choice_held_out": _held_out_clip,
    "appearance_choice": _appearance_choice_clip,
    "order_choice": _order_choice_clip,
    "questions": _question_clip,
    "actions": _action_clip,
}


def make_clip(config: MiniWorldConfig, split: str, index: int) -> tuple[Scene, dict[str, Any]]:
    """The scene of one clip and its manifest row; a function of (config.seed, split, index) alone."""
    scene, row = _SPLITS[split](_rng(config.seed, split, index), config, index)
    head = {"id": f"{split}-{index:06d}", "video": f"videos/{split}/{index:06d}.mp4"}
    return scene, head | row


# ---------------------------------------------------------------------------------------------- writing

_CLIPS_PER_JOB = 100  # part of the config, so to say: see _Encoder


class _Encoder:
    """Writes one drawn clip after another as an mp4 file of its own.

    Every drawing is a key frame at a constant quantizer, so that it decodes to the same pixels wherever
    it stands in the clip: were it predicted from the drawing before it, coding errors would tell an
    image model about order. Opening x264 costs more than encoding a clip, so that one encoder serves all
    clips of a job. Only the numbering of key frames passes from clip to clip, and jobs are cut alike for
    any number of workers, so files are too.
    """

    def __init__(self, size: int) -> None:
        # This container is never written: its stream holds the encoder and the header of all files.
        self._template = av.open(io.BytesIO(), "w", format="mp4")
        stream = self._template.add_stream("libx264", rate=FRAMES_PER_S)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.options = {"preset": "ultrafast", "tune": "zerolatency", "qp": "22", "forced-idr": "1"}
        stream.codec_context.thread_count = 1  # more would cost time at this size
        self._template.start_encoding()
        self._stream = stream
        self._to_yuv = VideoReformatter()  # keeps its tables from frame to frame
        self._num_frames = 0

    def write(self, path: Path, images: NDArray[np.uint8]) -> None:
        """Hold each of the images, uint8 [8, size, size, 3], for two frames."""
        time_base = Fraction(1, FRAMES_PER_S)
        with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
            stream = container.add_stream_from_template(self._stream, opaque=True)
            for number in range(NUM_DRAWINGS * HELD_FRAMES):
                if number % HELD_FRAMES == 0:
                    image = av.VideoFrame.from_ndarray(images[number // HELD_FRAMES], format="rgb24")
                    frame = self._to_yuv.reformat(image, format="yuv420p")
                    frame.time_base = time_base
                frame.pict_type = PictureType.NONE if number % HELD_FRAMES else PictureType.I
                frame.pts = self._num_frames
                self._num_frames += 1
                (packet,) = self._stream.encode(frame)  # without latency: one out for each in
                packet.pts = packet.dts = number
                packet.duration = 1
                packet.time_base = time_base
                packet.stream = stream
                container.mux(packet)


_STILLS_PER_CLIP = 2
_HELD_S = HELD_FRAMES / FRAMES_PER_S


def _stills(config: MiniWorldConfig, index: int, scene: Scene, clip: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of a training clip's pictures: each once with captions of what it shows, once with the clip's own.

    The second kind names motions, as captions on the web do, though no picture shows them.
    """
    rng = _rng(config.seed, "stills", index)
    rows = []
    for drawing in sorted(_some(rng, range(NUM_DRAWINGS), _STILLS_PER_CLIP)):
        stretch = {"video": clip["video"], "start_s": drawing * _HELD_S, "end_s": (drawing + 1) * _HELD_S}
        name = f"stills-{index:06d}-{drawing}"
        rows.append({"id": name, **stretch, "texts": list(_still_captions(rng, scene, drawing))})
        rows.append({"id": f"{name}-clip", **stretch, "texts": clip["texts"]})
    return rows


def _write_clips(folder: str, config: MiniWorldConfig, split: str, indices: range) -> dict[str, list[str]]:
    """Write the clips of one job; gives the lines of the manifests that they are in."""
    encoder = _Encoder(config.size)
    lines: dict[str, list[str]] = {split: []}
    for index in indices:
        scene, row = make_clip(config, split, index)
        encoder.write(Path(folder) / row["video"], drawings(scene, size=config.size))
        lines[split].append(json.dumps(row))
        if split == "train":
            lines.setdefault("stills", []).extend(map(json.dumps, _stills(config, index, scene, row)))
    return lines


def _write_whole(path: Path, text: str) -> None:
    """Write a file that is seen whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def write_miniworld(
    folder: Path,
    config: MiniWorldConfig,
    *,
    progress: Callable[[int, int], None] | None = None,
    workers: int = 2,
) -> MiniWorld:
    """Write the mini-world into a folder, or find it there finished, and give the paths of its manifests.

    The files are a function of the config: neither the number of workers nor the order in which they
    work changes a byte. `progress` is called with (clips written, clips in all). With more than one
    worker, processes are spawned, so a script must call this under `if __name__ == "__main__"`.

    Raises HarvestError where the folder holds a mini-world of another config, or the config cannot be.
    """
    from harvest.interfaces import HarvestError  # here, since it brings torch, which workers do without

    counts = {split: config.questions for split in _SPLITS} | {
        "train": config.train,
        "retrieval": config.retrieval,
    }
    if config.size < 64 or config.size % 2:
        raise HarvestError(f"size: expected an even number of pixels, at least 64, got {config.size}")
    if config.retrieval > _MOST_RETRIEVAL:
        raise HarvestError(f"retrieval: expected at most {_MOST_RETRIEVAL} clips, got {config.retrieval}")
    if min(counts.values()) < 0 or workers < 1:
        raise HarvestError(f"expected counts of at least 0 and a worker, got {config} and workers={workers}")
    folder = Path(folder)
    world = MiniWorld(folder, config)
    mark = folder / "world.json"
    wanted = {"version": _VERSION, "config": asdict(config)}
    if mark.exists():
        found = json.loads(mark.read_text(encoding="utf-8"))
        if found == wanted:
            return world
        raise HarvestError(
            f"{folder} holds another mini-world: it was made with {found}, and {wanted} is asked for. "
            "Give another folder, or remove this one."
        )
    for split in _SPLITS:
        (folder / "videos" / split).mkdir(parents=True, exist_ok=True)
    jobs = [
        (split, range(start, min(start + _CLIPS_PER_JOB, count)))
        for split, count in counts.items()
        for start in range(0, count, _CLIPS_PER_JOB)
    ]
    lines: dict[str, list[str]] = {split: [] for split in (*_SPLITS, "stills")}
    done, total = 0, sum(counts.values())

    def keep(split: str, some: dict[str, list[str]]) -> None:
        nonlocal done
        for manifest, rows in some.items():
            lines[manifest].extend(rows)
        done += len(some[split])
        if progress is not None:
            progress(done, total)

    if workers == 1:
        for split, indices in jobs:
            keep(split, _write_clips(str(folder), config, split, indices))
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            futures = [pool.submit(_write_clips, str(folder), config, *job) for job in jobs]
            try:
                for (split, _), future in zip(jobs, futures, strict=True):
                    keep(split, future.result())
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    for manifest, rows in lines.items():
        _write_whole(folder / f"{manifest}.jsonl", "".join(row + "\n" for row in rows))
    _write_whole(world.labels, json.dumps(list(LABELS), indent=1) + "\n")
    _write_whole(mark, json.dumps(wanted) + "\n")  # last: it says that all the rest is there
    return world
