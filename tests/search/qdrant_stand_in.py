"""A server that takes what a Qdrant server takes, for tests on machines without one: python qdrant_stand_in.py PORT FOLDER

Requests come over HTTP and have to be what the published interface says, to the field: they are read into the
client's own models of it, which know no others. Points lie in the client's local mode, in FOLDER, so that a server
that was killed comes back with them. Names are held to Qdrant's rules. With QDRANT_API_KEY set it asks for the key.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, TypeAdapter, ValidationError
from qdrant_client import QdrantClient
from qdrant_client.http import models as m

BODIES: dict[tuple[str, str], Any] = {
    ("PUT", ""): m.CreateCollection,
    ("PUT", "index"): m.CreateFieldIndex,
    ("PUT", "points"): m.PointInsertOperations,
    ("POST", "points"): m.PointRequest,
    ("POST", "points/delete"): m.PointsSelector,
    ("POST", "points/scroll"): m.ScrollRequest,
    ("POST", "points/query"): m.QueryRequest,
    ("POST", "points/count"): m.CountRequest,
}
FORBIDDEN = set('<>:"/\\|?*\0\x1f')  # in the name of a collection


class Refused(Exception):
    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Points:
    """The collections, one request at a time."""

    def __init__(self, folder: str) -> None:
        self.lock = threading.Lock()
        self.local = QdrantClient(path=folder, force_disable_check_same_thread=True)

    def answer(self, method: str, path: str, body: bytes) -> Any:
        parts = unquote(path).strip("/").split("/")
        if parts[0] != "collections" or len(parts) < 2:
            raise Refused(404, f"no such address: {path}")
        name, rest = parts[1], "/".join(parts[2:])
        if not name or len(name) > 255 or FORBIDDEN & set(name):
            raise Refused(422, f"collection name {name!r}")
        exists = self.local.collection_exists(name)
        if (method, rest) == ("GET", "exists"):
            return {"exists": exists}
        if (method, rest) == ("DELETE", ""):
            return exists and self.local.delete_collection(name)
        kind = BODIES.get((method, rest))
        if kind is None and (method, rest) != ("GET", ""):
            raise Refused(404, f"no such address: {method} {path}")
        asked: Any = None if kind is None else TypeAdapter(kind).validate_json(body)
        if (method, rest) == ("PUT", ""):
            if exists:
                raise Refused(409, f"Collection `{name}` already exists!")
            return self.local.create_collection(name, vectors_config=asked.vectors)
        if not exists:
            raise Refused(404, f"Collection `{name}` doesn't exist!")
        return self._of_collection(name, method, rest, asked)

    def _of_collection(self, name: str, method: str, rest: str, asked: Any) -> Any:
        match method, rest:
            case "GET", "":
                return self.local.get_collection(name)
            case "PUT", "index":
                return self.local.create_payload_index(name, asked.field_name, asked.field_schema)
            case "PUT", "points":
                return self.local.upsert(name, asked.points)
            case "POST", "points/delete":
                return self.local.delete(name, asked)
            case "POST", "points/scroll":
                points, offset = self.local.scroll(
                    name,
                    limit=asked.limit or 10,
                    offset=asked.offset,
                    with_payload=asked.with_payload is not False,
                )
                return {"points": points, "next_page_offset": offset}
            case "POST", "points":
                return self.local.retrieve(
                    name,
                    asked.ids,
                    with_payload=bool(asked.with_payload),
                    with_vectors=bool(asked.with_vector),
                )
            case "POST", "points/count":
                return self.local.count(name)
            case "POST", "points/query":
                return self.local.query_points(
                    name,
                    query=asked.query.nearest if isinstance(asked.query, m.NearestQuery) else asked.query,
                    limit=asked.limit,
                    query_filter=asked.filter,
                    with_payload=bool(asked.with_payload),
                    with_vectors=bool(asked.with_vector),
                )
            case _:
                raise AssertionError(rest)


def plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_none=True)
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list) else value


def serve(port: int, folder: str) -> None:
    warnings.simplefilter("ignore")
    points, key = Points(folder), os.environ.get("QDRANT_API_KEY")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            status, answer = 200, {}
            try:
                if key and self.headers.get("api-key") != key:
                    raise Refused(401, "Must provide an API key")
                with points.lock:
                    answer = {"result": plain(points.answer(self.command, urlsplit(self.path).path, body))}
                answer |= {"status": "ok"}
            except Refused as error:
                status, answer = error.status, {"status": {"error": str(error)}}
            except ValidationError as error:
                status, answer = 422, {"status": {"error": str(error)}}
            sent = json.dumps(answer | {"time": 0.0}).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        do_GET = do_PUT = do_POST = do_DELETE = handle_any

        def log_message(self, *_: object) -> None:
            pass

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2])
