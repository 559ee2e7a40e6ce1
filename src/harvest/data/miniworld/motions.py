"""What moves in the mini-world and how: colours, shapes, and the motions as orders of the same eight drawings."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

Appearance = tuple[str, str]  # colour, shape

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
EXTENT = {"circle": 1.0, "square": 1.2, "triangle": 1.25, "star": 1.25, "cross": 1.16, "ring": 1.05}
SYMMETRY = {"square": 90, "triangle": 120, "star": 72, "cross": 90}  # degrees after which it looks the same
SPIN_STEP = 15  # less than half of every symmetry above, so the direction is never in doubt
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


THERE = (0, 1, 2, 3, 4, 5, 6, 7)
BACK = THERE[::-1]
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
    yield _straight("moves left", "horizontal", BACK, left)
    yield _straight("moves right", "horizontal", THERE, right)
    yield _returning("goes left and comes back", "horizontal", _BACK_AND_THERE, left)
    yield _returning("goes right and comes back", "horizontal", _THERE_AND_BACK, right)
    yield Motion(
        "bounces from side to side",
        "horizontal",
        _TO_AND_FRO,
        ("bounces from side to side", "swings from side to side", "bounces left and right"),
    )
    up, down = "up|upwards", "down|downwards"
    yield _straight("moves up", "vertical", THERE, up)
    yield _straight("moves down", "vertical", BACK, down)
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
            (there, THERE, _THERE_AND_BACK),
            (back, BACK, _BACK_AND_THERE),
        ):
            places = f"{rise} and {side}|to the {half} {side}"
            yield _straight(f"moves {rise} and {side}", group, straight, places)
            yield _returning(f"goes {rise} and {side} and comes back", group, returning, places)
    for name, order, more in (
        ("grows", THERE, "gets bigger|becomes larger"),
        ("shrinks", BACK, "gets smaller|becomes smaller"),
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
        ("appears", THERE, "comes into view|becomes visible"),
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
    for way, order in (("clockwise", THERE), ("counterclockwise", BACK)):
        circling = f"goes in circles {way}|circles {way}|goes round {way}"
        yield Motion(f"goes in circles {way}", "circle", order, tuple(circling.split("|")))
    for way, order in (("clockwise", THERE), ("counterclockwise", BACK)):
        spinning = f"spins {way}|turns {way}|rotates {way}"
        yield Motion(f"spins {way}", "spin", order, tuple(spinning.split("|")))
    still = "stays still|stays in place|rests"
    yield Motion("stays still", "still", THERE, tuple(still.split("|")))


MOTIONS: dict[str, Motion] = {motion.name: motion for motion in _all_motions()}
LABELS: tuple[str, ...] = tuple(MOTIONS)
GROUPS: dict[str, tuple[str, ...]] = {}
for _motion in MOTIONS.values():
    GROUPS[_motion.group] = (*GROUPS.get(_motion.group, ()), _motion.name)
QUESTION_GROUPS = tuple(group for group, names in GROUPS.items() if len(names) >= 4)
PATHS = ("horizontal", "vertical", "diagonal_rising", "diagonal_falling", "circle")
LABEL_NUMBER = {name: number for number, name in enumerate(LABELS)}
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
def reverse_of(name: str) -> str | None:
    """The motion that clips of this one show when they run backwards; None where no other motion looks like that.

    "moves left" is "moves right" backwards. What goes there and back, and what is only seen for a moment, comes back to
    itself.
    """

    def seen(motion: str) -> tuple[int, ...]:
        # A thing that appears has two looks, hidden and visible; one that stays still has one.
        looks = {"visibility": (0, 0, 0, 0, 1, 1, 1, 1), "still": (0,) * 8}.get(MOTIONS[motion].group, THERE)
        return tuple(looks[state] for state in MOTIONS[motion].order)

    backwards = seen(name)[::-1]
    same = [other for other in GROUPS[MOTIONS[name].group] if other != name and seen(other) == backwards]
    return same[0] if same else None


@cache
def appearances(group: str, *, held_out: bool = False) -> tuple[Appearance, ...]:
    motion = GROUPS[group][0]
    return tuple(
        (colour, shape)
        for colour in COLOURS
        for shape in SHAPES
        if (group != "spin" or shape in _TURNING_SHAPES) and is_held_out(colour, shape, motion) == held_out
    )
