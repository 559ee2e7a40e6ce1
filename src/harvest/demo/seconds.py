"""How long each part of the demo took, over all interruptions."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from harvest.files import write_file
from harvest.settings import read_settings

PARTS = ("world", "image_scores", "train", "video_scores", "library", "report")


class _Kept(NamedTuple):
    parts: dict[str, float] = {}  # noqa: RUF012  copied before it is written to
    running_since: dict[str, float] = {}  # noqa: RUF012


class Seconds:
    """Wall seconds of each part, kept in a file so that a resumed demo knows what it took before."""

    def __init__(self, path: Path) -> None:
        self.path = path
        kept: _Kept = read_settings(_Kept, path) if path.exists() else _Kept()
        self.parts, self._since = dict(kept.parts), dict(kept.running_since)

    @contextmanager
    def measure(self, name: str, *, is_added: bool = False) -> Iterator[None]:
        """Time a part, also when it ends in an error. `is_added` for parts that resume."""
        before = self.parts.get(name, 0.0) if is_added else 0.0
        started, self._since = time.perf_counter(), {name: time.time()}
        self._write()
        try:
            yield
        finally:
            self.parts[name] = before + time.perf_counter() - started
            self._since = {}
            self._write()

    def add_unfinished(self, name: str, *, until: Path) -> None:
        """Add the time of a part that was killed: it last wrote into the file `until`."""
        if name in self._since and until.exists():
            self.parts[name] = self.parts.get(name, 0.0) + max(0.0, until.stat().st_mtime - self._since[name])

    def _write(self) -> None:
        write_file(
            self.path, json.dumps({"parts": self.parts, "running_since": self._since}, indent=1) + "\n"
        )


def whole_seconds(parts: Mapping[str, float]) -> dict[str, float]:
    """The seconds of demo.json: every part and `total`."""
    named = {name: round(parts.get(name, 0.0), 1) for name in PARTS}
    return named | {"total": round(sum(named.values()), 1)}


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"
