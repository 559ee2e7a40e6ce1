"""Folders generated at random: every file is found, in quarantine or counted as left out, and a second run changes nothing."""

from __future__ import annotations

import os
import random
import shutil
import socket
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import harvest
from harvest.data.video import write_video
from harvest.search.library.files import VIDEO_SUFFIXES
from harvest.search.library.segmentation import Segmentation

# 4 trees in the suite; HARVEST_TREES=2000 for the figures in docs/results.md.
TREES = int(os.environ.get("HARVEST_TREES", "4"))
NAMES = [
    *(
        "a",
        "B",
        "new\nline",
        "esc\x1b[31m",
        "é",
        "e\u0301",
        "фильм",
        "%2e%2e",
        "<img src=x>",
        "a" * 200,
        "  ",
    ),
    *("#hash?query", "[red]x", "\u202egnp", "{{7}}", "a;b", "x.tar", "quote'\"", "back\\slash", "bad\udcff"),
]
SUFFIXES = [".mp4", ".MP4", ".mkv", ".ts", ".gif", ".txt", ".jpg", "", ".mp4.part", ".m2t"]
TIMES_NS = [0, -(10**18), 1, 10**18, 2**63 - 1, 2**62, 253402300799 * 10**9]


def fill(folder: Path, videos: list[Path], draw: random.Random, depth: int = 0) -> None:
    for _ in range(draw.randrange(2, 9)):
        path = folder / (draw.choice(NAMES) + draw.choice(SUFFIXES))
        if path.exists() or path.is_symlink():
            continue
        with suppress(OSError):  # a name too long
            match draw.choice(
                ["video", "video", "video", "junk", "empty", "link", "special", "folder", "sparse"]
            ):
                case "video":
                    shutil.copy(draw.choice(videos), path)
                case "junk":
                    path.write_bytes(bytes(draw.randrange(256) for _ in range(draw.choice([1, 100, 3000]))))
                case "empty":
                    path.touch()
                case "link":
                    path.symlink_to(
                        draw.choice(["nowhere.mp4", path.name, ".", "/dev/zero", "/etc/passwd", "a.mp4"])
                    )
                case "special" if draw.random() < 0.5:
                    os.mkfifo(path)
                case "special":
                    with socket.socket(socket.AF_UNIX) as end:
                        end.bind(str(path))
                case "sparse":
                    path.touch()
                    os.truncate(path, draw.choice([1, 1 << 20, 1 << 28]))
                case "folder" if depth < 4:
                    path.mkdir()
                    fill(path, videos, draw, depth + 1)
            if path.is_file() and not path.is_symlink():
                time_ns = draw.choice(TIMES_NS)
                os.utime(path, ns=(time_ns, time_ns))


def candidates(folder: Path) -> tuple[set[str], int]:
    """What must be found or named, and how many other files and links to folders there are."""
    named, others = set(), 0
    for where, folders, names in os.walk(folder):
        others += sum(os.path.islink(os.path.join(where, name)) for name in folders)
        for name in names:
            relative = os.path.relpath(os.path.join(where, name), folder)
            if os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES:
                shown = os.fsencode(relative).decode(errors="backslashreplace")
                named.add(shown)
            else:
                others += 1
    return named, others


@pytest.mark.timeout(4 * 3600)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes pipes with names")
def test_generated_trees(tmp_path: Path, image_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos, draw, seen = [], random.Random(7), Counter[str]()
    for number in range(3):
        frames = torch.full((4, 3, 32, 48), 40 + 60 * number, dtype=torch.uint8)
        write_video(tmp_path / f"{number}.mp4", frames, fps=4)
        videos.append(tmp_path / f"{number}.mp4")
    for number in range(TREES):
        folder, out = tmp_path / f"tree-{number}", tmp_path / f"library-{number}"
        folder.mkdir()
        shutil.copy(videos[0], folder / "one.mp4")
        fill(folder, videos, draw)
        wanted, others = candidates(folder)
        build = {"out": out, "model": image_model, "segmentation": Segmentation(window_s=2.0)}
        with harvest.Index.build(folder, workers=1, **build) as index:
            report = index.report
            found = {video.path for video in index.videos()}
        named = {broken.path for broken in report.broken}
        assert {path.removeprefix(f"{folder}/") for path in found | named} == wanted
        assert sum(report.left_out.values()) == others
        with harvest.Index.build(folder, workers=1, **build) as index:
            again = index.report
            assert {video.path for video in index.videos()} == found
        assert (again.new, again.changed, again.moved, again.copies, again.vanished) == (0, 0, 0, 0, 0)
        assert again.broken == report.broken and again.left_out == report.left_out
        seen += Counter({"found": len(found), "quarantined": len(named), "left out": others})
        shutil.rmtree(folder)
        shutil.rmtree(out)
    with capsys.disabled():
        print(f"\n{TREES} trees: {dict(seen)}")
