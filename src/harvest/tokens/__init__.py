"""Which tubelets and which words an encoder sees. Pure functions of tensors and a generator."""

from harvest.tokens.change import tubelet_change
from harvest.tokens.choice import Keep, Selection, budget_of, choose, described
from harvest.tokens.selectors import attention_keep, motion_keep, num_kept, random_keep, tube_keep
from harvest.tokens.words import mask_text

__all__ = [
    "Keep",
    "Selection",
    "attention_keep",
    "budget_of",
    "choose",
    "described",
    "mask_text",
    "motion_keep",
    "num_kept",
    "random_keep",
    "tube_keep",
    "tubelet_change",
]
