"""What stands before the HTTP service: who may ask, how much may be sent, and what every answer carries.

A request is refused before any of its body is read unless its Host header is one of ours (a page elsewhere cannot
reach a service on loopback by pointing its own name there), it does not come from another site's page, and, where
a token is required, it brings that. Bodies are bounded in size, in the time they take and in what all of them
together hold in memory. Every error leaves as JSON with one sentence.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import time
from collections.abc import MutableMapping
from dataclasses import dataclass
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from harvest.search.serving.metrics import Metrics

MAX_JSON_BYTES = 64 * 1024
MAX_PICTURE_BYTES = 10 * 1024 * 1024
MAX_BODIES_BYTES = 64 * 1024 * 1024  # of all requests together
MAX_HEAD_BYTES = 16 * 1024
BODY_S = 15.0  # within which a body has to arrive
PICTURES = "/api/pictures"
SESSION = "/api/session"
# What a browser needs before it has brought the token, and what a supervisor asks; none of it tells of the library.
OPEN = frozenset(["/", "/page.css", "/page.js", "/health", SESSION])

_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; media-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
SENTENCES = {
    400: "The request is malformed.",
    403: "This may not be asked for here.",
    404: "There is nothing at this address.",
    405: "This address does not take this method.",
    416: "The range lies beyond the end of the file.",
    500: "The service failed at this; its log says why.",
}


@dataclass(frozen=True)
class Gate:
    """Who may ask."""

    names: frozenset[str]
    """Values of the Host header, without the port, that are ours."""
    any_address: bool = False
    """Whether any IP address will do as well: no name can be pointed at us that way."""
    token: str | None = None

    def knows(self, host: str) -> bool:
        """Whether a Host header is one of ours."""
        name = host.lower()
        if name.startswith("["):
            name, closed, port = name[1:].partition("]")
            if not closed or port.strip(":0123456789"):
                return False
        elif name.count(":") == 1:
            name, _, port = name.partition(":")
            if port.strip("0123456789"):
                return False
        if name in self.names:
            return True
        try:
            return self.any_address and ipaddress.ip_address(name) is not None
        except ValueError:
            return False

    def cookie(self, port: int) -> tuple[str, str]:
        """Name and value of the cookie that stands for the token, from which the token cannot be told."""
        assert self.token is not None
        value = hmac.new(self.token.encode(), b"harvest serve", hashlib.sha256).hexdigest()
        return f"harvest-{port}", value

    def admits(self, headers: Headers, port: int) -> bool:
        """Whether a request brings the token, as a bearer or by the cookie. Takes as long for any wrong one."""
        if self.token is None:
            return True
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and is_same(given.strip(), self.token):
            return True
        name, value = self.cookie(port)
        try:
            cookies = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            return False
        return name in cookies and is_same(cookies[name].value, value)


def is_same(given: str, right: str) -> bool:
    """Compare secrets in a time that does not tell where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), right.encode("utf-8", "replace"))


def port_of(scope: MutableMapping[str, Any]) -> int:
    server = scope.get("server")
    return int(server[1] or 0) if server else 0


class _Refused(Exception):
    """A request that goes no further."""

    def __init__(self, status: int, sentence: str, **headers: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers


class AccessControl:
    """ASGI middleware, outermost."""

    def __init__(self, app: ASGIApp, *, gate: Gate, metrics: Metrics, prefix: str = "") -> None:
        self.app = app
        self.prefix = prefix
        self.gate = gate
        self.metrics = metrics
        self._held_bytes = 0  # of bodies in memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        scope = self._as_asked(scope)
        answer = _Response(scope, send)
        body = bytearray()
        try:
            if self.prefix and scope["path"] == self.prefix:  # what the page asks for is named relative to it
                raise _Refused(308, "The page is at the address with a slash.", location=self.prefix + "/")
            self._check(scope)
            if not await self._read(scope, receive, body):
                return  # the client has gone
            await self.app(answer.scope_of_app, _replay(bytes(body), receive), answer.send)
        except _Refused as refused:
            await answer.refuse(refused)
        finally:
            self._held_bytes -= len(body)
            route = getattr(answer.scope_of_app.get("route"), "path", "other")
            self.metrics.note(scope["method"], route, answer.status, time.perf_counter() - started)

    def _as_asked(self, scope: Scope) -> Scope:
        """The request without the prefix that a proxy may have left, and without a range in other units than bytes."""
        path = scope["path"]
        if self.prefix and path.startswith(self.prefix + "/"):
            path = path[len(self.prefix) :]
        headers = [
            (name, value)
            for name, value in scope["headers"]
            if name != b"range" or value.strip().lower().startswith(b"bytes=")
        ]
        return {**scope, "path": path, "raw_path": path.encode(), "headers": headers}

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        head_bytes = len(scope["path"]) + len(scope.get("query_string", b""))
        if head_bytes + sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > MAX_HEAD_BYTES:
            raise _Refused(
                431, f"The request's head is too large: at most {MAX_HEAD_BYTES:,} bytes.", connection="close"
            )
        if scope.get("http_version", "1.1") not in ("1.0", "1.1"):
            raise _Refused(505, "This version of HTTP is not spoken here.", connection="close")
        if len(headers.getlist("host")) != 1 or not self.gate.knows(headers["host"]):
            raise _Refused(
                421,
                "This host name is not served here: use the address that harvest serve printed, "
                "or name it with --name.",
            )
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and scope["path"] != "/":
            raise _Refused(403, "Pages of other sites may not ask here.")
        if scope["path"] not in OPEN and not self.gate.admits(headers, port_of(scope)):
            raise _Refused(
                401, "This library asks for its token.", **{"www-authenticate": 'Bearer realm="harvest"'}
            )

    async def _read(self, scope: Scope, receive: Receive, body: bytearray) -> bool:
        """Read the body whole; False if the client went away."""
        headers = Headers(scope=scope)
        most = MAX_PICTURE_BYTES if scope["path"] == PICTURES else MAX_JSON_BYTES
        claimed = headers.get("content-length", "0")
        too_large = f"The body is too large: at most {most:,} bytes are read here."
        if not claimed.isdecimal():
            raise _Refused(400, SENTENCES[400])
        if int(claimed) > most:
            raise _Refused(413, too_large, connection="close")
        try:
            async with asyncio.timeout(BODY_S):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return False
                    part = message.get("body", b"")
                    if len(body) + len(part) > most:
                        raise _Refused(413, too_large, connection="close")
                    if self._held_bytes + len(part) > MAX_BODIES_BYTES:
                        raise _Refused(
                            503,
                            "Too much is being sent at once: try again in a moment.",
                            **{"retry-after": "1", "connection": "close"},
                        )
                    body += part
                    self._held_bytes += len(part)
                    more = message.get("more_body", False)
        except TimeoutError:
            raise _Refused(
                408, f"The body did not arrive within {BODY_S:.0f} seconds.", connection="close"
            ) from None
        return True


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read, and then what really comes."""
    given = False

    async def next_message() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return next_message


class _Response:
    """Passes an answer on with the headers that each carries, an error as JSON."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._replaced = False
        # Files know what a HEAD is; other answers are made as for a GET, and their bodies left out.
        self._is_bare = scope["method"] == "HEAD"
        is_file = scope["path"].endswith(("/file", "/preview"))
        self.scope_of_app = {**scope, "method": "GET"} if self._is_bare and not is_file else scope
        self.status = 499  # unless one is sent: the client has gone

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers[name] = value
            headers.setdefault("cache-control", "no-store")
            is_json = headers.get("content-type", "").startswith("application/json")
            if self.status >= 400 and not is_json and not self._is_bare:
                self._replaced = True
                body = said(SENTENCES.get(self.status, f"{HTTPStatus(self.status).phrase}."))
                headers["content-type"] = "application/json"
                headers["content-length"] = str(len(body))
                await self._send(message)
                await self._send({"type": "http.response.body", "body": body})
                return
        if self._is_bare and message["type"] == "http.response.body":
            message = {**message, "body": b""}
        if not self._replaced:
            await self._send(message)

    async def refuse(self, refused: _Refused) -> None:
        body = said(refused.sentence)
        headers = {"content-type": "application/json", "content-length": str(len(body))} | refused.headers
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": refused.status, "headers": raw})
        await self.send({"type": "http.response.body", "body": body})


def said(sentence: str) -> bytes:
    """An error's body."""
    return json.dumps({"error": sentence}, ensure_ascii=False).encode()
