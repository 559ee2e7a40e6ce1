"""What a benchmark is and what reading one gives.

A reader (one function a benchmark, in the file of its family) turns official files into `SplitRows`. `read` in this
package's door adds where the videos are and checks ids, and gives `BenchmarkData`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from harvest.data.benchmarks.files import Files, Published, SplitFiles
from harvest.data.sampling import ViewPlaces
from harvest.interfaces import Example

BenchmarkTask = Literal["retrieval", "choice", "recognition", "qa", "count", "moments", "detection"]


@dataclass(frozen=True)
class Benchmark:
    """One benchmark. Its splits' names are those of its files or of the papers that report on them."""

    name: str
    title: str
    task: BenchmarkTask
    origin: str
    """Where the annotation files come from."""
    videos: str
    """A regular expression that the name of each of its videos, without folder and suffix, matches."""
    splits: Mapping[str, SplitFiles]
    """The first one is read where no split is named."""
    reader: Callable[[Files, str], SplitRows]
    notes: tuple[str, ...] = ()
    """What makes numbers on it differ from one another, for docs and cards."""
    is_tested: bool = True
    """Whether the reader has read the official file; else it follows the documented format."""


@dataclass(frozen=True)
class BenchmarkRow:
    """A row of a benchmark before it is known where its video is."""

    id: str
    names: tuple[str, ...]
    """What the video's file may be called, with or without folder and suffix; the first is the official one."""
    texts: tuple[str, ...] = ()
    label: int | None = None
    start_s: float = 0.0
    end_s: float | None = None
    question: str | None = None
    answer: str | None = None


@dataclass(frozen=True)
class ActingBox:
    """A person of a key frame and what they do."""

    box: tuple[float, float, float, float]
    """Left, top, right, bottom as shares of the picture, 0 to 1."""
    actions: tuple[int, ...]
    """Official action ids, from 1."""
    person: int | None = None
    """Equal numbers in one video are one person."""


@dataclass(frozen=True)
class KeyFrame:
    """The annotated boxes of one picture of a video."""

    id: str
    video: str
    time_s: float
    boxes: tuple[ActingBox, ...]


@dataclass(frozen=True)
class SplitRows:
    """What a reader gives."""

    rows: Sequence[BenchmarkRow]
    protocol: str
    answers: tuple[str, ...] | None = None
    class_names: tuple[str, ...] | None = None
    actions: Mapping[int, str] = field(default_factory=dict)
    boxes: Mapping[str, tuple[ActingBox, ...]] = field(default_factory=dict)
    """Of detection: row id to its boxes."""
    counts: Mapping[str, int] = field(default_factory=dict)
    shared_captions: bool = False
    view_places: ViewPlaces = "inner"
    unscored: str | None = None


@dataclass(frozen=True)
class BenchmarkData:
    """One split of a benchmark, read whole."""

    name: str
    split: str
    task: BenchmarkTask
    examples: tuple[Example, ...]
    protocol: str
    """A sentence: what is asked of what, and what the official protocol counts."""
    counts: Mapping[str, int]
    """Rows, videos and captions or questions as read; other counts as the benchmark has them."""
    published: Published
    unresolved: frozenset[str] | None
    """Expected paths of the videos that are not there; None where no folder of videos was given."""
    answers: tuple[str, ...] | None = None
    """Of question answering: the official answers to choose from."""
    class_names: tuple[str, ...] | None = None
    """Of recognition: in the order of the labels."""
    actions: Mapping[int, str] = field(default_factory=dict)
    """Of detection: the actions that are scored, by official id."""
    key_frames: tuple[KeyFrame, ...] = ()
    """Of detection: one for each example, in the same order."""
    shared_captions: bool = False
    """Of retrieval: rows with one caption are its videos, each of which is right for it."""
    view_places: ViewPlaces = "inner"
    """Of recognition with a head: which frames the views in time of its protocol take."""
    unscored: str | None = None
    """Why the evaluations at hand cannot score it by its protocol, where that is so."""

    @property
    def action_names(self) -> tuple[str, ...]:
        """Of detection: in the order of the labels of `Example.boxes`, which is that of the official ids."""
        return tuple(self.actions[action] for action in sorted(self.actions))

    @property
    def digest(self) -> str:
        """A hash of the rows, wherever the videos are: the same for everyone who read the same split."""
        rows = [[e.id, e.texts, e.label, e.start_s, e.end_s, e.question, e.answer] for e in self.examples]
        boxes = [[b.box, b.actions] for frame in self.key_frames for b in frame.boxes]
        written = json.dumps([self.name, self.split, rows, self.answers, self.class_names, boxes])
        return hashlib.sha256(written.encode()).hexdigest()[:16]
