"""Clips embedded a second, from files, by each way of computing one model: `python -m experiments.embedding_speed`.

A CLIP ViT-B/16 with random weights as a video model; ways take turns, so that what else the machine does costs all of
them alike. OpenVINO is measured where it is installed, the plain way (transformers' CLIP, a picture a second) likewise.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro

from experiments import main
from harvest.data.video import probe, read_clip, read_frames
from harvest.evaluation.embed import encode_clips
from harvest.export.onnx import OnnxOptions, VideoGraph, write_graph
from harvest.interfaces import HarvestError
from harvest.machine import described, hardware
from harvest.model.text_encoder import TextEncoderConfig
from harvest.model.video_encoder import VideoEncoderConfig
from harvest.model.video_text import ModelConfig, VideoTextModel

Way = Callable[[Path], Any]
"""Embeds the clip of a file."""


def embedding_speed(
    folder: Annotated[Path, tyro.conf.Positional],
    /,
    clips: int = 40,
    frames: int = 8,
    width: int = 768,
    depth: int = 12,
    rounds: int = 3,
) -> None:
    """Clips embedded a second, median and range over rounds.

    Args:
        folder: Videos, searched with all that is in it.
        width: Of the tower.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".mp4", ".webm", ".mkv"))[:clips]
    if not paths:
        raise HarvestError(f"{folder}: no videos (.mp4, .webm, .mkv)")
    size = {"width": width, "depth": depth, "num_heads": width // 64, "mlp_width": 4 * width}
    model = VideoTextModel(
        ModelConfig(video=VideoEncoderConfig(num_frames=frames, **size), text=TextEncoderConfig())
    ).eval()
    with tempfile.TemporaryDirectory() as temporary:
        ways = ways_of(model, Path(temporary), size)
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for way in ways.values():
            way(paths[0])  # what is set up once
        for _ in range(rounds):
            for name, way in ways.items():
                started = time.perf_counter()
                for path in paths:
                    way(path)
                rates[name].append(len(paths) / (time.perf_counter() - started))
    print(
        f"{len(paths)} clips of {frames} frames, {rounds} rounds, {torch.get_num_threads()} threads: clips a second"
    )
    for name, found in rates.items():
        print(f"{name:<24} {np.median(found):.2f}  ({min(found):.2f} to {max(found):.2f})")
    print(described(hardware()))


def ways_of(model: VideoTextModel, folder: Path, size: dict[str, int]) -> dict[str, Way]:
    """Every way that this machine has."""
    config = model.config.video

    def pixels(path: Path) -> Any:
        return read_clip(path, num_frames=config.num_frames, **config.squares).pixels[None]

    ways: dict[str, Way] = {
        "PyTorch fp32": lambda path: encode_clips(model, torch.from_numpy(pixels(path))),
        "PyTorch bf16": lambda path: encode_clips(model, torch.from_numpy(pixels(path)), precision="bf16"),
    }
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    for name, int8 in (("fp32", False), ("int8", True)):
        file = folder / f"{name}.onnx"
        graph = VideoGraph(model, OnnxOptions(int8=int8))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            write_graph(graph, graph.example(), graph.dynamic(), file, int8=int8)
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        ways[f"ONNX Runtime {name}"] = lambda path, session=session: session.run(
            None, {"video": pixels(path)}
        )
    if importlib.util.find_spec("openvino") is not None:
        import openvino

        compiled = openvino.compile_model(
            str(folder / "fp32.onnx"), "CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
        )
        ways["OpenVINO fp32"] = lambda path: compiled(pixels(path))
    if importlib.util.find_spec("transformers") is not None:
        ways["transformers, 1 a second"] = plain_way(config.image_size, config.patch_size, size)
    return ways


def plain_way(image_size: int, patch_size: int, size: dict[str, int]) -> Way:
    """transformers' CLIP over a picture a second, the mean of their vectors."""
    import transformers

    vision = transformers.CLIPVisionConfig(
        hidden_size=size["width"],
        intermediate_size=size["mlp_width"],
        num_hidden_layers=size["depth"],
        num_attention_heads=size["num_heads"],
        image_size=image_size,
        patch_size=patch_size,
    )
    tower = transformers.CLIPVisionModelWithProjection(vision).eval()
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )

    def embed(path: Path) -> Any:
        times: Sequence[float] = np.arange(max(1, int(probe(path).duration_s))) + 0.0
        shown = read_frames(path, times, image_size=image_size).frames
        with torch.inference_mode():
            found = tower(pixel_values=(shown / 255 - mean) / std).image_embeds
        return torch.nn.functional.normalize(torch.nn.functional.normalize(found, dim=-1).mean(dim=0), dim=-1)

    return embed


if __name__ == "__main__":
    main(embedding_speed)
