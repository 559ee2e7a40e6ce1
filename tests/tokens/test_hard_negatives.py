"""Rules that make a caption false: what they change, what they leave alone, and what stays true backwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvest.data.miniworld.motions import MOTIONS, reverse_of
from harvest.tokens.hard_negatives import RULES, Rule, hard_negatives, reversed_twin

SHARED = Path(__file__).resolve().parents[3] / "shared"


def of(caption: str, rule: Rule) -> list[str]:
    return [found.text for found in hard_negatives(caption, rules=(rule,))]


@pytest.mark.parametrize(
    ("caption", "rule", "false"),
    [
        ("a red circle moves to the upper left", "direction", "a red circle moves to the lower right"),
        ("Left and then right", "direction", "Right and then left"),
        ("it turns counterclockwise", "direction", "it turns clockwise"),
        ("a dog runs out of the house", "direction", "a dog runs into the house"),
        ("the square jumps before the star", "order", "the square jumps after the star"),
        ("the star jumps first, the ring second", "order", "the star jumps second, the ring first"),
        ("first a man sits, then a dog barks", "order", "first a dog barks, then a man sits"),
        (
            "first the red square jumps, then the blue star",
            "order",
            "first the blue star jumps, then the red square",
        ),
        ("A man enters. ", "action", "A man exits. "),
        ("she is turning on the light", "action", "she is turning off the light"),
        ("the ring gets bigger and then smaller", "action", "the ring gets smaller and then bigger"),
        ("a red ring beside a blue star", "attribute", "a blue ring beside a red star"),
    ],
)
def test_what_a_rule_says(caption: str, rule: Rule, false: str) -> None:
    assert of(caption, rule) == [false]


@pytest.mark.parametrize(
    ("caption", "rule"),
    [
        ("she picks up the cup", "direction"),
        ("he sat down", "direction"),
        ("right before he left the room", "direction"),
        ("a man talks while a dog barks", "order"),
        ("he opens the door, then leaves", "order"),  # no second subject
        ("a door is left open", "action"),
        ("a bluebird", "attribute"),
        ("", "direction"),
    ],
)
def test_what_a_rule_is_not_sure_of_it_leaves_alone(caption: str, rule: Rule) -> None:
    assert of(caption, rule) == []


def test_one_of_each_rule_comes_first() -> None:
    found = hard_negatives("a red dog runs left, then a cat jumps up and opens a door")[:3]
    assert [negative.rule for negative in found] == ["direction", "order", "action"]


@given(st.text(max_size=200))
def test_any_text_gives_different_sentences(text: str) -> None:
    found = [negative.text for negative in hard_negatives(text)]
    assert len(set(found)) == len(found) and all(other.lower() != text.lower() for other in found)
    assert reversed_twin(text) != text


def test_the_twin_of_a_motion_is_its_reverse() -> None:
    """In the mini-world the motion that a clip shows backwards is known, so the rule can be held against it."""
    for motion in MOTIONS.values():
        for phrase in motion.phrases:
            twin = reversed_twin(f"a red ring {phrase}")
            if twin is None:
                continue
            backwards = reverse_of(motion.name)
            assert backwards is not None, phrase
            said = twin.removeprefix("a red ring ").replace("bigger", "larger")
            assert said in {other.replace("bigger", "larger") for other in MOTIONS[backwards].phrases}, phrase
    known = [m for m in MOTIONS.values() if reverse_of(m.name) is not None]
    assert all(reversed_twin(f"a red ring {motion.name}") for motion in known)


def test_real_captions() -> None:
    """Every rule finds something in MSR-VTT's captions, and no negative is the caption."""
    path = SHARED / "annotations" / "msrvtt" / "msrvtt_caption_test.json"
    if not path.is_file():
        pytest.skip("no annotations of MSR-VTT here")
    sentences = [text for row in json.loads(path.read_text()) for text in row["caption"]]
    rules = {negative.rule for text in sentences for negative in hard_negatives(text)}
    assert rules == set(RULES)
