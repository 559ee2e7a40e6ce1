"""Sentences that differ from a caption in what matters: its direction, its order of events, its action, its colours.

Captions of a batch seldom differ in the motion or the order alone, so a contrastive loss hardly ever asks for either.
A rule changes a caption into a sentence that is false of the same clip, and that sentence joins the loss of its own
clip as a negative (`objectives.contrast`). Rules know English. What a rule cannot be sure of it leaves alone: "while"
joins events at one time, so swapping its clauses would make a paraphrase and not a negative.

A twin is the sentence that is true of the clip played backwards, where a rule knows it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

Rule = Literal["direction", "order", "action", "attribute"]
RULES: tuple[Rule, ...] = get_args(Rule)


class HardNegative(NamedTuple):
    text: str
    rule: Rule


def _both_ways(pairs: str) -> dict[str, str]:
    """`left/right up/down` as a map each way; words of a phrase are joined by `_`."""
    found: dict[str, str] = {}
    for pair in pairs.split():
        one, other = (side.replace("_", " ") for side in pair.split("/"))
        found |= {one: other, other: one}
    return found


def _inflected(pairs: str) -> dict[str, str]:
    """Pairs of verbs, each given by its five forms joined by commas: open,opens,opening,opened,opened."""
    found: dict[str, str] = {}
    for pair in pairs.split():
        one, other = (side.replace("_", " ").split(",") for side in pair.split("/"))
        for left, right in zip(one, other, strict=True):
            found.setdefault(left, right)
            found.setdefault(right, left)
    return found


def _regular(verb: str) -> str:
    """The five forms of a regular verb, of which the first word is inflected: `turn_on`."""
    word, _, rest = verb.partition("_")
    stem = word[:-1] if word.endswith("e") else word
    s = "es" if word.endswith(("s", "sh", "ch", "x")) else "s"
    return ",".join(
        form + (f"_{rest}" if rest else "")
        for form in (word, word + s, f"{stem}ing", f"{stem}ed", f"{stem}ed")
    )


def _regulars(pairs: str) -> str:
    return " ".join("/".join(_regular(verb) for verb in pair.split("/")) for pair in pairs.split())


DIRECTIONS: Mapping[str, str] = _both_ways(
    "left/right leftwards/rightwards leftward/rightward up/down upwards/downwards upward/downward upper/lower "
    "clockwise/counterclockwise clockwise/anticlockwise forwards/backwards forward/backward into/out_of "
    "towards/away_from toward/away_from northbound/southbound eastbound/westbound "
    "uphill/downhill upstairs/downstairs inside/outside"
) | {"counter-clockwise": "clockwise", "clockwise": "counterclockwise", "away from": "towards"}

ACTIONS: Mapping[str, str] = _inflected(
    _regulars(
        "appear/disappear open/close push/pull enter/exit fold/unfold cover/uncover pack/unpack "
        "turn_on/turn_off inflate/deflate attach/detach load/unload accelerate/brake lock/unlock"
    )
    + " grow,grows,growing,grew,grown/shrink,shrinks,shrinking,shrank,shrunk"
    " rise,rises,rising,rose,risen/fall,falls,falling,fell,fallen"
    " start,starts,starting,started,started/stop,stops,stopping,stopped,stopped"
    " sit_down,sits_down,sitting_down,sat_down,sat_down/stand_up,stands_up,standing_up,stood_up,stood_up"
    " pick_up,picks_up,picking_up,picked_up,picked_up/put_down,puts_down,putting_down,put_down,put_down"
    " put_on,puts_on,putting_on,put_on,put_on/take_off,takes_off,taking_off,took_off,taken_off"
    " throw,throws,throwing,threw,thrown/catch,catches,catching,caught,caught"
) | _both_ways(
    "bigger/smaller taller/shorter faster/slower closer/farther comes_into_view/goes_out_of_view "
    "coming_into_view/going_out_of_view visible/invisible"
) | {"larger": "smaller"}  # fmt: skip

# "picks up", "sits down": the particle belongs to the verb. "right before", "left the room": no direction.
_NO_DIRECTION = re.compile(
    r"(?i)\b(?:pick|sit|stand|get|put|hang|set|wake|clean|mix|cut|break|slow|speed|warm|make|dress|line|open|end|give|"
    r"look|show|take|turn|back|blow|light|lie|lay|write|tie|zip|split|fill|shut|throw)(?:s|es|ing|ting|ed)?"
    r"(?: \w+| the \w+)? (?:up|down)\b"
    r"|\b(?:up and down|down and up|left and right|right and left|left to right and back)\b"
    r"|\b(?:sat|stood|got|hung|woke|broke|made|gave|took|blew|lit|lay|wrote) (?:up|down)\b|\bup to\b|\bclose up\b"
    r"|\bright (?:now|before|after|away|here|there|next|behind|in|on)\b|\ball right\b|\bupside down\b"
    r"|\b(?:in|into|out of|come|comes|coming|goes|going) (?:to |out of |into )?view\b"
    r"|\bleft (?:the|a|an|his|her|their|its|for|over|behind)\b|\b(?:is|are|was|were|has|have|had) left\b"
)
_SUBJECTS = frozenset(
    [
        "a",
        "an",
        "the",
        "he",
        "she",
        "it",
        "they",
        "we",
        "i",
        "you",
        "one",
        "two",
        "three",
        "four",
        "another",
        "some",
        "someone",
        "somebody",
        "people",
        "his",
        "her",
        "their",
        "this",
        "that",
    ]
)

COLOURS = (
    "red",
    "orange",
    "yellow",
    "green",
    "cyan",
    "blue",
    "purple",
    "pink",
    "brown",
    "black",
    "white",
    "grey",
)
_ROUND_TRIP = re.compile(
    r"(?i)\b(?:back|returns?|returning|for a moment|briefly|again|and then|bounc\w+|swing\w*|side to side|up and down|left and right)\b"
)
_TRUE_BACKWARDS: Mapping[str, str] = {
    word: other
    for word, other in ACTIONS.items()
    if word.split()[0] not in ("catch", "throw", "start", "stop")
}


@lru_cache(maxsize=1 << 16)
def hard_negatives(caption: str, *, rules: tuple[Rule, ...] = RULES) -> tuple[HardNegative, ...]:
    """Sentences that a rule makes false of the caption's clip, each different from it and from the others.

    One of each rule comes before a second of any. Empty where no rule applies.
    """
    by_rule = [list(_MAKERS[rule](caption)) for rule in rules]
    found: dict[str, Rule] = {}
    for turn in range(max(map(len, by_rule), default=0)):
        for rule, texts in zip(rules, by_rule, strict=True):
            if turn < len(texts) and _plain(texts[turn]) != _plain(caption):
                found.setdefault(texts[turn], rule)
    return tuple(HardNegative(text, rule) for text, rule in found.items())


def false_sentences(caption: str, *, rules: tuple[Rule, ...] = RULES) -> list[str]:
    """The texts of `hard_negatives`."""
    return [negative.text for negative in hard_negatives(caption, rules=rules)]


def reversed_twin(caption: str) -> str | None:
    """The sentence that is true of the clip played backwards, or None where no rule knows it.

    Directions and changes turn round, and so does the order of events. A caption without either may be true both ways
    ("a dog runs") or not ("a man pours water"), so there is none.
    """
    if _ROUND_TRIP.search(caption):
        return None
    turned = next(_ordered(caption), caption)
    turned = _replaced(_turned(turned), _TRUE_BACKWARDS)
    return turned if _plain(turned) != _plain(caption) else None


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _replaced(text: str, words: Mapping[str, str]) -> str:
    """The text with every word or phrase replaced; longer phrases before their parts."""
    if _first_words(tuple(words)).isdisjoint(re.findall(r"[\w-]+", text.lower())):
        return text  # at once: most rules have nothing to say about most captions

    def other(match: re.Match[str]) -> str:
        new = words[match[0].lower()]
        return new.capitalize() if match[0][0].isupper() else new

    return _any_of(tuple(words)).sub(other, text)


@lru_cache(maxsize=256)
def _first_words(words: tuple[str, ...]) -> frozenset[str]:
    return frozenset(word.split()[0] for word in words)


@lru_cache(maxsize=256)
def _any_of(words: tuple[str, ...]) -> re.Pattern[str]:
    pattern = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return re.compile(rf"(?<![\w-])(?:{pattern})(?![\w-])", flags=re.IGNORECASE)


def _turned(caption: str) -> str:
    """The caption with its directions turned round, and phrases of `_NO_DIRECTION` as they are."""
    if _replaced(caption, DIRECTIONS) == caption:
        return caption
    kept = [match[0] for match in _NO_DIRECTION.finditer(caption)]
    parts = [_replaced(part, DIRECTIONS) for part in _NO_DIRECTION.split(caption)]
    return parts[0] + "".join(phrase + part for phrase, part in zip(kept, parts[1:], strict=True))


def _directed(caption: str) -> Iterator[str]:
    yield _turned(caption)


def _acted(caption: str) -> Iterator[str]:
    if not re.search(r"(?i)\b(?:left|is|are|was|were|an|the|wide) (?:open|close|closed)\b", caption):
        yield _replaced(caption, ACTIONS)


def _attributed(caption: str) -> Iterator[str]:
    """Two different colours are swapped; one alone becomes the next but two of `COLOURS`."""
    named = [word for word in re.findall(r"\w+", caption.lower()) if word in COLOURS]
    different = list(dict.fromkeys(named))
    if len(different) == 2:
        yield _replaced(caption, _both_ways("/".join(different)))
    elif len(different) == 1:
        other = COLOURS[(COLOURS.index(different[0]) + 3) % len(COLOURS)]
        yield _replaced(caption, {different[0]: other})


_FIRST_THEN = re.compile(r"^(?P<a>.+?),? (?P<link>(?:and )?then) (?P<b>.+?)(?P<end>[.!]?)$", re.IGNORECASE)
_FIRST_SECOND = re.compile(r"\b(first|second|last)\b", re.IGNORECASE)
_CONNECTIVES = _both_ways("before/after")


def _ordered(caption: str) -> Iterator[str]:
    """Events in the other order: "before" for "after", "first" for "second", and the clauses around "then"."""
    if re.search(r"\b(before|after)\b", caption, re.IGNORECASE):
        yield _replaced(caption, _CONNECTIVES)
        return
    link = _FIRST_THEN.match(caption)
    if link is not None:
        if (
            link["b"].split()[0].lower() in _SUBJECTS
        ):  # "opens the door, then leaves" has no second subject to move
            yield _clauses_swapped(link)
    elif len(set(map(str.lower, _FIRST_SECOND.findall(caption)))) == 2:
        named = list(dict.fromkeys(word.lower() for word in _FIRST_SECOND.findall(caption)))
        yield _replaced(caption, _both_ways("/".join(named)))


def _clauses_swapped(link: re.Match[str]) -> str:
    """ "first A does it, then B does that" with A and B's clauses swapped; of "then B" alone, with their subjects."""
    a, b = link["a"], link["b"]
    first = re.match(r"(?i)first,? ", a)
    lead, a = (first[0], a[first.end() :]) if first else ("", a)
    length = len(b.split())
    words = a.split()
    if (
        length < len(words) and words[0].lower() == b.split()[0].lower()
    ):  # "the red square jumps, then the star"
        new_a, new_b = " ".join([b, *words[length:]]), " ".join(words[:length])
    else:
        new_a, new_b = b, a
    if not lead and new_a and a[0].isupper():
        new_a, new_b = new_a[0].upper() + new_a[1:], new_b[0].lower() + new_b[1:]
    comma = "," if "," in link[0][link.start("a") + len(link["a"]) : link.start("link")] else ""
    return f"{lead}{new_a}{comma} {link['link']} {new_b}{link['end']}"


_MAKERS: Mapping[Rule, Callable[[str], Iterator[str]]] = {
    "direction": _directed,
    "order": _ordered,
    "action": _acted,
    "attribute": _attributed,
}
