"""How published tests read the texts of a benchmark: cleaning, length, prompts and averaging, in one table (`TEXTS`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Literal

from harvest.evaluation.tasks.recognition import Averaging
from harvest.interfaces import HarvestError
from harvest.model.text_cleaning import Clean

TextProtocol = Literal["model", "umt", "viclip", "viclip-16"]


@dataclass(frozen=True)
class Texts:
    """How a test reads the texts of one benchmark."""

    clean: Clean | None = None
    """None: as the model does."""
    context_length: int | None = None
    """Ids of a text; None: as many as the model takes."""
    templates: tuple[str, ...] = ()
    """Prompts of recognition, with {} for the class."""
    average: Averaging = "vectors"


_VERBS = ("doing ", "performing ", "practicing ")
CLIP_KINETICS = tuple(
    f"a {kind} of {person}{{}}."
    for kind, person in product(
        ("photo", "video", "example", "demonstration"),
        ("", *(f"a person {verb}" for verb in ("", "using ", "doing ", "during ", *_VERBS[1:]))),
    )
)
"""The 28 prompts of CLIP for Kinetics-700 (github.com/openai/CLIP, data/prompts.md)."""

CLIP_UCF101 = tuple(
    f"a {kind} of {person} person {verb}{{}}."
    for verb, person, kind in product(
        ("", "using ", "doing ", "during ", *_VERBS[1:]),
        ("a", "the"),
        ("photo", "video", "example", "demonstration"),
    )
)
"""The 48 prompts of CLIP for UCF101 (the same file)."""

VICLIP_28 = (
    *("A photo of action {}.", "A video of action {}.", "He or she is {}.", "A person is doing {}."),
    *(
        "Look, the human is {}.",
        "Human action of {}.",
        "Playing action of {}.",
        "Video classification of {}.",
    ),
    *("Doing a kind of action, {}.", "Playing a kind of action, {}.", "Can you recognize the action of {}?"),
    *("{}, an action.", "{} this is an action.", "{}, a video of action."),
    *("An action of {} is in the video.", "There is a person doing {} in the video."),
    *(
        f"A {kind} of a person {verb}{{}}."
        for kind, verb in product(("photo", "video", "example", "demonstration"), _VERBS)
    ),
)
"""ViCLIP's `kinetics_templates`, which its training on Kinetics takes (github.com/OpenGVLab/InternVideo at 3965eef,
InternVideo1/Pretrain/ViCLIP/dataset/text_prompt.py)."""

VICLIP_16 = (
    *("a photo of action {}", "a picture of action {}", "Human action of {}", "{}, an action"),
    *("{} this is an action", "{}, a video of action", "Playing action of {}", "{}"),
    *("Playing a kind of action, {}", "Doing a kind of action, {}", "Look, the human is {}"),
    *("Can you recognize the action of {}?", "Video classification of {}", "A video of {}"),
    *("The man is {}", "The woman is {}"),
)
"""ActionCLIP's prompts, which the published test of ViCLIP takes (the same file; dataset/caption_dataset.py)."""

_KINETICS = ("k400", "k600", "k700")
_VICLIP = {name: Texts("umt", 32) for name in ("msrvtt", "msvd", "didemo", "activitynet", "lsmdc")}

TEXTS: Mapping[TextProtocol, Mapping[str, Texts]] = {
    "model": {
        **{name: Texts(templates=CLIP_KINETICS) for name in (*_KINETICS, "k600-zero-shot", "mit", "hmdb51")},
        "ucf101": Texts(templates=CLIP_UCF101),
        "ssv2": Texts(templates=("{}",)),
    },
    "umt": {  # its configs; B/16 without training on LSMDC takes 64
        name: Texts("umt", length)
        for name, length in {
            **{"msrvtt": 32, "msvd": 64, "didemo": 64, "activitynet": 150, "lsmdc": 96, "msrvtt-mc": 32},
            **{"ssv2-label": 25, "ssv2-template": 25, "msrvtt-qa": 25, "msvd-qa": 25, "activitynet-qa": 25},
        }.items()
    },
    "viclip": _VICLIP | {name: Texts("umt", 32, VICLIP_28, "cosines") for name in (*_KINETICS, "ssv2")},
    "viclip-16": _VICLIP | {name: Texts("umt", 32, VICLIP_16, "cosines") for name in (*_KINETICS, "ssv2")},
}
"""By whose test, then by benchmark. `model` cleans and cuts as the model does and takes CLIP's prompts."""


def texts_of(protocol: TextProtocol, benchmark: str) -> Texts:
    """How the tests of `protocol` read the texts of a benchmark; HarvestError where they have none on it."""
    found = TEXTS[protocol]
    if benchmark not in found and protocol != "model":
        raise HarvestError(f"{protocol} has no test on {benchmark}; it has on {', '.join(found)}")
    return found.get(benchmark, Texts())
