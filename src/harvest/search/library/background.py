"""What makes a score mean something: how high queries score that are about nothing in the library.

The bank is a list of sentences, kept with the library, that none of its videos should match. For each the score of
its best moment is known. The chance of a score is the share of the bank that does as well: were the query nonsense,
it would score as high that often.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harvest.interfaces import HarvestError
from harvest.search.library.store import Floats

LEAST = 20  # sentences: with fewer, no chance below 5 % could be told
BANK_SIZE = 512
MOST_PIECES = 2.0  # of a word, on average, in a vocabulary that has it

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


def default_bank() -> tuple[str, ...]:
    """Sentences in everyday words about scenes that nobody has filmed; the same always."""
    bank = []
    for number in range(BANK_SIZE):
        who, does = number % len(_WHO), number * 7 // 3 % len(_DOES)
        bank.append(f"{_WHO[who]} {_DOES[does]} {_WHERE[(number * 11 + number // 24) % len(_WHERE)]}")
    return tuple(dict.fromkeys(bank))


def knows_everyday_words(count_pieces: Callable[[str], int]) -> bool:
    """Whether a tokenizer has the default bank's words, so that its sentences are more to the model than noise.

    `count_pieces` gives the word pieces of a sentence. CLIP's vocabulary has 1.07 a word, the mini-world's 2.9.
    """
    bank = default_bank()
    return sum(map(count_pieces, bank)) < MOST_PIECES * sum(len(sentence.split()) for sentence in bank)


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
