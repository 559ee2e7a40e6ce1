"""torchcodec behind the reader: the same frames at the same times, decoded by another library.

What a file is, how long it is and which times are wanted is found with PyAV as ever; here frames are fetched, on the
CPU or, with `torchcodec_cuda`, by the decoding units of an NVIDIA GPU (NVDEC). Numbers and times of the frames are the
same, their pixels a few levels apart, since torchcodec scales and converts colours otherwise.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import av
import numpy as np

from harvest.data.geometry import cut_square, scaled_size
from harvest.data.video.decoding import Shown
from harvest.data.video.frames import Fitting, check_shape, square_pixels
from harvest.data.video.source import PackedVideo, Source
from harvest.errors import HarvestError

if TYPE_CHECKING:
    from torch import Tensor

Decoder = Literal["auto", "pyav", "torchcodec", "torchcodec_cuda"]
Found = Literal["pyav", "torchcodec", "torchcodec_cuda"]


@dataclass(frozen=True)
class Fetched:
    """Frames in the order asked for, uint8 `[N, 3, H, W]`, not scaled, and from when to when each is shown."""

    frames: Tensor  # where they were decoded
    start_s: list[float]  # by the stream's own clock, as all times here
    end_s: list[float]
    last_end_s: float  # of the stream


def find_decoder(name: str) -> Found:
    """The decoder that `data.decoder` means on this machine: auto is torchcodec where it can use a GPU, else PyAV.

    Raises HarvestError with what is missing for one that cannot be used here.
    """
    return _find(name, os.getpid())


@cache
def _find(name: str, process: int) -> Found:
    """Found out anew in every process: a GPU that a parent uses is out of reach of what it forks."""
    if name == "pyav":
        return "pyav"
    if name == "torchcodec":
        _need_torchcodec(name)
        return "torchcodec"
    if name == "torchcodec_cuda":
        _need_torchcodec(name)
        _need_gpu(name)
        return "torchcodec_cuda"
    if name != "auto":
        raise HarvestError(f"data.decoder: expected auto, pyav, torchcodec or torchcodec_cuda, got {name!r}")
    try:
        return _find("torchcodec_cuda", process)
    except HarvestError:
        return "pyav"


def _need_torchcodec(name: str) -> None:
    try:
        import torchcodec.decoders  # noqa: F401
    except ImportError as error:
        raise HarvestError(
            f"data.decoder {name}: torchcodec is not installed: pip install torchcodec, or take"
            " data.decoder pyav"
        ) from error
    except (RuntimeError, OSError) as error:  # how it says that it found no FFmpeg
        raise HarvestError(
            f"data.decoder {name}: it needs the libraries of FFmpeg (version 4 to 8) on this machine and a torch that it"
            f" was built for ({_first_line(error)}); or take data.decoder pyav"
        ) from error


def _need_gpu(name: str) -> None:
    """Raise HarvestError unless a clip can be decoded on the GPU: torchcodec says only then what it was built without."""
    import torch

    if not torch.cuda.is_available():
        raise HarvestError(
            f"data.decoder {name}: PyTorch finds no NVIDIA GPU here, or was built without CUDA: take data.decoder pyav or"
            " torchcodec"
        )
    from torchcodec.decoders import VideoDecoder

    try:
        shown = VideoDecoder(_dark_clip(), device=_device(name)).get_frames_played_at([0.0])
    except (RuntimeError, ValueError, OSError) as error:
        raise HarvestError(
            f"data.decoder {name}: torchcodec cannot decode on {_device(name)} ({_first_line(error)}). It needs a build"
            " for this CUDA, and the driver's NVDEC; or take data.decoder pyav"
        ) from error
    if shown.data.device.type != "cuda":
        raise HarvestError(f"data.decoder {name}: torchcodec decodes on the CPU here: take data.decoder pyav")


def _dark_clip() -> bytes:
    """A second of H.264 to try a decoder on."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=1)
        stream.width, stream.height, stream.pix_fmt = 256, 256, "yuv420p"
        picture = np.zeros((256 * 3 // 2, 256), dtype=np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="yuv420p")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _device(name: str) -> str:
    """Where frames are decoded: beside the model of this rank."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if name == "torchcodec_cuda" else "cpu"


def fetch(
    source: str | bytes, times_s: list[float], *, stream: int, name: str = "torchcodec"
) -> Fetched | None:
    """The frames shown at `times_s` of the video stream with this number. None where torchcodec cannot say."""
    from torchcodec.decoders import VideoDecoder

    try:
        decoder = VideoDecoder(
            source, stream_index=stream, num_ffmpeg_threads=1, seek_mode="exact", device=_device(name)
        )
        known = decoder.metadata
        begin_s, end_s = known.begin_stream_seconds_from_content, known.end_stream_seconds_from_content
        # With any display matrix, be it a mirroring, PyAV is asked, which tells all of it.
        if begin_s is None or end_s is None or known.rotation is not None:
            return None
        inside = [max(begin_s, min(time_s, end_s - 1e-6)) for time_s in times_s]
        found = decoder.get_frames_played_at(inside)
    except (RuntimeError, ValueError, IndexError):
        return None
    starts = found.pts_seconds.tolist()
    # Where an edit list hides the first key frame it has been seen to answer with a frame that is shown later.
    if any(start > time_s for start, time_s in zip(starts, inside, strict=True)):
        return None
    lengths = found.duration_seconds.tolist()
    ends = [start + length for start, length in zip(starts, lengths, strict=True)]
    return Fetched(found.data, starts, ends, end_s)


def read_by_torchcodec(
    path: Source, stream: Any, targets: list[int], fitting: Fitting, decoder: Found
) -> Shown | None:
    """The same frames by another library. None where it declines."""
    from harvest.data.transforms import resize

    tick_s = float(stream.time_base)
    # Between one tick and the next nothing changes: half a tick on, rounding cannot step back to the frame before.
    times_s = [(target + 0.5) * tick_s for target in targets]
    source = path.files[0] if isinstance(path, PackedVideo) else str(path)
    found = fetch(source, times_s, stream=stream.index, name=decoder)
    if found is None:
        return None
    height, width = found.frames.shape[-2:]
    width = square_pixels(width, stream)
    check_shape(width, height)
    frames = resize(
        found.frames, *scaled_size(height, width, fitting.image_size, fitting.fit), fitting.interpolation
    )
    pixels = cut_square(frames.cpu().numpy(), fitting.image_size, fitting.fit)
    is_over = found.end_s[-1] >= found.last_end_s - tick_s
    return Shown(
        [round(start_s / tick_s) for start_s in found.start_s],
        list(pixels),
        round(found.last_end_s / tick_s) if is_over else None,
        (width, height),
    )
