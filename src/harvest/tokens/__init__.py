"""Which tubelets and which words an encoder sees. Pure functions of tensors and a generator."""

from harvest.tokens.selectors import random_keep
from harvest.tokens.words import mask_text

__all__ = ["mask_text", "random_keep"]
