"""Which library computes a model."""

from __future__ import annotations

from harvest.errors import need_torch
from harvest.model.importing.sources import find_local, is_onnx_export
from harvest.search.encoders.encoder import Encoder


def open_encoder(source: str) -> Encoder:
    """The model that a source names, in PyTorch, or in ONNX Runtime where it is a folder that `harvest export` wrote."""
    path = find_local(source)
    if is_onnx_export(path):
        from harvest.search.encoders.onnx_encoder import OnnxEncoder

        return OnnxEncoder(path)
    need_torch(f"{source}, which is no ONNX export (harvest export MODEL OUT --format onnx),")
    from harvest.search.encoders.torch_encoder import TorchEncoder

    return TorchEncoder(source)
