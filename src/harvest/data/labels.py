"""From a manifest to what a fine-tuned head learns: the classes or answers in their order, and rows with numbers."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harvest.interfaces import Example, HarvestError


def read_class_names(path: str | Path) -> list[str]:
    """Class names in the order of their labels.

    A JSON list, a JSON object from names to numbers or from numbers to names, a .csv with the columns id and name, or
    text with one name a line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")  # a mark before the bracket would make a list of it lines
    except (OSError, UnicodeDecodeError) as error:
        raise HarvestError(f"cannot read names from {path}: {error}") from error
    names: list[Any]
    if path.suffix.lower() == ".csv":
        names = _in_order(path, _table(path, text))
    elif text.lstrip().startswith(("[", "{")):
        try:
            value = json.loads(text, object_pairs_hook=_Pairs)
        except (ValueError, RecursionError) as error:
            kind = "list" if text.lstrip().startswith("[") else "object"
            raise HarvestError(f"{path} begins as a JSON {kind} and is none: {error}") from error
        names = _in_order(path, _numbered(value)) if isinstance(value, _Pairs) else value
    else:
        names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names or not all(isinstance(name, str) for name in names):
        raise HarvestError(
            f"{path}: expected a list of names, one a line or in JSON, or a JSON object of names and their numbers"
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise HarvestError(
            f"{path}: {twice[0]!r} is there {Counter(names)[twice[0]]} times; names must differ"
        )
    return list(names)


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it is written: a dictionary would hide that a key comes twice."""


def _numbered(pairs: _Pairs) -> list[tuple[Any, Any]]:
    """(number, name) of each entry of an object, whichever of the two its keys are."""
    if all(key.isdecimal() and isinstance(value, str) for key, value in pairs):
        return list(pairs)
    return [(value, key) for key, value in pairs]


def _table(path: Path, text: str) -> list[tuple[Any, Any]]:
    """(number, name) of each row of a table with the columns id and name, as kinetics_400_labels.csv is."""
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    if not {"id", "name"} <= set(reader.fieldnames or ()):
        found = ", ".join(reader.fieldnames or ()) or "nothing"
        raise HarvestError(
            f"{path}: expected a table with the columns id and name, found {found:.200}; names one a line belong in a .txt"
        )
    return [(row["id"], row["name"]) for row in reader]


def _in_order(path: Path, numbered: Sequence[tuple[Any, Any]]) -> list[Any]:
    """The names by their numbers, which must be all of 0, 1, …; numbers may be written as text."""
    names = {str(number): name for number, name in numbered}
    wanted = [str(number) for number in range(len(numbered))]
    if names.keys() != set(wanted):
        raise HarvestError(f"{path}: the numbers of the names are not 0 to {len(numbered) - 1}, each once")
    return [names[number] for number in wanted]


def class_names_of(examples: Sequence[Example]) -> list[str]:
    """Class names from a manifest in which the text of every labelled example is its class's name."""
    names: dict[int, str] = {}
    for example in examples:
        if example.label is None or len(example.texts) != 1:
            raise HarvestError(
                f"example {example.id!r} has label {example.label} and {len(example.texts)} texts; without a list "
                "of class names every example needs a label and one text, the name of its class"
            )
        if names.setdefault(example.label, example.texts[0]) != example.texts[0]:
            raise HarvestError(
                f"label {example.label} is called both {names[example.label]!r} and {example.texts[0]!r}: "
                "give the class names as a list"
            )
    absent = sorted(set(range(max(names) + 1)) - names.keys())
    if absent:
        raise HarvestError(
            f"labels {absent[:8]} do not occur, so their names are unknown: give the class names as a list"
        )
    return [names[label] for label in range(len(names))]


def read_answers(path: str | Path) -> list[str]:
    """An official vocabulary of answers in the order of its numbers, in the form that answers are compared in."""
    answers = [plain_answer(answer) for answer in read_class_names(path)]
    if len(set(answers)) < len(answers):
        twice = next(answer for answer, count in Counter(answers).items() if count > 1)
        raise HarvestError(f"{path}: the answer {twice!r} is there more than once")
    return answers


def plain_answer(answer: str) -> str:
    """What answers are compared by: lower case, single spaces, as the official files have them."""
    return " ".join(answer.lower().split())


def frequent_answers(examples: Sequence[Example], most: int | None = None) -> list[str]:
    """The answers of a training set, the most frequent first, of equally frequent ones in alphabetical order."""
    times = Counter(plain_answer(example.answer) for example in examples if example.answer)
    return sorted(times, key=lambda answer: (-times[answer], answer))[:most]


def answered(examples: Sequence[Example], answers: Sequence[str]) -> list[Example]:
    """The rows whose answer is listed, as a text to encode (the question) and a label (the answer's number)."""
    numbers = {answer: number for number, answer in enumerate(answers)}
    rows = []
    for example in examples:
        if not example.question or not example.answer:
            raise HarvestError(
                f"example {example.id!r} has no {'answer' if example.question else 'question'}: both are needed"
            )
        number = numbers.get(plain_answer(example.answer))
        if number is not None:
            rows.append(dataclasses.replace(example, texts=(example.question,), label=number))
    if not rows:
        raise HarvestError(
            "none of the answers of the training set is in the vocabulary: is it another benchmark's?"
        )
    return rows


def boxed(examples: Sequence[Example], num_actions: int) -> list[Example]:
    """The rows with boxes, one a clip, whose labels must be of the actions; captions are left out."""
    rows = [dataclasses.replace(e, texts=(), label=0) for e in examples if e.boxes]
    if not rows:
        raise HarvestError("none of the rows of the training set has boxes: detection needs them")
    for row in rows:
        wrong = [label for box in row.boxes for label in box.labels if not 0 <= label < num_actions]
        if wrong:
            raise HarvestError(
                f"example {row.id!r} has a box with label {wrong[0]}, the actions go from 0 to {num_actions - 1}"
            )
    stretches = Counter((row.video, row.start_s, row.end_s) for row in rows)
    twice = next((row.id for row in rows if stretches[(row.video, row.start_s, row.end_s)] > 1), None)
    if twice is not None:
        raise HarvestError(
            f"example {twice!r} is of the same stretch as another: put all boxes of a picture in one row"
        )
    return rows


def check_equally_many(examples: Sequence[Example]) -> None:
    """Raise HarvestError unless every row is a question with equally many options, of which `label` is right."""
    wanted = len(examples[0].texts) if examples else 0
    for example in examples:
        count = len(example.texts)
        if count < 2 or count != wanted or example.label is None or not 0 <= example.label < count:
            raise HarvestError(
                f"example {example.id!r} has {count} texts and label {example.label}; multiple choice learns from rows "
                f"with equally many options, here {max(wanted, 2)}, and the number of the right one as label"
            )


def labelled(examples: Sequence[Example], num_classes: int) -> list[Example]:
    """The rows with a label or labels, which must be of the classes; captions are left out."""
    rows = [dataclasses.replace(e, texts=()) for e in examples if e.label is not None or e.labels]
    if not rows:
        raise HarvestError("none of the rows of the training set has a label: classification needs them")
    check_labels(rows, num_classes)
    several = [row.id for row in rows if row.labels]
    if several and len(several) < len(rows):
        raise HarvestError(
            f"{len(several)} of {len(rows)} rows have a list of labels (first: {several[0]!r}), the others one "
            "label: give all of them lists"
        )
    return rows


def check_labels(examples: Sequence[Example], num_classes: int) -> None:
    """Raise HarvestError at the first example whose label is no class."""
    for example in examples:
        wrong = [
            label
            for label in (example.labels or (example.label,))
            if label is None or not 0 <= label < num_classes
        ]
        if wrong:
            raise HarvestError(
                f"example {example.id!r} has label {wrong[0]}, the classes go from 0 to {num_classes - 1}"
            )


def check_same_names(learned: Sequence[str], asked: Sequence[str]) -> None:
    """Raise HarvestError where the names a head was trained with are not those it is asked for, in their order."""
    if list(learned) == list(asked):
        return
    if sorted(learned) == sorted(asked):
        place = next(i for i, (a, b) in enumerate(zip(learned, asked, strict=True)) if a != b)
        raise HarvestError(
            f"the class list is in another order than the model's: class {place} is {asked[place]!r}, the model was "
            f"trained with {learned[place]!r} there"
        )
    unknown = [name for name in asked if name not in set(learned)]
    raise HarvestError(
        f"the model was trained on {len(learned)} classes, {len(asked)} are asked for"
        + (f", among them {unknown[0]!r}, which it does not know" if unknown else "")
        + ": its head does not fit this set"
    )
