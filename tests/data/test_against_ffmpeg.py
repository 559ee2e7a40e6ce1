"""Real clips: every frame and its time against FFmpeg's own decoding. Skips itself without FFmpeg or the clips.

HARVEST_CLIPS=all compares all of them; HARVEST_FFMPEG names another FFmpeg than the one on the path.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from harvest.data.video.decoding import frames_in_order
from harvest.data.video.opening import opened, timeline_of
from harvest.data.video.source import VideoError

CLIPS = Path(__file__).parents[3] / "shared/clips"
FFMPEG = os.environ.get("HARVEST_FFMPEG") or shutil.which("ffmpeg")
pytestmark = [
    pytest.mark.skipif(not CLIPS.exists(), reason="the real clips are not here"),
    pytest.mark.skipif(FFMPEG is None, reason="FFmpeg is not on the path"),
]
EVERY = 1 if os.environ.get("HARVEST_CLIPS") == "all" else 60

DAMAGED = {"decord__corrupted.mp4", "media__sample_with_invalid_nalu.mp4"}
"""FFmpeg decodes on behind a packet that is broken; here the file is refused. The frames before it are the same."""
BY_VERSION = {
    "Human-Action-Recognition-UCF101__v_BenchPress_g01_c02.avi",
    "Human-Action-Recognition-UCF101__v_BenchPress_g01_c03.avi",
    "VGen__v_PlayingGuitar_g07_c01.avi",
    "VGen__v_PlayingGuitar_g11_c01.avi",
    "VGen__v_PlayingGuitar_g18_c01.avi",
    "tiny-ucf101__v_Basketball_g01_c01.avi",
}
"""MPEG-4 whose pixels depend on FFmpeg's version: 5.1 and 9.0 differ, and agree with `-flags bitexact -idct simple`."""


class Frames(NamedTuple):
    times_s: list[float]
    hashes: list[str]
    error: str = ""
    are_counted: bool = False


@pytest.mark.timeout(0)
def test_frames_and_times_are_those_of_ffmpeg() -> None:
    files = sorted(path for path in CLIPS.rglob("*.*") if path.suffix not in (".csv", ".jpg"))[::EVERY]
    kinds: Counter[str] = Counter()
    for path in files:
        stream, mine = ours(path)
        theirs = ffmpegs(path, stream)
        kind = compare(path.name, mine, theirs)
        kinds[kind] += 1
        kinds["frames"] += len(mine.hashes)
    print(f"\n{len(files)} files: {dict(kinds)}")


def compare(name: str, mine: Frames, theirs: Frames) -> str:
    if not theirs.hashes:
        assert not mine.hashes and mine.error, name
        return "refused by both"
    if name in DAMAGED:
        assert mine.error and mine.hashes == theirs.hashes[: len(mine.hashes)], name
        return "damaged, refused here"
    assert not mine.error, (name, mine.error)
    assert len(mine.hashes) == len(theirs.hashes), name
    if name not in BY_VERSION:
        assert mine.hashes == theirs.hashes, name
    if mine.are_counted:
        assert set(theirs.times_s) == {0.0}, name
        return "equal frames, times lost in the file and counted here"
    assert mine.times_s == pytest.approx(theirs.times_s, abs=1e-6), name
    return "equal" if mine.hashes == theirs.hashes else "equal times, pixels by FFmpeg's version"


def ours(path: Path) -> tuple[str, Frames]:
    stream, times, hashes, counted = "v:0", [], [], False
    try:
        with opened(path) as (container, video):
            stream, clock = str(video.index), timeline_of(path, container, video).clock
            counted = clock.counted
        with opened(path) as (container, video):
            for pts, frame in frames_in_order(container, video, clock):
                times.append(clock.seconds(pts))
                hashes.append(content(frame))
    except VideoError as error:
        return stream, Frames(times, hashes, error.reason, counted)
    return stream, Frames(times, hashes, "" if times else "no frames", counted)


def ffmpegs(path: Path, stream: str) -> Frames:
    words = [
        str(FFMPEG),
        *["-nostdin", "-v", "error", "-noautorotate", "-copyts", "-threads", "1"],
        "-i",
        str(path),
    ]
    words += [
        "-map",
        f"0:{stream}",
        *["-fps_mode", "passthrough", "-enc_time_base", own_clock(), "-f", "framemd5", "-"],
    ]
    found = subprocess.run(words, capture_output=True, timeout=300, check=False).stdout.decode()
    base, stamps, hashes = Fraction(1), [], []
    for line in found.splitlines():
        if line.startswith("#tb"):
            base = Fraction(line.split(":")[1].strip())
        elif not line.startswith("#"):
            parts = [part.strip() for part in line.split(",")]
            stamps.append(int(parts[2]))
            hashes.append(parts[5])
    return Frames([float((stamp - min(stamps)) * base) for stamp in stamps], hashes)


@functools.cache
def own_clock() -> str:
    """FFmpeg's word for a stream's own time base, which changed with version 6.1."""
    said = subprocess.run([str(FFMPEG), "-version"], capture_output=True, check=True, text=True).stdout
    version = re.search(r"version n?(\d+)", said)
    return "-1" if version and int(version[1]) < 7 else "demux"


def content(frame: Any) -> str:
    """MD5 of a frame's own pixels, as FFmpeg's framemd5 lays them out: plane by plane, row by row."""
    form, planes = frame.format, list(frame.planes)
    md5 = hashlib.md5()
    for number, plane in enumerate(planes):
        data = memoryview(plane).cast("B")
        if form.name == "pal8" and number == 1:
            md5.update(data[:1024])
            continue
        sample = (form.components[min(number, len(form.components) - 1)].bits + 7) // 8
        if len(planes) == 1:
            row = plane.width * form.padded_bits_per_pixel // 8
        elif len(planes) == len(form.components) or form.name == "pal8":
            row = plane.width * sample
        else:  # nv12: two samples of colour side by side
            row = plane.width * sample * (1 + (number > 0))
        for start in range(0, plane.height * plane.line_size, plane.line_size):
            md5.update(data[start : start + row])
    return md5.hexdigest()
