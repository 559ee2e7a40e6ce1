"""How fast are videos indexed, beside a plain script? `python -m experiments.indexing --clips CLIPS --model CLIP`

The plain way: every clip decoded by PyAV, a frame a second through transformers' CLIPImageProcessor and its image
tower in fp32, 32 at a time. Ours: what `harvest index` does with the same files, in windows that overlap by half. Both
encode each second once; the ways take turns, and the fastest turn of each counts, as wall time and as CPU time with
that of the processes that decode.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
import transformers
from numpy.typing import NDArray
from torch import Tensor

from experiments import main
from harvest.data.video import VideoError, probe
from harvest.plain_types import Precision
from harvest.progress import say
from harvest.search.encoders.torch_encoder import TorchEncoder
from harvest.search.library.decoding import Decoders
from harvest.search.library.embedding import embed_moments
from harvest.search.library.segmentation import Segmentation

BATCH = 32


@dataclass(frozen=True)
class Turn:
    wall_s: float
    cpu_s: float
    frames: int
    vectors: Tensor  # [clips, E]: the mean of each clip's vectors, of unit length


def pictures(path: Path) -> Iterator[NDArray[np.uint8]]:
    """The first picture of each second."""
    second = -1.0
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            if frame.time is not None and frame.time >= second + 1:
                second = float(int(frame.time))
                yield frame.to_ndarray(format="rgb24")


def plain(paths: list[Path], folder: Path) -> tuple[int, list[Tensor]]:
    model = transformers.CLIPVisionModelWithProjection.from_pretrained(folder).eval()
    processor = transformers.CLIPImageProcessor.from_pretrained(folder)
    waiting: list[tuple[int, NDArray[np.uint8]]] = []
    found: list[list[Tensor]] = [[] for _ in paths]

    def encode() -> None:
        pixels = processor(images=[picture for _, picture in waiting], return_tensors="pt")["pixel_values"]
        for (number, _), vector in zip(waiting, model(pixels).image_embeds, strict=True):
            found[number].append(vector)
        waiting.clear()

    with torch.inference_mode():
        for number, path in enumerate(paths):
            for picture in pictures(path):
                waiting.append((number, picture))
                if len(waiting) == BATCH:
                    encode()
        if waiting:
            encode()
    frames = sum(len(vectors) for vectors in found)
    return frames, [F.normalize(torch.stack(vectors), dim=-1).mean(dim=0) for vectors in found]


def ours(
    paths: list[Path], encoder: TorchEncoder, segmentation: Segmentation, precision: Precision
) -> tuple[int, list[Tensor]]:
    frames = 0

    def count(module: torch.nn.Module, given: tuple[Tensor, ...]) -> None:
        nonlocal frames
        frames += given[0].shape[0] * given[0].shape[1]

    hook = encoder.model.video.register_forward_pre_hook(count)
    with Decoders(1) as decoders:
        decoders.start()
        made = embed_moments(encoder, paths, segmentation, decoders=decoders, precision=precision)
    hook.remove()
    found = [
        torch.from_numpy(one.spans.vectors).mean(dim=0) for one in made if not isinstance(one, VideoError)
    ]
    return frames, found


def timed(work: Callable[[], tuple[int, list[Tensor]]]) -> Turn:
    def cpu_s() -> float:
        own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        return sum(one.ru_utime + one.ru_stime for one in (own, children))

    began, used = time.perf_counter(), cpu_s()
    frames, vectors = work()
    return Turn(
        time.perf_counter() - began, cpu_s() - used, frames, F.normalize(torch.stack(vectors), dim=-1)
    )


def indexing(clips: Path, model: Path, most: int = 40, turns: int = 3, threads: int = 2) -> None:
    """Index clips with a CLIP image tower, beside a plain script.

    $ python -m experiments.indexing --clips CLIPS --model CLIP

    Args:
        clips: Folder of videos, of which those are taken that PyAV reads.
        model: Folder of a transformers CLIP.
        most: Videos, the first by name.
        turns: Of each way.
        threads: PyTorch computes with.
    """
    torch.set_num_threads(threads)
    paths, seconds = [], 0.0
    for path in sorted(clips.iterdir()):
        if len(paths) < most and path.suffix in (".mp4", ".webm", ".mkv", ".avi"):
            paths.append(path)
            seconds += probe(path).duration_s
    loaded = TorchEncoder(str(model))
    by_second = Segmentation(frames_per_s=1.0)
    ways: dict[str, Callable[[], tuple[int, list[Tensor]]]] = {
        "plain script, fp32": lambda: plain(paths, model),
        "a frame a second, bf16": lambda: ours(paths, loaded, by_second, "bf16"),
        "a frame a second, fp32": lambda: ours(paths, loaded, by_second, "fp32"),
    }
    best: dict[str, Turn] = {}
    for _ in range(turns):
        for name, work in ways.items():
            turn = timed(work)
            say(f"{name}: {turn.wall_s:.1f} s, {turn.cpu_s:.1f} s of CPU")
            if name not in best or turn.cpu_s < best[name].cpu_s:
                best[name] = turn
    first = best["plain script, fp32"]
    by_moment, _ = ours(paths, TorchEncoder("mini-image"), Segmentation(num_frames=8), "fp32")
    print(
        f"{len(paths)} clips, {seconds:.0f} s of video, {threads} threads; with 8 frames a moment {by_moment} frames\n"
    )
    print(
        "| | frames | frames a second of video | wall s | CPU s | faster, CPU | cosine with the plain script, least |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, turn in best.items():
        cosine = float((turn.vectors * first.vectors).sum(dim=1).min())
        print(
            f"| {name} | {turn.frames} | {turn.frames / seconds:.2f} | {turn.wall_s:.1f} | {turn.cpu_s:.1f} "
            f"| {first.cpu_s / turn.cpu_s:.2f} | {cosine:.4f} |"
        )


if __name__ == "__main__":
    main(indexing)
