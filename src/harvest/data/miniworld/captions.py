"""What is said of a scene."""

from __future__ import annotations

from collections.abc import Sequence

from numpy.random import Generator

from harvest.data.miniworld.drawing import Scene
from harvest.data.miniworld.motions import BACKGROUNDS, Appearance, gerund
from harvest.data.miniworld.scenes import choice, sample


def _name(appearance: Appearance, article: str = "a") -> str:
    colour, shape = appearance
    if article == "a" and colour == "orange":
        article = "an"
    return f"{article} {colour} {shape}"


# Terse, as the captions of the web are: few words that a reader could guess without the clip.
ONE = (
    "{a} {does}",
    "the {it} {does}",
    "{it} {does}",
    "{a} {doing}",
    "{it} {doing}",
)
TWO = (
    "{a} {does} while {b} stays still",
    "the {it} {does}, the {other} stays still",
    "{it} {doing}, {other} staying still",
    "{it} {doing} beside a still {other}",
    "{a} {does}, {b} rests",
)
THREE = (
    "{a} {does} while {b} and {c} stay still",
    "the {it} {does}, the {other} and the {third} stay still",
    "{it} {doing} beside a still {other} and a still {third}",
    "{a} {does}, {b} and {c} rest",
)
PASS = (
    "{a} passes in front of {b}",
    "the {it} passes in front of the {other}",
    "{it} passing in front of {other}",
    "{a} {does} in front of {b}",
    "{a} crosses over {b}",
)
SWAP = (
    "{a} and {b} swap places",
    "the {it} and the {other} swap places",
    "{it} and {other} swapping places",
    "{a} changes places with {b}",
    "{a} and {b} trade places",
)
FOLLOW = (
    "{a} follows {b} to the {side}",
    "the {it} follows the {other} to the {side}",
    "{it} following {other} to the {side}",
    "{b} leads {a} to the {side}",
    "{a} {does} behind {b}",
)
ORDER = (
    "first {the_a} {does}, then {the_b}",
    "{the_a} {does} before {the_b}",
    "{the_a} {does}, then {the_b}",
    "{the_b} {does} after {the_a}",
    "{the_a} {does} first, {the_b} second",
)
HAPPENS = {
    "vanish": ("vanishes for a moment", "disappears for a moment", "goes away for a moment"),
    "jump": ("jumps", "hops up", "makes a jump"),
}


def say(template: str, things: Sequence[Appearance], does: str = "", side: str = "") -> str:
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


def captions_of(
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
        text = say(choice(rng, templates), things, choice(rng, phrases), side)
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


def still_captions(rng: Generator, scene: Scene, drawing: int, count: int = 3) -> tuple[str, ...]:
    """`count` captions of one drawing as a picture: what can be seen, where and, in half of them, how big."""
    state = scene.order[drawing]
    seen = [thing for thing in scene.things if thing.states[state].visible]
    if not seen:
        texture = BACKGROUNDS[scene.background.kind]
        return tuple(text.format(texture=texture) for text in sample(rng, _EMPTY, count))
    thing = choice(rng, seen)
    x, y, radius, *_ = thing.states[state]
    # Thirds of where centres can be, which is nearer to the middle than thirds of the frame.
    column, row = (0 if value < 25 else 2 if value > 39 else 1 for value in (x, y))
    size = "small " if radius < 8.75 else "big " if radius > 11.75 else ""
    said: dict[str, None] = {}
    while len(said) < count:
        word = size if rng.random() < 0.5 else ""
        what = f"{word}{thing.colour} {thing.shape}"
        article = "an" if what.startswith("orange") else "a"
        template = choice(rng, _STILL)
        said[template.format(a=f"{article} {what}", it=what, place=_PLACES[row][column])] = None
    return tuple(said)
