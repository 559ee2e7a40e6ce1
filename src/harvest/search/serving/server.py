"""A library over HTTP, and its page: `harvest serve library`.

    POST /api/search                     a sentence, a moment or a picture that was sent -> Answer
    POST /api/timelines                  scores along videos for the same query
    POST /api/pictures                   a picture to search with, as the body -> its id
    GET  /api/videos, /api/videos/ID     what is there
    GET  /api/videos/ID/file             the file itself, with byte ranges
    GET  /api/videos/ID/thumbnail        a JPEG
    GET  /api/moments/ID/preview         a moment as an mp4 that every browser plays, with byte ranges
    GET  /api/stats, /api/broken, /health, /metrics, /openapi.json

Files are asked for by ids of the library, never by a path. What computes runs in threads, a few at a time, with a
bounded number waiting; the event loop only hands out and takes in. Who may ask is the guard's business (access.py).
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import ipaddress
import logging
import os
import secrets
import socket
from collections.abc import Callable
from http import HTTPStatus
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, TypeVar

import anyio
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi import Path as InPath
from fastapi import Query as InQuery
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException as HTTPError
from uvicorn.protocols.http.h11_impl import H11Protocol

from harvest import __version__
from harvest.data.video import VideoError
from harvest.errors import HarvestError
from harvest.ranges import Range, check_range
from harvest.search.asking.pictures import MOST_HEIGHT
from harvest.search.index import GoneFile, Index, UnknownId
from harvest.search.library.decoding import Decoders
from harvest.search.library.store import Unavailable
from harvest.search.results import Answer, Broken, Moment, Stats, Video
from harvest.search.serving.access import (
    MAX_HEAD_BYTES,
    MAX_PICTURE_BYTES,
    PICTURES,
    SENTENCES,
    SESSION,
    AccessControl,
    Gate,
    is_same,
    port_of,
)
from harvest.search.serving.metrics import Metrics
from harvest.search.serving.previews import write_preview
from harvest.search.serving.schemas import (
    MAX_VIDEOS,
    About,
    Asked,
    FilePath,
    Health,
    Picture,
    Problem,
    SearchRequest,
    TimelinesRequest,
    Token,
    Videos,
    VideoScores,
)
from harvest.search.serving.streaming import StreamedFile, is_known
from harvest.search.serving.uploads import (
    MOST_PICTURES,
    MOST_PREVIEWS,
    FileCache,
    add_picture,
    scratch_folder,
)

MAX_CONNECTIONS = 512
MAX_WAITING = 256  # in a lane
HEADERS_S = 10.0  # within which a request's head has to arrive
LEAST_TOKEN = 16  # characters
LOOPBACK = frozenset(["localhost", "127.0.0.1", "::1"])

T = TypeVar("T")
VideoId = Annotated[str, InPath(pattern="^[0-9a-f]{1,64}$", description="A video's id")]
MomentId = Annotated[str, InPath(pattern=r"^[0-9a-f]{1,64}\.[0-9]{1,9}$", description="A moment's id")]


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


def make_app(
    index: Index, *, gate: Gate, scratch: Path, threads: int = 2, prefix: str = "", shows_paths: bool = False
) -> FastAPI:
    """The service as an ASGI application over an open index; `scratch` is a folder for files of its own. A proxy may
    serve it under the path `prefix`. `shows_paths` tells where files lie."""
    metrics = Metrics()
    searching = Lane("search", width=threads, metrics=metrics)
    drawing = Lane("pictures", width=threads, metrics=metrics)
    encoding = Lane("previews", width=1, metrics=metrics)
    pictures = FileCache(scratch / "pictures", most=MOST_PICTURES)
    previews = FileCache(scratch / "previews", most=MOST_PREVIEWS)
    app = FastAPI(
        title="Harvest",
        version=__version__,
        summary="Find moments in a library of videos by a sentence, a picture or another moment.",
        servers=[{"url": prefix}] if prefix else None,
        docs_url=None,  # FastAPI's pages load scripts from elsewhere
        redoc_url=None,
        responses={"4XX": {"model": Problem, "description": "A request that cannot be answered, and why"}},
    )
    app.add_middleware(AccessControl, gate=gate, metrics=metrics, prefix=prefix)
    _tell_errors(app)

    def query_of(asked: Asked) -> dict[str, Any]:
        if asked.picture is None:
            return {"text": asked.text, "moment": asked.moment}
        path = pictures.get(asked.picture)
        if path is None:
            raise UnknownId("this picture is not known any more: send it again")
        return {"text": None, "image": path}

    @app.post("/api/search", tags=["search"])
    async def search(asked: SearchRequest, request: Request) -> Answer:
        """The best moments, best first, and whether what was asked for is there at all."""

        def work() -> Answer:
            return index.search(
                **query_of(asked),
                without=asked.without,
                where=asked.where.where(),
                k=asked.k,
                per_video=asked.per_video,
                rerank=asked.rerank,
                false_accept=asked.false_accept,
            )

        answer = await searching.run(request, work)
        metrics.searches.labels(asked.kind, str(answer.is_there).lower()).inc()
        if asked.picture is not None:
            answer = dataclasses.replace(answer, query="a picture")  # not where it lies
        return answer

    @app.post("/api/timelines", tags=["search"])
    async def timelines(asked: TimelinesRequest, request: Request) -> list[VideoScores]:
        """The scores along each of some videos."""

        def work() -> list[VideoScores]:
            found = []
            for video in dict.fromkeys(asked.videos):
                timeline = index.timeline(video=video, **query_of(asked))
                found.append(
                    VideoScores(
                        video=timeline.video,
                        start_s=[round(moment.start_s, 3) for moment in timeline.moments],
                        end_s=[round(moment.end_s, 3) for moment in timeline.moments],
                        scores=[round(score, 4) for score in timeline.scores],
                    )
                )
            return found

        return await searching.run(request, work)

    body = {
        kind: {"schema": {"type": "string", "format": "binary"}}
        for kind in ("image/jpeg", "image/png", "image/webp")
    }

    @app.post(
        PICTURES,
        tags=["search"],
        status_code=201,
        openapi_extra={"requestBody": {"required": True, "content": body}},
        description=f"A picture to search with: JPEG, PNG or WebP of up to {MAX_PICTURE_BYTES:,} bytes, as the body.",
    )
    async def send_picture(request: Request) -> Picture:
        data = await request.body()
        return Picture(picture=await drawing.run(request, lambda: add_picture(pictures, data, index.decode)))

    @app.get(
        "/api/pictures/{picture}",
        tags=["search"],
        response_class=FileResponse,
        responses={200: {"content": {"image/*": {}}}},
    )
    async def sent_picture(picture: Annotated[str, InPath(pattern="^[0-9a-f]{32}$")]) -> FileResponse:
        """A picture that was sent, as long as it is known."""
        path = pictures.get(picture)
        if path is None:
            raise UnknownId("this picture is not known any more: send it again")
        return StreamedFile(os.open(path, os.O_RDONLY), path)

    @app.get("/api/moments/{moment}", tags=["library"])
    async def one_moment(moment: MomentId, request: Request) -> Moment:
        """One moment."""
        return await searching.run(request, lambda: index.moment(moment))

    @app.get("/api/videos", tags=["library"])
    async def list_videos(
        request: Request,
        path: Annotated[str | None, InQuery(max_length=500, description="A piece of the path")] = None,
        offset: Annotated[int, InQuery(ge=0, le=10**9)] = 0,
        limit: Annotated[int, InQuery(ge=1, le=MAX_VIDEOS)] = 50,
    ) -> Videos:
        """Videos by path."""

        def work() -> Videos:
            found = [v for v in index.videos() if path is None or path.lower() in v.path.lower()]
            return Videos(total=len(found), videos=found[offset : offset + limit])

        return await searching.run(request, work)

    @app.get("/api/videos/{video}", tags=["library"])
    async def one_video(video: VideoId, request: Request) -> Video:
        """One video."""
        return await searching.run(request, lambda: index.video(video))

    @app.get("/api/videos/{video}/path", tags=["library"])
    async def path_of(video: VideoId, request: Request) -> FilePath:
        """Where a video's file lies, told to who asks from this machine."""
        if not shows_paths:
            raise HTTPException(403, "Paths are shown to users of the service's own machine alone.")
        return FilePath(path=str(await searching.run(request, lambda: index.path(video))))

    async def file(video: VideoId, request: Request, download: bool = False) -> FileResponse:
        """The file as it is, whole or by byte ranges."""
        descriptor, path = await drawing.run(request, lambda: index.open_file(video))
        return StreamedFile(descriptor, path, is_attachment=download)

    async def preview(moment: MomentId, request: Request) -> FileResponse:
        """A moment as a small mp4, for files that browsers do not play; its clock starts at 0."""

        def work() -> Path:
            its = index.moment(moment)
            path = index.file(its.video)
            name = f"{moment}-{path.stat().st_mtime_ns}"
            return previews.make(
                name,
                ".mp4",
                lambda out: index.decode(write_preview, path, out, start_s=its.start_s, end_s=its.end_s),
            )

        made = await encoding.run(request, work)
        return StreamedFile(os.open(made, os.O_RDONLY), made)

    streamed: dict[int | str, dict[str, Any]] = {
        200: {"content": {"video/*": {}}},
        206: {"description": "A range of it", "content": {"video/*": {}}},
    }
    for address, answer in (("/api/videos/{video}/file", file), ("/api/moments/{moment}/preview", preview)):
        app.add_api_route(
            address,
            answer,
            methods=["GET"],
            tags=["library"],
            response_class=FileResponse,
            responses=streamed,
        )
        app.add_api_route(address, answer, methods=["HEAD"], include_in_schema=False)

    @app.get(
        "/api/videos/{video}/thumbnail",
        tags=["library"],
        response_class=Response,
        responses={200: {"content": {"image/jpeg": {}}}},
    )
    async def thumbnail(
        video: VideoId,
        request: Request,
        time_s: Annotated[float, InQuery(ge=0, le=1e7, allow_inf_nan=False)] = 0.0,
        height: Annotated[int, InQuery(ge=16, le=MOST_HEIGHT, description="Of the short side")] = 180,
    ) -> Response:
        """The picture shown at a time."""

        data = await drawing.run(request, lambda: index.thumbnail(video, time_s, height=height))
        return _cached(data, "image/jpeg", request, keep="private, max-age=3600")

    @app.get("/api/about", tags=["library"])
    async def about(request: Request) -> About:
        """What to try here."""
        examples = await searching.run(request, index.examples)
        return About(examples=list(examples), warning=index.warning(), shows_paths=shows_paths)

    @app.get("/api/stats", tags=["library"])
    async def stats(request: Request) -> Stats:
        """The library in numbers."""
        return await searching.run(request, index.stats)

    @app.get("/api/broken", tags=["library"])
    async def broken(request: Request) -> list[Broken]:
        """Files that could not be indexed, and why."""
        return list(await searching.run(request, index.broken))

    @app.get("/health", tags=["service"])
    async def health() -> Health:
        """That the service answers; needs no token."""
        return Health(status="ok", version=__version__)

    @app.get(
        "/metrics",
        tags=["service"],
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}},
    )
    async def show_metrics(request: Request) -> Response:
        """What the service counts, for Prometheus."""
        page = await searching.run(request, lambda: metrics.page(index.stats()))
        return Response(page, media_type=CONTENT_TYPE_LATEST)

    @app.post(SESSION, tags=["service"], status_code=204)
    async def begin_session(asked: Token, request: Request) -> Response:
        """Trade the token for a cookie, which a browser sends along for videos and pictures too."""
        answer = Response(status_code=204)
        if gate.token is not None:
            if not is_same(asked.token, gate.token):
                raise HTTPException(401, "This is not the library's token.")
            name, value = gate.cookie(port_of(request.scope))
            answer.set_cookie(
                name, value, httponly=True, samesite="strict", secure=request.url.scheme == "https"
            )
        return answer

    page = resources.files("harvest.search.serving") / "page"
    for address, name, kind in (
        ("/", "page.html", "text/html"),
        ("/page.css", "page.css", "text/css"),
        ("/page.js", "page.js", "text/javascript"),
    ):
        _add_asset(app, address, (page / name).read_bytes(), kind)
    return app


def _add_asset(app: FastAPI, address: str, data: bytes, kind: str) -> None:
    async def asset(request: Request) -> Response:
        return _cached(data, kind, request, keep="no-cache")

    app.add_api_route(address, asset, methods=["GET"], include_in_schema=False)


def _cached(data: bytes, kind: str, request: Request, *, keep: str) -> Response:
    tag = hashlib.blake2b(data, digest_size=12).hexdigest()
    answer = Response(data, media_type=kind, headers={"cache-control": keep, "etag": f'"{tag}"'})
    if is_known(request.headers, answer.headers):
        return Response(status_code=304, headers={"cache-control": keep, "etag": f'"{tag}"'})
    return answer


def _tell_errors(app: FastAPI) -> None:
    """Every error as JSON with one sentence, none with a path of this machine."""

    @app.exception_handler(GoneFile)
    @app.exception_handler(UnknownId)
    async def unknown(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, 404)

    @app.exception_handler(VideoError)
    async def unreadable(_: Request, error: VideoError) -> Response:
        return JSONResponse({"error": f"The file cannot be read: {error.reason}"}, 422)

    @app.exception_handler(HarvestError)
    async def mistake(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, 400)

    @app.exception_handler(Unavailable)
    async def away(_: Request, error: Exception) -> Response:
        logging.getLogger("uvicorn.error").error("%s", error)
        return JSONResponse(
            {"error": "The library's store does not answer; the service's log says why."}, 503
        )

    @app.exception_handler(OSError)
    async def unwritten(_: Request, error: OSError) -> Response:
        logging.getLogger("uvicorn.error").error("%s", error)
        return JSONResponse({"error": "The service cannot read or write a file; its log says why."}, 503)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return JSONResponse({"error": "The body is not JSON."}, 422)
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        return JSONResponse({"error": f"{where}: {first['msg']}" if where else first["msg"]}, 422)

    @app.exception_handler(HTTPError)
    async def refused(_: Request, error: HTTPError) -> Response:
        is_said = error.detail != HTTPStatus(error.status_code).phrase  # more than the status alone
        sentence = error.detail if is_said else SENTENCES.get(error.status_code, error.detail)
        return JSONResponse({"error": sentence}, error.status_code, error.headers)


class Protocol(H11Protocol):
    """HTTP/1.1, for clients that send a request's head in time; uvicorn itself would wait for ever."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._late = self.loop.call_later(HEADERS_S, transport.close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        rest, _ = self.conn.trailing_data
        is_head_begun = bool(rest) and (self.cycle is None or self.cycle.response_complete)
        if not is_head_begun:
            self._end_wait()
        elif self._late is None:
            self._late = self.loop.call_later(HEADERS_S, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_wait()
        super().connection_lost(exc)

    def _end_wait(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def gate_of(host: str, *, token: str | None, names: tuple[str, ...] = ()) -> Gate:
    """Who may ask a service bound to `host`: on loopback anyone on this machine, elsewhere who has the token.

    `names` are further names in the Host header. A token is made where one is needed and none is given.
    HarvestError for a token of under 16 characters.
    """
    if token is not None and len(token) < LEAST_TOKEN:
        raise HarvestError(f"the token has {len(token)} characters, expected at least {LEAST_TOKEN}")
    known = LOOPBACK | {name.lower() for name in names}
    if is_loopback(host):
        return Gate(known | {host.lower()}, token=token)
    own = {host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}
    return Gate(known | own, any_address=True, token=token or secrets.token_urlsafe(24))


def is_loopback(host: str) -> bool:
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(
    index: Index,
    *,
    host: str = "127.0.0.1",
    port: int = 8077,
    token: str | None = None,
    names: tuple[str, ...] = (),
    threads: int = 2,
    prefix: str = "",
    ready: Callable[[str], None],
) -> None:
    """Serve until interrupted. `ready` is called with the page's address, which carries the token, if there is one,
    after the # that browsers keep to themselves. Port 0 is any free one.

    HarvestError where the address cannot be had or the model cannot be opened.
    """
    check_range("port", port, Range(least=0, most=65535))
    prefix = f"/{prefix.strip('/')}" if prefix.strip("/") else ""
    gate = gate_of(host, token=token, names=names)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        bound = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise HarvestError(f"cannot listen at {host} port {port}: {error}") from error
    with bound, scratch_folder() as scratch, Decoders(2 * threads + 1) as decoders:
        decoders.start()
        index.decode = decoders
        index.search("a video", k=1)  # opens the model now, so that its mistakes are told here
        shows_paths = is_loopback(host) and not names and not prefix
        app = make_app(
            index, gate=gate, scratch=scratch, threads=threads, prefix=prefix, shows_paths=shows_paths
        )
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=Protocol,
                ws="none",
                lifespan="off",
                log_level="warning",
                access_log=False,  # what people look for is theirs
                server_header=False,
                proxy_headers=False,
                limit_concurrency=MAX_CONNECTIONS,
                timeout_keep_alive=15,
                timeout_graceful_shutdown=3,
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            )
        )
        name = f"[{host}]" if ":" in host else {"0.0.0.0": socket.gethostname()}.get(host, host)
        secret = "" if gate.token is None else f"#token={gate.token}"
        ready(f"http://{name}:{bound.getsockname()[1]}/{secret}")
        server.run(sockets=[bound])
