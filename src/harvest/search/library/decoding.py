"""Files are decoded in processes of their own, so that one which crashes or hangs a decoder costs itself alone.

with Decoders(2) as decoders:
    picture = decoders(read_frames, path, times_s, image_size=64)
    for item in decoders.windows(path, segmentation, num_frames=8, squares=model.config.video.squares): ...
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from harvest.data.guard import MAX_BYTES, Guard, Lost
from harvest.data.video import VideoError
from harvest.errors import HarvestError
from harvest.plain_types import Pixels, Squares
from harvest.search.library.segmentation import Cut, Segmentation, Window, windows

LIMIT_S = 60.0  # for one call, or for the next few windows of a video
_WINDOWS = 4  # read in one call
_FILES = 500  # read by one process

T = TypeVar("T")


class Decoders:
    """A few processes that decode. Use it in a `with`; calls come from several threads.

    What a file does to its process, memory beyond `MAX_BYTES`, or an error that nobody foresaw, is a VideoError of
    that file.
    """

    def __init__(self, count: int, *, limit_s: float = LIMIT_S) -> None:
        self._all = [
            Guard(_call, limit_s=limit_s, max_calls=2**62, max_bytes=MAX_BYTES) for _ in range(count)
        ]
        self._free: queue.Queue[Guard] = queue.Queue()
        self._files = dict.fromkeys(self._all, 0)
        self._forking = threading.Lock()  # or a child would hold another's pipe open
        for guard in self._all:
            self._free.put(guard)

    def start(self) -> None:
        """Start the processes now: best done before this process has threads."""
        for guard in self._all:
            self._renew(guard)

    def close(self) -> None:
        for guard in self._all:
            guard.close()

    def __enter__(self) -> Decoders:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __call__(self, function: Callable[..., T], path: str | Path, *args: Any, **named: Any) -> T:
        """`function(path, *args, **named)`, computed elsewhere."""
        with self._borrowed(path) as call:
            result: T = call(function, path, *args, **named)
            return result

    def windows(
        self, path: Path, segmentation: Segmentation, *, num_frames: int, squares: Squares
    ) -> Iterator[Window | Cut]:
        """`segmentation.windows`, read a few at a time."""
        pictures: dict[int, Pixels] = {}
        with self._borrowed(path) as call:
            call(_begin, path, segmentation, num_frames=num_frames, squares=squares)
            is_over = False
            while not is_over:
                read: _Read = call(_go_on)
                pictures |= read.pictures
                for start_s, end_s, numbers in read.windows:
                    yield Window(start_s, end_s, tuple(pictures[number] for number in numbers))
                last = read.windows[-1][2] if read.windows else ()
                pictures = {number: pictures[number] for number in last}
                is_over = read.cut is not None
            assert read.cut is not None
            yield read.cut

    @contextmanager
    def _borrowed(self, path: str | Path) -> Iterator[Callable[..., Any]]:
        guard = self._free.get()
        try:
            self._renew(guard)
            yield lambda function, *args, **named: guard(function, args, named)
        except HarvestError:
            raise
        except Lost as error:
            raise VideoError(path, str(error)) from error
        except RuntimeError as error:  # with the traceback of the process
            raise VideoError(path, str(error).strip().rpartition("\n")[2]) from error
        finally:
            self._free.put(guard)

    def _renew(self, guard: Guard) -> None:
        """See that a process runs, another one after some files: decoders leak."""
        self._files[guard] += 1
        if self._files[guard] % _FILES == 0:
            guard.close()
        if not guard.is_running:
            with self._forking:
                guard.start()


# ---- in the process that decodes


class _Read(NamedTuple):
    """Windows by the numbers of their pictures, of which each is sent once."""

    pictures: dict[int, Pixels]
    windows: list[tuple[float, float, tuple[int, ...]]]
    cut: Cut | None


def _call(function: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    return function(*args, **named)


@dataclass
class _Reading:
    """The video that this process reads windows of."""

    items: Iterator[Window | Cut]
    known: dict[int, tuple[int, Pixels]]  # by id; the picture itself too, so that its id stays its own
    count: int = 0


_reading = _Reading(iter(()), {})


def _begin(path: Path, segmentation: Segmentation, *, num_frames: int, squares: Squares) -> None:
    _reading.items = windows(path, segmentation, num_frames=num_frames, squares=squares)
    _reading.known = {}


def _go_on() -> _Read:
    read = _Read({}, [], None)
    for item in islice(_reading.items, _WINDOWS):
        if isinstance(item, Cut):
            return read._replace(cut=item)
        numbers = []
        for picture in item.pictures:
            if id(picture) not in _reading.known:
                _reading.count += 1
                _reading.known[id(picture)] = (_reading.count, picture)
                read.pictures[_reading.count] = picture
            numbers.append(_reading.known[id(picture)][0])
        shown = {id(picture) for picture in item.pictures}
        _reading.known = {key: value for key, value in _reading.known.items() if key in shown}
        read.windows.append((item.start_s, item.end_s, tuple(numbers)))
    return read
