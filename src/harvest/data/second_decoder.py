"""torchcodec behind the reader of `data.video`: the same frames at the same times, decoded by another library.

What a file is, how long it is and which times are wanted is found by `data.video` as ever; here frames are fetched.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from torch import Tensor

from harvest.interfaces import HarvestError


@dataclass(frozen=True)
class Fetched:
    """Frames in the order asked for, uint8 `[N, 3, H, W]`, not scaled, and from when to when each is shown."""

    frames: Tensor
    start_s: list[float]  # by the stream's own clock, as all times here
    end_s: list[float]
    last_end_s: float  # of the stream


@cache
def check_decoder(name: str) -> None:
    """Can this decoder be used here? Raises HarvestError with what is missing."""
    if name == "pyav":
        return
    if name != "torchcodec":
        raise HarvestError(f"data.decoder: expected pyav or torchcodec, got {name!r}")
    try:
        import torchcodec.decoders  # noqa: F401
    except ImportError as error:
        raise HarvestError(
            "data.decoder torchcodec: it is not installed: pip install 'harvest-video[torchcodec]', or take"
            " data.decoder pyav"
        ) from error
    except (RuntimeError, OSError) as error:  # how it says that it found no FFmpeg
        raise HarvestError(
            "data.decoder torchcodec: it needs the libraries of FFmpeg (version 4 to 8) on this machine and a torch"
            f" that it was built for ({str(error).strip().splitlines()[0]}); or take data.decoder pyav"
        ) from error


def fetch(source: str | bytes, times_s: list[float], *, stream: int) -> Fetched | None:
    """The frames shown at `times_s` of the video stream with this number. None where torchcodec cannot say."""
    from torchcodec.decoders import VideoDecoder

    try:
        decoder = VideoDecoder(source, stream_index=stream, num_ffmpeg_threads=1, seek_mode="exact")
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
