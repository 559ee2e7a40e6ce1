"""A moment as a small mp4 that every browser plays: H.264 with sound in AAC, for files that it shows without a picture."""

from __future__ import annotations

import math
from pathlib import Path

import av
import numpy as np

from harvest.data.video import VideoError, probe, read_frames, write_video
from harvest.data.video.opening import opened
from harvest.data.video.source import as_source
from harvest.errors import HarvestError
from harvest.files import new_file

FPS = 12.5
SHORT_SIDE = 288
MOST_PIXELS = 640 * 360  # of a picture: all of them are held in memory
LONGEST_S = 20.0
_RATE = 44_100  # samples a second
_AAC_FRAME = 1024  # samples


def write_preview(path: Path, out: Path, *, start_s: float, end_s: float) -> None:
    """A stretch of a video with its sound; of long ones the first `LONGEST_S`. Its clock starts at `start_s`.

    VideoError where the video cannot be read, OSError where the preview cannot be written.
    """
    length_s = min(end_s - start_s, LONGEST_S)
    count = max(1, round(length_s * FPS))
    times_s = start_s + (np.arange(count) + 0.5) / FPS
    info = probe(path)
    short, long = sorted((info.width, info.height))
    size = max(2, min(SHORT_SIDE, math.isqrt(MOST_PIXELS * short // long)))
    frames = read_frames(path, times_s, image_size=size, fit=None).pixels
    height, width = (side - side % 2 for side in frames.shape[-2:])
    try:
        write_video(out, frames[..., :height, :width], fps=FPS, crf=24)
        samples = read_sound(path, start_s=start_s, length_s=count / FPS)
        if samples is not None:
            _add_sound(out, samples)
    except VideoError:
        raise
    except HarvestError as error:  # here no user's mistake
        raise OSError(str(error)) from error


def read_sound(path: Path, *, start_s: float, length_s: float) -> np.ndarray | None:
    """The sound of a stretch, counted from the first picture on, fp32 `[2, samples]`; None where there is none."""
    with opened(as_source(path)) as (container, video):
        if not container.streams.audio:
            return None
        audio = container.streams.audio[0]
        begin_s = start_s + float((video.start_time or 0) * video.time_base)
        samples = np.zeros((2, round(length_s * _RATE)), np.float32)
        resampler = av.AudioResampler(format="fltp", layout="stereo", rate=_RATE)
        place: int | None = None
        try:
            container.seek(max(0, int(begin_s * av.time_base)))
            for frame in container.decode(audio):
                if frame.time is None:
                    continue
                if place is None:
                    place = round((frame.time - begin_s) * _RATE)
                for part in resampler.resample(frame):
                    sound = part.to_ndarray()
                    first, last = max(0, place), min(samples.shape[1], place + sound.shape[1])
                    if last > first:
                        samples[:, first:last] = sound[:, first - place : last - place]
                    place += sound.shape[1]
                if place >= samples.shape[1]:
                    break
        except av.FFmpegError:  # as much as can be read
            pass
        return None if place is None else samples


def _add_sound(path: Path, samples: np.ndarray) -> None:
    with (
        new_file(path, flush=False) as part,
        av.open(str(path)) as silent,
        av.open(str(part), "w", format="mp4", options={"movflags": "+faststart"}) as container,
    ):
        pictures = container.add_stream_from_template(silent.streams.video[0])
        sound = container.add_stream("aac", rate=_RATE, layout="stereo")
        for packet in silent.demux(video=0):
            if packet.dts is not None:
                packet.stream = pictures
                container.mux(packet)
        for first in range(0, samples.shape[1], _AAC_FRAME):
            block = np.ascontiguousarray(samples[:, first : first + _AAC_FRAME])
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = _RATE, first
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
