"""What a search gives and takes: frozen, stable types without PyTorch, for scripts, the command line and the server.

    index = harvest.Index.open("library")
    answer = index.search("a red car turns left", k=10)
    if answer.is_there:
        for hit in answer.hits:
            print(hit.path, hit.start_s, hit.end_s, hit.score, hit.chance)

Every type turns into JSON by `dataclasses.asdict`; times are seconds in the file's own clock, from its first frame.
Ids are short strings of `0-9a-f` and `.`, the same as long as the file stays where it is with the same content.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


def is_address(library: object) -> bool:
    """Whether a library is a PostgreSQL database, not a folder."""
    return str(library).startswith(("postgresql://", "postgres://"))


Match = Literal["good", "possible", "unlikely"]


@dataclass(frozen=True)
class Moment:
    """A stretch of a video, as it was cut and embedded."""

    id: str
    """`VIDEO.NUMBER`; what "more like this" and pictures are asked for by."""
    video: str
    """The id of its video."""
    path: str
    """As `Video.path`: relative to the folder that was indexed. For people; files are opened by id (`Index.file`)."""
    start_s: float
    end_s: float
    offset_s: float = 0.0
    """To be added for a player, whose clock starts with the file's sound where that begins before the picture."""


@dataclass(frozen=True)
class Hit:
    """One answer: a moment, how well it agrees with the query, and how much that means."""

    moment: Moment
    score: float
    """Cosine of query and moment."""
    chance: float | None
    """Share of the background queries, which are about nothing in the library, whose best moment scores as high.
    None for pictures, clips and moments as queries, for which there is no background."""
    agreement: float | None = None
    """Where the matching head has read the moment beside the sentence: its log-odds and the scaled cosine, added."""
    match: Match | None = None
    """The chance in a word: up to 1 % "good", above the search's `false_accept` "unlikely"."""
    copies: tuple[str, ...] = ()
    """Paths of other files with the same content."""

    @property
    def path(self) -> str:
        return self.moment.path

    @property
    def start_s(self) -> float:
        return self.moment.start_s

    @property
    def end_s(self) -> float:
        return self.moment.end_s


@dataclass(frozen=True)
class Answer:
    """The best moments for a query, best first, and whether the best one is better than chance."""

    query: str
    """The sentence, or a name for the picture or clip that was asked with."""
    hits: tuple[Hit, ...]
    """Also given when `is_there` is False: the nearest there is."""
    is_there: bool
    """False is "nothing like this here": the best hit's chance is above `false_accept`."""
    false_accept: float
    """The share of nonsense queries that would be let through."""
    notes: tuple[str, ...] = ()
    """What a reader should know: the query was cut, no background for this kind of query, a filter left nothing."""


@dataclass(frozen=True)
class Where:
    """Which moments may be found. Every condition that is set must hold."""

    path: str | None = None
    """A pattern such as `holiday/*.mp4`, or a piece of a path; upper and lower case are the same."""
    after: str | None = None
    """Files changed on or after this date, `2026-11-21` or an ISO time (in UTC where it names no zone)."""
    before: str | None = None
    """Files changed before this date."""
    min_duration_s: float | None = None
    """Of the whole video, as is the next."""
    max_duration_s: float | None = None
    videos: tuple[str, ...] = ()
    """Ids of videos; empty is all."""


@dataclass(frozen=True)
class Video:
    """A file of the library."""

    id: str
    path: str
    """Relative to the folder that was indexed."""
    duration_s: float
    size_bytes: int
    modified: str
    """ISO time, UTC."""
    num_moments: int
    offset_s: float = 0.0
    """As `Moment.offset_s`."""
    damage: str | None = None
    """Where the file could only be read in part: how far, and why."""


@dataclass(frozen=True)
class Broken:
    """A file that is not in the library: the quarantine report's row."""

    path: str
    reason: str


@dataclass(frozen=True)
class Timeline:
    """Scores of all moments of one video for one query, in the order of time."""

    video: Video
    moments: tuple[Moment, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Stats:
    """A library in numbers."""

    model: str
    videos: int
    moments: int
    duration_s: float
    broken: int
    size_bytes: int
    """Of the library itself, on this machine."""
    search: Literal["exact", "approximate"]


@dataclass(frozen=True)
class IndexReport:
    """What one run of the indexer did."""

    new: int = 0
    changed: int = 0
    moved: int = 0
    """Known content that has left its old place: nothing had to be encoded."""
    copies: int = 0
    """Known content that is still at the other place too."""
    vanished: int = 0
    unchanged: int = 0
    broken: tuple[Broken, ...] = ()
    """Every file in quarantine, also from runs before."""
    unreadable: tuple[Broken, ...] = ()
    """Folders that could not be listed; what was indexed of them is kept."""
    left_out: dict[str, int] = field(default_factory=dict)
    """How many files were no candidates, by suffix or kind; hidden ones are not counted."""
    moments: int = 0
    """In the whole library now."""
    seconds: float = 0.0


@dataclass(frozen=True)
class Interval:
    """A stretch of a video in which a sentence is best met."""

    start_s: float
    end_s: float
    score: float
    """Cosine of the sentence and the stretch, encoded on its own."""


@dataclass(frozen=True)
class Curve:
    """How well a sentence is met along one video."""

    text: str
    times_s: tuple[float, ...]
    """The middle of the window that each score is of."""
    scores: tuple[float, ...]
    intervals: tuple[Interval, ...]
    """Best first; they do not overlap."""
