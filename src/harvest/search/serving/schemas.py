"""What the service takes and gives, as /openapi.json describes it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from harvest.search.asking.calibration import MAX_RERANK
from harvest.search.index import MAX_QUERY_CHARACTERS
from harvest.search.results import Video, Where

MAX_K = 200
MAX_VIDEOS = 500  # of one list or filter
MAX_TIMELINES = 50

Sentence = Annotated[str, Field(min_length=1, max_length=MAX_QUERY_CHARACTERS)]


class Filter(BaseModel):
    """Which moments may be found; every condition that is set must hold."""

    model_config = ConfigDict(extra="forbid")

    path: Annotated[
        str | None,
        Field(max_length=500, description="A pattern such as `holiday/*.mp4`, or a piece of a path"),
    ] = None
    after: Annotated[
        str | None, Field(max_length=40, description="Files changed on or after this ISO date")
    ] = None
    before: Annotated[str | None, Field(max_length=40, description="Files changed before this ISO date")] = (
        None
    )
    min_duration_s: Annotated[
        float | None, Field(ge=0, allow_inf_nan=False, description="Of the whole video")
    ] = None
    max_duration_s: Annotated[float | None, Field(ge=0, allow_inf_nan=False)] = None
    videos: Annotated[
        list[Annotated[str, Field(max_length=64)]],
        Field(max_length=MAX_VIDEOS, description="Ids of videos; empty is all"),
    ] = []

    def where(self) -> Where:
        return Where(**{**self.model_dump(), "videos": tuple(self.videos)})


class Asked(BaseModel):
    """A query: exactly one of a sentence, a moment ("more like this") and a picture that was sent."""

    model_config = ConfigDict(extra="forbid")

    text: Sentence | None = None
    moment: str | None = Field(None, max_length=80, description="A moment's id")
    picture: str | None = Field(None, max_length=80, description="What `POST /api/pictures` gave")

    @model_validator(mode="after")
    def _is_one(self) -> Asked:
        if sum(asked is not None for asked in (self.text, self.moment, self.picture)) != 1:
            raise ValueError("expected exactly one of text, moment and picture")
        return self

    @property
    def kind(self) -> str:
        return "text" if self.text is not None else "moment" if self.moment is not None else "picture"


class SearchRequest(Asked):
    """What to search for, and where."""

    without: list[Sentence] = Field([], max_length=8, description="What must not be there")
    where: Filter = Field(default_factory=Filter)
    k: int = Field(24, ge=1, le=MAX_K)
    per_video: int | None = Field(None, ge=1, le=MAX_K, description="Moments of one video at most")
    rerank: int | None = Field(
        None,
        ge=0,
        le=MAX_RERANK,
        description="Number of first answers that the matching head orders again; without it, the library's own number",
    )
    false_accept: float = Field(
        0.05, gt=0, lt=1, description="Share of nonsense queries that may be answered"
    )


class TimelinesRequest(Asked):
    """Along which videos the scores of a query are wanted."""

    videos: list[Annotated[str, Field(max_length=64)]] = Field(min_length=1, max_length=MAX_TIMELINES)


class VideoScores(BaseModel):
    """Scores of all moments of one video, in the order of time; moment n has the id `VIDEO.n`."""

    video: Video
    start_s: list[float]
    end_s: list[float]
    scores: list[float]


class Videos(BaseModel):
    """A part of the list of videos, by path."""

    total: int
    videos: list[Video]


class Picture(BaseModel):
    picture: str = Field(description="An id, to be given to a search; forgotten after a while")


class Health(BaseModel):
    status: Literal["ok"]
    version: str


class Token(BaseModel):
    token: str = Field(max_length=500)


class Problem(BaseModel):
    error: str = Field(description="What is wrong, in one sentence")


class FilePath(BaseModel):
    path: str


class About(BaseModel):
    """What the page shows before anything is searched."""

    examples: list[str] = Field(description="Sentences to try; the last is about nothing in the library")
    warning: str | None = Field(description="What the library's model cannot do")
    shows_paths: bool = Field(description="Whether this machine's own user asks, to whom paths may be shown")
