"""Which questions an objective can learn from: those whose answer is in its vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harvest.data.labels import answered, frequent_answers, read_answers
from harvest.progress import say

if TYPE_CHECKING:
    from harvest.objectives.contract import Rows


def answered_rows(
    vocabulary: str | None, num_answers: int | None, rows: Rows, listed: Path | None
) -> tuple[Rows, list[str]]:
    """The rows whose answer is in the vocabulary, with its number, and the answers: those of a file, or the most
    frequent ones of the rows."""
    names = read_answers(vocabulary) if vocabulary is not None else frequent_answers(list(rows), num_answers)
    kept = answered(rows, names)
    if len(kept) < len(rows):
        say(
            f"the answers of {len(rows) - len(kept)} of {len(rows)} questions are not among the {len(names)}: "
            "they are left out of training"
        )
    return kept, names
