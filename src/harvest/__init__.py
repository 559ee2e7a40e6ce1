"""Harvest: turn an image-text foundation model into a video-text foundation model, cheaply, and use it.

>>> model = harvest.load("runs/demo/model")       # or a hub name, a model folder, a weights file, "mini-image"
>>> videos = model.embed_videos(["a.mp4", "b.mp4"])
>>> texts = model.embed_texts(["a red circle moves to the left"])
>>> model.similarity(texts, videos)               # cosines
>>> model.classify(["a.mp4"], ["running", "swimming"])
>>> model.answer("a.mp4", "what colour is the circle?", ["red", "blue"])

`harvest.load` opens a model as `VideoText`; its methods embed videos, pictures, frames and texts, classify, answer and
re-rank. `harvest.Index` searches a library that `harvest index` made. Mistakes raise `HarvestError`, whose message says
what to do. Training, evaluation and the rest are commands: `harvest --help`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harvest.errors import HarvestError, need_torch

__version__ = "0.1.0"
__all__ = ["HarvestError", "Index", "VideoText", "__version__", "load"]

if TYPE_CHECKING:
    from harvest.api import VideoText, load
    from harvest.search.index import Index


def __getattr__(name: str) -> Any:
    # Imported on first use: `harvest --help` and the workers that draw the mini-world need no PyTorch.
    if name in ("VideoText", "load"):
        need_torch(f"harvest.{name}")
        from harvest import api

        return getattr(api, name)
    if name == "Index":
        from harvest.search.index import Index

        return Index
    raise AttributeError(f"module 'harvest' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
