"""Which tubelets and which words an encoder sees. Pure functions of tensors and a generator."""

from harvest.tokens.selectors import attention_keep, random_keep, tube_keep
from harvest.tokens.words import mask_text

__all__ = ["attention_keep", "mask_text", "random_keep", "tube_keep"]
