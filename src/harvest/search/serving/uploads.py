"""FileCache that the service makes for itself: pictures that were sent to search with, and previews of moments.

Both lie in a temporary folder, in bounded number, and go with the service.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch

from harvest.data.video import read_frames, write_video
from harvest.files import write_file
from harvest.interfaces import HarvestError

MOST_PICTURES = 64
MOST_PREVIEWS = 256
PREVIEW_FPS = 12.5
PREVIEW_HEIGHT = 288
PREVIEW_LONGEST_S = 20.0

# By their first bytes: the decoder takes far more than pictures, playlists that name other files among them.
_PICTURES: tuple[tuple[str, Callable[[bytes], bool]], ...] = (
    (".jpg", lambda data: data.startswith(b"\xff\xd8\xff")),
    (".png", lambda data: data.startswith(b"\x89PNG\r\n\x1a\n")),
    (".webp", lambda data: data.startswith(b"RIFF") and data[8:12] == b"WEBP"),
)


class FileCache:
    """The newest files of a folder, by name; older ones are deleted."""

    def __init__(self, folder: Path, *, most: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._most = most
        self._lock = threading.Lock()
        self._paths: OrderedDict[str, Path] = OrderedDict()

    def get(self, name: str) -> Path | None:
        with self._lock:
            path = self._paths.get(name)
            if path is not None:
                self._paths.move_to_end(name)
            return path

    def make(self, name: str, suffix: str, write: Callable[[Path], object]) -> Path:
        """The file of that name, written now if it is not there. `write` leaves it whole or raises."""
        path = self.get(name)
        if path is not None:
            return path
        path = self._folder / f"{name}{suffix}"
        write(path)
        with self._lock:
            self._paths[name] = path
            while len(self._paths) > self._most:
                self._paths.popitem(last=False)[1].unlink(missing_ok=True)
        return path


def add_picture(files: FileCache, data: bytes) -> str:
    """Keep a picture; gives its id. HarvestError where the bytes are no picture of a known kind."""
    suffix = next((suffix for suffix, fits in _PICTURES if fits(data)), None)
    if suffix is None:
        raise HarvestError("expected a picture as JPEG, PNG or WebP")
    name = hashlib.blake2b(data, digest_size=16).hexdigest()
    path = files.make(name, suffix, lambda path: write_file(path, data))
    try:
        read_frames(path, torch.zeros(1, dtype=torch.float64), image_size=16)
    except HarvestError:
        raise HarvestError("the picture is damaged") from None
    return name


def write_preview(path: Path, out: Path, *, start_s: float, end_s: float) -> None:
    """A stretch of a video as a small H.264 mp4 without sound, which every browser plays.

    Its clock starts at `start_s`; of long stretches the first `PREVIEW_LONGEST_S`. VideoError where the video cannot
    be read, OSError where the preview cannot be written.
    """
    length_s = min(end_s - start_s, PREVIEW_LONGEST_S)
    count = max(1, round(length_s * PREVIEW_FPS))
    times_s = start_s + (torch.arange(count, dtype=torch.float64) + 0.5) / PREVIEW_FPS
    frames = read_frames(path, times_s, image_size=PREVIEW_HEIGHT, fit=None).frames
    height, width = (side - side % 2 for side in frames.shape[-2:])
    try:
        write_video(out, frames[..., :height, :width], fps=PREVIEW_FPS, crf=24)
    except HarvestError as error:  # here no user's mistake
        raise OSError(str(error)) from error
