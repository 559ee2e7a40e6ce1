"""What the service answers: a function a route, all of them given the service and the request they are part of."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, TypeVar

import anyio
from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi import Path as InPath
from fastapi import Query as InQuery
from fastapi.responses import FileResponse
from prometheus_client import CONTENT_TYPE_LATEST

from harvest import __version__
from harvest.search.asking.pictures import MOST_HEIGHT
from harvest.search.index import Index, UnknownId
from harvest.search.results import Answer, Broken, Moment, Stats, Video
from harvest.search.serving.access import MAX_PICTURE_BYTES, PICTURES, SESSION, Gate, is_same, port_of
from harvest.search.serving.metrics import Metrics
from harvest.search.serving.previews import write_preview
from harvest.search.serving.schemas import (
    MAX_VIDEOS,
    About,
    Asked,
    FilePath,
    Health,
    Picture,
    SearchRequest,
    TimelinesRequest,
    Token,
    Videos,
    VideoScores,
)
from harvest.search.serving.streaming import StreamedFile, is_known
from harvest.search.serving.uploads import MOST_PICTURES, MOST_PREVIEWS, FileCache, add_picture

MAX_WAITING = 256  # in a lane

T = TypeVar("T")
VideoId = Annotated[str, InPath(pattern="^[0-9a-f]{1,64}$", description="A video's id")]
MomentId = Annotated[str, InPath(pattern=r"^[0-9a-f]{1,64}\.[0-9]{1,9}$", description="A moment's id")]
PictureId = Annotated[str, InPath(pattern="^[0-9a-f]{32}$")]


class Lane:
    """Work of one kind in threads: a few at a time, a bounded number waiting."""

    def __init__(self, name: str, *, width: int, metrics: Metrics) -> None:
        self._name = name
        self._limiter = anyio.CapacityLimiter(width)
        self._waiting = metrics.waiting.labels(name)
        self._refused = metrics.refused.labels(name)
        self._count = 0

    async def run(self, request: Request, work: Callable[[], T]) -> T:
        if self._count >= MAX_WAITING:
            self._refused.inc()
            raise HTTPException(
                503, "Too many requests are waiting: try again in a moment.", {"retry-after": "1"}
            )
        self._count += 1
        self._waiting.set(self._count)
        try:
            async with self._limiter:
                if await request.is_disconnected():  # who types on does not wait for what they asked before
                    raise HTTPException(408, "The client has gone.")
                return await anyio.to_thread.run_sync(work)
        finally:
            self._count -= 1
            self._waiting.set(self._count)


class Service:
    """What every route needs. `scratch` is a folder for files of its own; `shows_paths` tells where files lie."""

    def __init__(self, index: Index, gate: Gate, scratch: Path, *, threads: int, shows_paths: bool) -> None:
        self.index, self.gate, self.shows_paths = index, gate, shows_paths
        self.metrics = Metrics()
        self.searching = Lane("search", width=threads, metrics=self.metrics)
        self.drawing = Lane("pictures", width=threads, metrics=self.metrics)
        self.encoding = Lane("previews", width=1, metrics=self.metrics)
        self.pictures = FileCache(scratch / "pictures", most=MOST_PICTURES)
        self.previews = FileCache(scratch / "previews", most=MOST_PREVIEWS)

    def picture(self, name: str) -> Path:
        path = self.pictures.get(name)
        if path is None:
            raise UnknownId("this picture is not known any more: send it again")
        return path

    def query_of(self, asked: Asked) -> dict[str, Any]:
        if asked.picture is None:
            return {"text": asked.text, "moment": asked.moment}
        return {"text": None, "image": self.picture(asked.picture)}


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Here = Annotated[Service, Depends(_service)]
routes = APIRouter()


def _media(kind: str) -> dict[str, Any]:
    """How the description says that an answer is no JSON."""
    return {"content": {kind: {}}}


# ---- search


@routes.post("/api/search", tags=["search"])
async def search(asked: SearchRequest, here: Here, request: Request) -> Answer:
    """The best moments, best first, and whether what was asked for is there at all."""

    def work() -> Answer:
        return here.index.search(
            **here.query_of(asked),
            without=asked.without,
            where=asked.where.where(),
            k=asked.k,
            per_video=asked.per_video,
            rerank=asked.rerank,
            false_accept=asked.false_accept,
        )

    answer = await here.searching.run(request, work)
    here.metrics.searches.labels(asked.kind, str(answer.is_there).lower()).inc()
    if asked.picture is not None:
        answer = dataclasses.replace(answer, query="a picture")  # not where it lies
    return answer


@routes.post("/api/timelines", tags=["search"])
async def timelines(asked: TimelinesRequest, here: Here, request: Request) -> list[VideoScores]:
    """The scores along each of some videos."""

    def scores_of(video: str) -> VideoScores:
        timeline = here.index.timeline(video=video, **here.query_of(asked))
        return VideoScores(
            video=timeline.video,
            start_s=[round(moment.start_s, 3) for moment in timeline.moments],
            end_s=[round(moment.end_s, 3) for moment in timeline.moments],
            scores=[round(score, 4) for score in timeline.scores],
        )

    return await here.searching.run(
        request, lambda: [scores_of(video) for video in dict.fromkeys(asked.videos)]
    )


_BODY = {"schema": {"type": "string", "format": "binary"}}


@routes.post(
    PICTURES,
    tags=["search"],
    status_code=201,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": dict.fromkeys(("image/jpeg", "image/png", "image/webp"), _BODY),
        }
    },
    description=f"A picture to search with: JPEG, PNG or WebP of up to {MAX_PICTURE_BYTES:,} bytes, as the body.",
)
async def send_picture(here: Here, request: Request) -> Picture:
    data = await request.body()
    return Picture(
        picture=await here.drawing.run(request, lambda: add_picture(here.pictures, data, here.index.decode))
    )


@routes.get(
    "/api/pictures/{picture}",
    tags=["search"],
    response_class=FileResponse,
    responses={200: _media("image/*")},
)
async def sent_picture(picture: PictureId, here: Here) -> FileResponse:
    """A picture that was sent, as long as it is known."""
    path = here.picture(picture)
    return StreamedFile(os.open(path, os.O_RDONLY), path)


# ---- library


@routes.get("/api/moments/{moment}", tags=["library"])
async def one_moment(moment: MomentId, here: Here, request: Request) -> Moment:
    """One moment."""
    return await here.searching.run(request, lambda: here.index.moment(moment))


@routes.get("/api/videos", tags=["library"])
async def list_videos(
    here: Here,
    request: Request,
    path: Annotated[str | None, InQuery(max_length=500, description="A piece of the path")] = None,
    offset: Annotated[int, InQuery(ge=0, le=10**9)] = 0,
    limit: Annotated[int, InQuery(ge=1, le=MAX_VIDEOS)] = 50,
) -> Videos:
    """Videos by path."""

    def work() -> Videos:
        found = [v for v in here.index.videos() if path is None or path.lower() in v.path.lower()]
        return Videos(total=len(found), videos=found[offset : offset + limit])

    return await here.searching.run(request, work)


@routes.get("/api/videos/{video}", tags=["library"])
async def one_video(video: VideoId, here: Here, request: Request) -> Video:
    """One video."""
    return await here.searching.run(request, lambda: here.index.video(video))


@routes.get("/api/videos/{video}/path", tags=["library"])
async def path_of(video: VideoId, here: Here, request: Request) -> FilePath:
    """Where a video's file lies, told to who asks from this machine."""
    if not here.shows_paths:
        raise HTTPException(403, "Paths are shown to users of the service's own machine alone.")
    return FilePath(path=str(await here.searching.run(request, lambda: here.index.path(video))))


_STREAMED: dict[int | str, dict[str, Any]] = {
    200: _media("video/*"),
    206: {"description": "A range of it", **_media("video/*")},
}


@routes.head("/api/videos/{video}/file", include_in_schema=False)
@routes.get("/api/videos/{video}/file", tags=["library"], response_class=FileResponse, responses=_STREAMED)
async def file(video: VideoId, here: Here, request: Request, download: bool = False) -> FileResponse:
    """The file as it is, whole or by byte ranges."""
    descriptor, path = await here.drawing.run(request, lambda: here.index.open_file(video))
    return StreamedFile(descriptor, path, is_attachment=download)


@routes.head("/api/moments/{moment}/preview", include_in_schema=False)
@routes.get(
    "/api/moments/{moment}/preview", tags=["library"], response_class=FileResponse, responses=_STREAMED
)
async def preview(moment: MomentId, here: Here, request: Request) -> FileResponse:
    """A moment as a small mp4, for files that browsers do not play; its clock starts at 0."""

    def work() -> Path:
        its = here.index.moment(moment)
        path = here.index.file(its.video)
        return here.previews.make(
            f"{moment}-{path.stat().st_mtime_ns}",
            ".mp4",
            lambda out: here.index.decode(write_preview, path, out, start_s=its.start_s, end_s=its.end_s),
        )

    made = await here.encoding.run(request, work)
    return StreamedFile(os.open(made, os.O_RDONLY), made)


@routes.get(
    "/api/videos/{video}/thumbnail",
    tags=["library"],
    response_class=Response,
    responses={200: _media("image/jpeg")},
)
async def thumbnail(
    video: VideoId,
    here: Here,
    request: Request,
    time_s: Annotated[float, InQuery(ge=0, le=1e7, allow_inf_nan=False)] = 0.0,
    height: Annotated[int, InQuery(ge=16, le=MOST_HEIGHT, description="Of the short side")] = 180,
) -> Response:
    """The picture shown at a time."""
    data = await here.drawing.run(request, lambda: here.index.thumbnail(video, time_s, height=height))
    return _cached(data, "image/jpeg", request, keep="private, max-age=3600")


@routes.get("/api/about", tags=["library"])
async def about(here: Here, request: Request) -> About:
    """What to try here."""
    examples = await here.searching.run(request, here.index.examples)
    return About(examples=list(examples), warning=here.index.warning(), shows_paths=here.shows_paths)


@routes.get("/api/stats", tags=["library"])
async def stats(here: Here, request: Request) -> Stats:
    """The library in numbers."""
    return await here.searching.run(request, here.index.stats)


@routes.get("/api/broken", tags=["library"])
async def broken(here: Here, request: Request) -> list[Broken]:
    """Files that could not be indexed, and why."""
    return list(await here.searching.run(request, here.index.broken))


# ---- service


@routes.get("/health", tags=["service"])
async def health() -> Health:
    """That the service answers; needs no token."""
    return Health(status="ok", version=__version__)


@routes.get("/metrics", tags=["service"], response_class=Response, responses={200: _media("text/plain")})
async def show_metrics(here: Here, request: Request) -> Response:
    """What the service counts, for Prometheus."""
    page = await here.searching.run(request, lambda: here.metrics.page(here.index.stats()))
    return Response(page, media_type=CONTENT_TYPE_LATEST)


@routes.post(SESSION, tags=["service"], status_code=204)
async def begin_session(asked: Token, here: Here, request: Request) -> Response:
    """Trade the token for a cookie, which a browser sends along for videos and pictures too."""
    answer = Response(status_code=204)
    if here.gate.token is not None:
        if not is_same(asked.token, here.gate.token):
            raise HTTPException(401, "This is not the library's token.")
        name, value = here.gate.cookie(port_of(request.scope))
        answer.set_cookie(name, value, httponly=True, samesite="strict", secure=request.url.scheme == "https")
    return answer


@routes.get("/", include_in_schema=False)
@routes.get("/page.css", include_in_schema=False)
@routes.get("/page.js", include_in_schema=False)
async def page(request: Request) -> Response:
    name = request.scope["path"][1:] or "page.html"
    data = (resources.files("harvest.search.serving") / "page" / name).read_bytes()
    return _cached(data, _KINDS[name], request, keep="no-cache")


_KINDS = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}


def _cached(data: bytes, kind: str, request: Request, *, keep: str) -> Response:
    tag = hashlib.blake2b(data, digest_size=12).hexdigest()
    answer = Response(data, media_type=kind, headers={"cache-control": keep, "etag": f'"{tag}"'})
    if is_known(request.headers, answer.headers):
        return Response(status_code=304, headers={"cache-control": keep, "etag": f'"{tag}"'})
    return answer
