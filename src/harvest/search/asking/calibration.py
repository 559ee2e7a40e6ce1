"""What a score means: how high queries score that are about nothing in the library.

The bank is a list of sentences, kept with the library, that none of its videos should match. For each the score of
its best moment is known. The chance of a score is the share of the bank that does as well: were the query nonsense,
it would score as high that often.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harvest.errors import HarvestError
from harvest.plain_types import OnProgress
from harvest.search.encoders.encoder import Encoder, knows_everyday_words
from harvest.search.encoders.opening import open_encoder
from harvest.search.library.folder import Library
from harvest.search.library.store import Floats, Store, apart
from harvest.search.results import Match
from harvest.settings import parse

LEAST = 20  # sentences: with fewer, no chance below 5 % could be told
BANK_SIZE = 512
MAX_RERANK = 200  # answers read again
GOOD = 0.01  # chance of a hit up to which it counts as a good match

# Everyday words in scenes that nobody has filmed.
_WHO = [
    "an astronaut",
    "a polar bear",
    "a string quartet",
    "two knights in armour",
    "a giant snail",
    "a judge in a wig",
    "a penguin",
    "a team of surgeons",
    "a marble statue",
    "a kangaroo",
    "an opera singer",
    "a row of robots",
    "a medieval monk",
    "an octopus",
    "a sumo wrestler",
    "three mermaids",
    "a clown on stilts",
    "a beekeeper",
    "a blue elephant",
    "a deep-sea diver",
    "a chess champion",
    "a flock of flamingos",
    "a blacksmith",
    "a ballet dancer",
]
_DOES = [
    "ironing shirts",
    "peeling an enormous onion",
    "painting a submarine yellow",
    "juggling typewriters",
    "knitting a tent",
    "arguing with a vending machine",
    "milking a cow",
    "conducting an orchestra",
    "sawing a piano in half",
    "frying pancakes",
    "repairing a steam engine",
    "building a wall of cheese",
    "sorting postage stamps",
    "riding a unicycle backwards",
    "watering plastic plants",
    "polishing a telescope",
    "folding paper cranes",
    "herding sheep",
    "playing the bagpipes",
    "selling lottery tickets",
    "measuring a door",
    "counting coins",
    "blowing glass",
    "digging for treasure",
]
_WHERE = [
    "on the moon",
    "in an empty swimming pool",
    "inside a volcano",
    "on top of a bus",
    "in a library at night",
    "on a melting iceberg",
    "in a coral reef",
    "on a tightrope",
    "in a hall of mirrors",
    "at the north pole",
    "in a bank vault",
    "on a roller coaster",
    "inside a whale",
    "on a desert motorway",
    "in a greenhouse full of cacti",
    "on the wing of an aeroplane",
    "in a salt mine",
    "on a chess board",
    "in a windmill",
    "under a waterfall",
    "in an operating theatre",
    "on a raft",
    "in a sandstorm",
    "in a lift",
]


# Sentences that a library may be asked, of which its page proposes those that find most.
EVERYDAY = [
    "a person talking to the camera",
    "a dog running",
    "a cat",
    "children playing",
    "a car on a road",
    "people at a table",
    "the sea",
    "a bird",
    "cooking",
    "a street in a city",
    "snow",
    "a football match",
    "dancing",
    "a train",
    "flowers",
    "a concert",
    "a boat",
    "mountains",
    "fire",
    "a person riding a bicycle",
]
SHAPES = [
    "a red circle moves to the left",
    "a green square moves up",
    "a blue triangle spins",
    "a yellow star",
    "a purple ring",
    "an orange cross",
    "a white square grows",
    "a red triangle shrinks",
    "a blue circle moves down",
    "a green star",
]


def default_bank() -> tuple[str, ...]:
    """Sentences in everyday words about scenes that nobody has filmed; the same always."""
    bank = []
    for number in range(BANK_SIZE):
        who, does = number % len(_WHO), number * 7 // 3 % len(_DOES)
        bank.append(f"{_WHO[who]} {_DOES[does]} {_WHERE[(number * 11 + number // 24) % len(_WHERE)]}")
    return tuple(dict.fromkeys(bank))


def read_bank(background: str | Path | Sequence[str]) -> tuple[str, ...]:
    """Sentences from a list, or from a text file with one a line."""
    if isinstance(background, str | Path):
        try:
            lines = Path(background).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise HarvestError(f"background {background}: cannot be read: {error}") from error
    else:
        lines = list(background)
    bank = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if len(bank) < LEAST:
        raise HarvestError(f"background: expected at least {LEAST} different sentences, got {len(bank)}")
    return bank


class Calibration(NamedTuple):
    """The best score of every background query, ascending; None where it is not known."""

    embedded: Floats | None  # cosines
    reranked: Floats | None  # agreements, of moments that the matching head has read

    def chance_of(self, score: float, agreement: float | None) -> float | None:
        """The chance of a moment, by what says most of it."""
        if agreement is not None and self.reranked is not None:
            return chance_of(agreement, self.reranked)
        return None if self.embedded is None else chance_of(score, self.embedded)


def chance_of(score: float, tops: Floats) -> float:
    """The share of background queries whose best moment scores at least as high, counting this query with them."""
    return (1 + int(np.count_nonzero(tops >= score))) / (1 + len(tops))


def match_of(chance: float | None, false_accept: float) -> Match | None:
    """A chance in a word."""
    if chance is None:
        return None
    return "unlikely" if chance > false_accept else "good" if chance <= GOOD else "possible"


def is_calibrated(library: Library) -> bool:
    needed = ["tops", "tops_reranked"] if library.facts.rerank else ["tops"]
    is_stale = bool(library.database.get("stale"))
    return not is_stale and all(library.database.get(name) is not None for name in needed)


def calibrate(
    library: Library,
    model: Encoder | None,
    background: Sequence[str] | None,
    progress: OnProgress | None,
) -> None:
    """Embed the bank of background queries, if it is new, and note how high each scores in the library now."""
    database = library.database
    stored = database.get("background")
    texts: Sequence[str] = parse(
        tuple[str, ...], database.get("background_texts") or b"[]", where=database.name
    )
    new_texts: tuple[str, ...] = ()
    if background is not None:
        new_texts = tuple(background)
    elif stored is None:
        model = model or open_encoder(library.facts.model)
        if knows_everyday_words(model):
            new_texts = default_bank()
    if new_texts:
        model = model or open_encoder(library.facts.model)
        vectors = model.embed_texts(new_texts)
        stored, texts = vectors.astype("<f4").tobytes(), new_texts
    bank: Floats = np.frombuffer(stored or b"", "<f4").reshape(-1, library.facts.width)
    facts = {"background": bank.tobytes(), "tops": tops_of(library.store, bank).tobytes()}
    if texts:
        facts["background_texts"] = json.dumps(texts).encode()
    database.remove("tops_reranked")  # never those of another state of the library
    if not library.facts.rerank:
        database.set(**facts, stale=b"")
    else:
        database.set(**facts)
        model = model or open_encoder(library.facts.model)
        tops = _reranked_tops(library, model, bank, texts, progress)
        database.set(tops_reranked=tops.tobytes(), stale=b"")


def tops_of(store: Store, bank: Floats) -> Floats:
    """The score of the best moment for every background query, fp32 `[Q]`, ascending."""
    tops: Floats = np.sort(store.best_scores(bank)).astype("<f4")
    return tops


def _reranked_tops(
    library: Library, model: Encoder, bank: Floats, texts: Sequence[str], progress: OnProgress | None
) -> Floats:
    """The best agreement among the first answers to every background query, fp32 `[Q]`, ascending."""
    from harvest.search.asking.reranking import Reranker

    files = {id: Path(entry.root) / entry.path for id, entry in library.store.entries().items()}
    reranker = Reranker(model, library.facts.segmentation, files.__getitem__)
    tops = []
    for place, (text, query) in enumerate(zip(texts, bank, strict=True)):
        most = library.facts.rerank
        near = apart(library.store.nearest(query, 4 * most + 16), most)
        found = [value for value in reranker.agreements(text, near)[0] if value is not None]
        tops.append(max(found, default=-np.inf))
        if progress is not None:
            progress(place + 1, len(texts))
    return np.sort(np.array(tops, "<f4"))
