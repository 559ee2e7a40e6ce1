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
import ipaddress
import logging
import secrets
import socket
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as HTTPError
from uvicorn.protocols.http.h11_impl import H11Protocol

from harvest import __version__
from harvest.data.video import VideoError
from harvest.errors import HarvestError
from harvest.ranges import Range, check_range
from harvest.search.index import GoneFile, Index, UnknownId
from harvest.search.library.decoding import Decoders
from harvest.search.library.store import Unavailable
from harvest.search.serving.access import (
    MAX_HEAD_BYTES,
    SENTENCES,
    AccessControl,
    Gate,
)
from harvest.search.serving.routes import Service, routes
from harvest.search.serving.schemas import (
    Problem,
)
from harvest.search.serving.uploads import (
    scratch_folder,
)

MAX_CONNECTIONS = 512
HEADERS_S = 10.0  # within which a request's head has to arrive
LEAST_TOKEN = 16  # characters
LOOPBACK = frozenset(["localhost", "127.0.0.1", "::1"])


def make_app(
    index: Index, *, gate: Gate, scratch: Path, threads: int = 2, prefix: str = "", shows_paths: bool = False
) -> FastAPI:
    """The service as an ASGI application over an open index; `scratch` is a folder for files of its own. A proxy may
    serve it under the path `prefix`. `shows_paths` tells where files lie."""
    app = FastAPI(
        title="Harvest",
        version=__version__,
        summary="Find moments in a library of videos by a sentence, a picture or another moment.",
        servers=[{"url": prefix}] if prefix else None,
        docs_url=None,  # FastAPI's pages load scripts from elsewhere
        redoc_url=None,
        responses={"4XX": {"model": Problem, "description": "A request that cannot be answered, and why"}},
    )
    app.state.service = Service(index, gate, scratch, threads=threads, shows_paths=shows_paths)
    app.include_router(routes)
    app.add_middleware(AccessControl, gate=gate, metrics=app.state.service.metrics, prefix=prefix)
    _tell_errors(app)
    return app


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
