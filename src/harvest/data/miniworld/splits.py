"""What is in each split: a function of (seed, split, index) gives the scene of a clip and its manifest row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from numpy.random import Generator

from harvest.data.miniworld.captions import (
    FOLLOW,
    HAPPENS,
    ONE,
    ORDER,
    PASS,
    SWAP,
    THREE,
    TWO,
    captions_of,
    say,
)
from harvest.data.miniworld.drawing import Scene
from harvest.data.miniworld.motions import (
    COLOURS,
    GROUPS,
    LABEL_NUMBER,
    LABELS,
    MOTIONS,
    QUESTION_GROUPS,
    SHAPES,
    Appearance,
    appearances,
)
from harvest.data.miniworld.scenes import choice, event_scene, make_scene, rng_for, sample


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
        for split in SPLITS:
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
# Most events are an order of two: what a caption says of it is the hardest to learn.
_EVENT_DRAW = ("pass", "swap", "follow", *(("vanish", "jump") * 3))
_TRAIN_DRAW = (*_GROUP_DRAW, *("visibility",) * 3)  # which takes longest to learn
_MOVING_TRAIN_DRAW = tuple(group for group in _TRAIN_DRAW if group != "still")
MOST_RETRIEVAL = 5000  # about half of what the pairs of appearances allow


def _others(rng: Generator, taken: Appearance, count: int) -> list[Appearance]:
    everything = [(colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) != taken]
    return sample(rng, everything, count)


def _train_clip(rng: Generator, config: MiniWorldConfig, index: int) -> _Clip:
    kind = rng.random()
    if kind >= 0.80:
        return _event_clip(rng, choice(rng, _EVENT_DRAW))
    num_still = 0 if kind < 0.63 else 1 if kind < 0.77 else 2
    group = choice(rng, _MOVING_TRAIN_DRAW if num_still else _TRAIN_DRAW)
    actor = choice(rng, appearances(group))
    still = _others(rng, actor, num_still)
    motion = MOTIONS[choice(rng, GROUPS[group])]
    scene = make_scene(rng, motion.name, actor=actor, still=still)
    texts = captions_of(
        rng,
        (ONE, TWO, THREE)[num_still],
        [actor, *still],
        phrases=motion.phrases,
        background=scene.background.kind,
    )
    name = ("one", "two", "three")[num_still]
    return _Clip(
        scene, _row(texts, kind=name, motion=motion.name, actor=actor, label=LABEL_NUMBER[motion.name])
    )


def _event_clip(rng: Generator, event: str) -> _Clip:
    group = {"vanish": "visibility", "jump": "still"}.get(event, "horizontal")
    one, two = sample(rng, appearances(group), 2)
    scene, about = event_scene(rng, event, one, two)
    motion = about["motion"]
    background = scene.background.kind
    if event in HAPPENS:
        order = [about["first"], about["second"]]
        texts = captions_of(rng, ORDER, order, phrases=HAPPENS[event], background=background)
        return _Clip(scene, _row(texts, kind=event, motion=None, actor=order[0]))
    if event == "swap":
        texts = captions_of(rng, SWAP, sample(rng, (one, two), 2), background=background)
        return _Clip(scene, _row(texts, kind=event, motion=None, actor=one))
    templates = PASS if event == "pass" else FOLLOW
    pair = [one, two] if event == "pass" else [about["follows"], about["leads"]]
    texts = captions_of(
        rng,
        templates,
        pair,
        phrases=MOTIONS[motion].phrases,
        side=motion.split()[-1],
        background=background,
    )
    return _Clip(scene, _row(texts, kind=event, motion=motion, actor=pair[0], label=LABEL_NUMBER[motion]))


_PER_APPEARANCE = 10  # motions in the retrieval set


@lru_cache(maxsize=2)
def _retrieval_plan(seed: int, count: int) -> tuple[tuple[str, Appearance, tuple[Appearance, ...]], ...]:
    """Motion, actor and still things of each retrieval clip.

    Three in five appearances are one thing, the others two. An actor of a pair never stands alone as
    well, or the caption of the lone one would fit two clips.
    """
    rng = rng_for(seed, "retrieval plan")
    everything = sample(rng, [(colour, shape) for colour in COLOURS for shape in SHAPES], 48)
    lone, paired = everything[:30], everything[30:]
    plan: list[tuple[str, Appearance, tuple[Appearance, ...]]] = []
    seen: set[tuple[Appearance, ...]] = set()
    while len(plan) < count:
        still: tuple[Appearance, ...] = ()
        if len(seen) % 5 < 3 and lone:
            actor = lone.pop()
        else:
            actor = choice(rng, paired)
            still = tuple(_others(rng, actor, 1))
            if (actor, *still) in seen:
                continue
        seen.add((actor, *still))
        able = [
            name
            for name, motion in MOTIONS.items()
            if actor in appearances(motion.group) and not (still and motion.group == "still")
        ]
        plan.extend((name, actor, still) for name in sample(rng, able, _PER_APPEARANCE))
    return tuple(plan[:count])


def _retrieval_clip(rng: Generator, config: MiniWorldConfig, index: int) -> _Clip:
    motion, actor, still = _retrieval_plan(config.seed, config.retrieval)[index]
    scene = make_scene(rng, motion, actor=actor, still=still)
    # The background stays unsaid: it would find the clip without looking at its motion.
    templates = TWO if still else ONE
    texts = captions_of(rng, templates, [actor, *still], phrases=MOTIONS[motion].phrases, count=1)
    kind = "two" if still else "one"
    return _Clip(scene, _row(texts, kind=kind, motion=motion, actor=actor, label=LABEL_NUMBER[motion]))


def _motion_choice_clip(rng: Generator, config: MiniWorldConfig, index: int, held_out: bool = False) -> _Clip:
    groups = [group for group in QUESTION_GROUPS if appearances(group, held_out=held_out)]
    group = groups[index % len(groups)]
    actor = choice(rng, appearances(group, held_out=held_out))
    options = sample(rng, GROUPS[group], 4)
    label = int(rng.integers(4))
    template, wording = choice(rng, ONE), int(rng.integers(30))
    texts = []
    for name in options:
        phrases = MOTIONS[name].phrases
        texts.append(say(template, [actor], phrases[wording % len(phrases)]))
    scene = make_scene(rng, options[label], actor=actor)
    return _Clip(scene, _row(texts, kind="one", motion=options[label], actor=actor, label=label))


def _held_out_clip(rng: Generator, config: MiniWorldConfig, index: int) -> _Clip:
    return _motion_choice_clip(rng, config, index, held_out=True)


def _appearance_choice_clip(rng: Generator, config: MiniWorldConfig, index: int) -> _Clip:
    group = choice(rng, _GROUP_DRAW)
    able = appearances(group)
    actor = choice(rng, able)
    near = [other for other in able if (other[0] == actor[0]) != (other[1] == actor[1])]
    far = [other for other in able if other[0] != actor[0] and other[1] != actor[1]]
    options = [actor, *sample(rng, near, 2), *sample(rng, far, 1)]
    options = sample(rng, options, 4)
    motion = choice(rng, GROUPS[group])
    template, does = choice(rng, ONE), choice(rng, MOTIONS[motion].phrases)
    scene = make_scene(rng, motion, actor=actor)
    texts = [say(template, [option], does) for option in options]
    return _Clip(scene, _row(texts, kind="one", motion=motion, actor=actor, label=options.index(actor)))


def _order_choice_clip(rng: Generator, config: MiniWorldConfig, index: int) -> _Clip:
    event = ("vanish", "jump")[index % 2]
    one, two = sample(rng, appearances("visibility" if event == "vanish" else "still"), 2)
    scene, about = event_scene(rng, event, one, two)
    right = [about["first"], about["second"]]
    template, does = choice(rng, ORDER), choice(rng, HAPPENS[event])
    label = int(rng.integers(2))
    orders = [right, right[::-1]] if label == 0 else [right[::-1], right]
    texts = [say(template, order, does) for order in orders]
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
        motion = choice(rng, GROUPS[choice(rng, _GROUP_DRAW)])
    actor = choice(rng, appearances(MOTIONS[motion].group))
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
    actor = choice(rng, appearances(MOTIONS[motion].group))
    scene = make_scene(rng, motion, actor=actor)
    return _Clip(scene, _row((motion,), kind="one", motion=motion, actor=actor, label=LABEL_NUMBER[motion]))


SPLITS: dict[str, Callable[[Generator, MiniWorldConfig, int], _Clip]] = {
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
    scene, row = SPLITS[split](rng_for(config.seed, split, index), config, index)
    head = {"id": f"{split}-{index:06d}", "video": f"videos/{split}/{index:06d}.mp4"}
    return scene, head | row
