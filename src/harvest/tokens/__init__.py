"""Which tubelets and which words an encoder sees. Pure functions of tensors and a generator."""

from harvest.tokens.change import repeated_change, tubelet_change
from harvest.tokens.select import (
    DropRatio,
    Selection,
    budget_of,
    choose,
    choose_equally,
    described,
    see,
)
from harvest.tokens.selectors import (
    SELECTORS,
    Selector,
    attention_keep,
    motion_keep,
    num_kept,
    random_keep,
    run_length_keep,
    tube_keep,
)
from harvest.tokens.words import at_hidden, mask_text, most_hidden

__all__ = [
    "SELECTORS",
    "DropRatio",
    "Selection",
    "Selector",
    "at_hidden",
    "attention_keep",
    "budget_of",
    "choose",
    "choose_equally",
    "described",
    "mask_text",
    "most_hidden",
    "motion_keep",
    "num_kept",
    "random_keep",
    "repeated_change",
    "run_length_keep",
    "see",
    "tube_keep",
    "tubelet_change",
]
