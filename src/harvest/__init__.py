"""Harvest: turn an image-text foundation model into a video-language foundation model, cheaply, and use it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harvest.errors import HarvestError

__version__ = "0.1.0"
__all__ = ["HarvestError", "Index", "VideoText", "__version__", "load"]

if TYPE_CHECKING:
    from harvest.api import VideoText, load
    from harvest.search.index import Index


def __getattr__(name: str) -> Any:
    # Imported on first use: `harvest --help` and the workers that draw the mini-world need no PyTorch.
    if name in ("VideoText", "load"):
        from harvest import api

        return getattr(api, name)
    if name == "Index":
        from harvest.search.index import Index

        return Index
    raise AttributeError(f"module 'harvest' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
