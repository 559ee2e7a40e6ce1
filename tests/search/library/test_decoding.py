from __future__ import annotations

import os
import time
from itertools import pairwise
from pathlib import Path

import pytest

from harvest.data.video import VideoError
from harvest.interfaces import Squares
from harvest.search.library.decoding import Decoders
from harvest.search.library.segmentation import Cut, Segmentation, Window, windows

from ..conftest import write_long

SQUARES: Squares = {"image_size": 64, "fit": "crop", "interpolation": "bicubic"}


def crash(path: Path) -> None:
    os.abort()


def hang(path: Path) -> None:
    time.sleep(60)


def fail(path: Path) -> None:
    raise KeyError("nobody foresaw this")


def test_a_file_costs_itself_alone(tmp_path: Path) -> None:
    with Decoders(1, limit_s=3.0) as decoders:
        decoders.start()
        for function, reason in ((crash, "crashed"), (hang, "longer than 3 s"), (fail, "nobody foresaw")):
            with pytest.raises(VideoError, match=reason):
                decoders(function, tmp_path / "a.mp4")
            assert decoders(os.path.basename, tmp_path / "b.mp4") == "b.mp4"
        with pytest.raises(VideoError, match="no such file"):
            list(decoders.windows(tmp_path / "c.mp4", Segmentation(), num_frames=4, squares=SQUARES))


def test_windows_are_those_that_are_read_here(tmp_path: Path) -> None:
    write_long(tmp_path / "a.mp4", range(6))
    segmentation = Segmentation(window_s=0.5, overlap=0.5)
    here = list(windows(tmp_path / "a.mp4", segmentation, num_frames=4, squares=SQUARES))
    with Decoders(1) as decoders:
        there = list(decoders.windows(tmp_path / "a.mp4", segmentation, num_frames=4, squares=SQUARES))
    assert len(here) == len(there) > 5 and here[-1] == there[-1]
    shared = []
    for found in (here, there):
        ids = [{id(picture) for picture in window.pictures} for window in found if isinstance(window, Window)]
        shared.append([len(one & other) for one, other in pairwise(ids)])
    assert shared[0] == shared[1] and sum(shared[0]) > 0
    for one, other in zip(here, there, strict=True):
        if not isinstance(one, Cut):
            assert isinstance(other, Window) and one[:2] == other[:2]
            assert all((a == b).all() for a, b in zip(one.pictures, other.pictures, strict=True))
