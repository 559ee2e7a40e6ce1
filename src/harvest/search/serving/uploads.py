"""Files that the service makes for itself: pictures that were sent to search with, and previews of moments.

Both lie in a temporary folder, in bounded number, and go with the service, or when another starts after it died.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from harvest.data.video import read_frames
from harvest.errors import HarvestError
from harvest.files import write_file
from harvest.search.index import Decode

_SCRATCH = "harvest-serve-"
MOST_PICTURES = 64
MOST_PREVIEWS = 256

# By their first bytes: the decoder takes far more than pictures, playlists that name other files among them.
_PICTURES: tuple[tuple[str, Callable[[bytes], bool]], ...] = (
    (".jpg", lambda data: data.startswith(b"\xff\xd8\xff")),
    (".png", lambda data: data.startswith(b"\x89PNG\r\n\x1a\n")),
    (".webp", lambda data: data.startswith(b"RIFF") and data[8:12] == b"WEBP"),
)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder of this process. Those of services that died are removed."""
    for left in Path(tempfile.gettempdir()).glob(f"{_SCRATCH}*"):
        with suppress(OSError), (left / ".lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_SCRATCH) as folder, (Path(folder) / ".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(folder)


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


def add_picture(files: FileCache, data: bytes, decode: Decode) -> str:
    """Keep a picture; gives its id. HarvestError where the bytes are no picture of a known kind."""
    suffix = next((suffix for suffix, fits in _PICTURES if fits(data)), None)
    if suffix is None:
        raise HarvestError("expected a picture as JPEG, PNG or WebP")
    name = hashlib.blake2b(data, digest_size=16).hexdigest()
    path = files.make(name, suffix, lambda path: write_file(path, data))
    try:
        decode(read_frames, path, [0.0], image_size=16)
    except HarvestError:
        raise HarvestError("the picture is damaged") from None
    return name
