"""Scenes at random: where things are, how big, on what background, and the events of two of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.random import Generator

from harvest.data.miniworld.drawing import NUM_DRAWINGS, Background, Scene, State, Thing
from harvest.data.miniworld.motions import (
    BACK,
    BACKGROUNDS,
    COLOURS,
    EXTENT,
    MOTIONS,
    PATHS,
    SPIN_STEP,
    THERE,
    Appearance,
)

_T = TypeVar("_T")


def rng_for(*key: object) -> Generator:
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def choice(rng: Generator, options: Sequence[_T]) -> _T:
    return options[int(rng.integers(len(options)))]


def sample(rng: Generator, options: Sequence[_T], count: int) -> list[_T]:
    return [options[number] for number in rng.permutation(len(options))[:count]]


def _between(rng: Generator, low: float, high: float) -> float:
    return low + (high - low) * float(rng.random())


def _half(value: float) -> float:
    return round(2 * value) / 2


def _margin(shape: str, radius: float) -> float:
    return EXTENT[shape] * radius + 0.75  # the quarter more than half a pixel covers rounding to pixels


def _radii(rng: Generator, crowd: float) -> list[float]:
    """Eight radii from small to large; `crowd` < 1 makes room for more things."""
    low, high = _between(rng, 6.25, 7.25), _between(rng, 13.25, 14.25)
    return [_half(crowd * (low + (high - low) * k / 7)) for k in range(NUM_DRAWINGS)]


def _radius(rng: Generator, crowd: float) -> float:
    # Drawn as a random drawing of a growing thing, so that a size says nothing about the motion.
    return choice(rng, _radii(rng, crowd))


def _angle(rng: Generator) -> int:
    return SPIN_STEP * int(rng.integers(24))


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
    return choice(rng, _path(rng, choice(rng, PATHS), margin))


def _states(rng: Generator, group: str, shape: str, crowd: float) -> tuple[State, ...]:
    angle = _angle(rng)
    if group == "size":
        radii = _radii(rng, crowd)
        x, y = _place(rng, _margin(shape, radii[-1]))
        return tuple(State(x, y, radius, angle) for radius in radii)
    radius = _radius(rng, crowd)
    margin = _margin(shape, radius)
    if group in PATHS:
        return tuple(State(x, y, radius, angle) for x, y in _path(rng, group, margin))
    x, y = _place(rng, margin)
    if group == "visibility":
        return tuple(State(x, y, radius, angle, k >= NUM_DRAWINGS // 2) for k in range(NUM_DRAWINGS))
    step = SPIN_STEP if group == "spin" else 0
    return tuple(State(x, y, radius, angle + k * step) for k in range(NUM_DRAWINGS))


def _thing(rng: Generator, colour: str, shape: str, states: Iterable[State]) -> Thing:
    red, green, blue = (min(max(value + int(rng.integers(-9, 10)), 0), 255) for value in COLOURS[colour])
    return Thing(colour, shape, (red, green, blue), tuple(states))


def _apart(one: Thing, other: Thing) -> bool:
    return all(
        math.hypot(a.x - b.x, a.y - b.y) > EXTENT[one.shape] * a.radius + EXTENT[other.shape] * b.radius + 1.5
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
        kind=choice(rng, tuple(BACKGROUNDS)),
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


def event_scene(rng: Generator, event: str, one: Appearance, two: Appearance) -> tuple[Scene, dict[str, Any]]:
    """A scene of two things that have to do with each other; the second value says who did what."""
    background = _background(rng)
    radius_one, radius_two = (_half(_between(rng, 6.5, 8.5)) for _ in range(2))
    if event == "follow":
        radius_one, radius_two = _half(radius_one - 0.75), _half(radius_two - 0.75)
    angle_one, angle_two = _angle(rng), _angle(rng)
    margin_one, margin_two = _margin(one[1], radius_one), _margin(two[1], radius_two)
    margin = max(margin_one, margin_two)
    steps = [k / 7 for k in range(NUM_DRAWINGS)]
    order = choice(rng, (THERE, BACK))
    rightwards = order == THERE
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
        order = THERE if rightwards else (0, 1, 5, 6, 4, 2, 3, 7)
        first, second = (one, two) if rightwards else (two, one)
        about = {"motion": None, "first": first, "second": second}
    # The one is drawn last: it is in front.
    things = (_thing(rng, *two, states_two), _thing(rng, *one, states_one))
    return Scene(background, things, order), about
