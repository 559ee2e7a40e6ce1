"""Requests made at random from the service's own description: never an error of the server, and nothing grows."""

from __future__ import annotations

import os
import random
import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

import harvest

pytest.importorskip("fastapi")

import httpx2 as httpx

from ..conftest import BANK, SEGMENTATION
from .test_server import served

# 150 requests in the suite; HARVEST_REQUESTS=50000 for the figures in docs/results.md.
REQUESTS = int(os.environ.get("HARVEST_REQUESTS", "150"))
WARM_UP = 0.2  # of the requests, before memory is compared
JUNK: list[Any] = [
    *(None, True, 0, -1, 1.5, 10**30, "", " ", "\0", "é" * 300, "../../etc/passwd", "%2e%2e/", "nan", [], {}),
    *([[]], {"a": None}, "x" * 5000, "\ud83d\ude00", "' OR 1=1 --", "<b>"),
]


class Described:
    """Values that a JSON schema describes, and now and then some that it does not."""

    def __init__(self, document: dict[str, Any], draw: random.Random, known: list[str]) -> None:
        self.document, self.draw, self.known = document, draw, known

    def value(self, schema: dict[str, Any], depth: int = 0) -> Any:
        draw = self.draw
        if draw.random() < 0.06:
            return draw.choice(JUNK)
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            return self.value(self.document["components"]["schemas"][name], depth)
        if "anyOf" in schema:
            return self.value(draw.choice(schema["anyOf"]), depth)
        if "enum" in schema:
            return draw.choice(schema["enum"])
        match schema.get("type"):
            case "object":
                asked = schema.get("properties", {})
                chosen = [name for name in asked if name in schema.get("required", ()) or draw.random() < 0.4]
                return {name: self.value(asked[name], depth + 1) for name in chosen}
            case "array":
                length = draw.choice([0, 1, 1, 2, schema.get("maxItems", 3)])
                return [self.value(schema.get("items", {}), depth + 1) for _ in range(length)]
            case "integer" | "number":
                low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
                high = min(schema.get("maximum", schema.get("exclusiveMaximum", 1000)), 1000)
                number = draw.choice([low, high, draw.uniform(low, high), draw.uniform(low, high)])
                return int(number) if schema["type"] == "integer" else number
            case "boolean":
                return draw.random() < 0.5
            case "string":
                return self.text(schema)
        return None

    def text(self, schema: dict[str, Any]) -> str:
        if "pattern" in schema or self.draw.random() < 0.3:
            return self.draw.choice([*self.known, *self.known, "0" * 32, "0.0", "f" * 64])
        words = self.draw.choices(["a red", "circle", "moves", "left", "*.mp4", "2026-01-01", "ring"], k=3)
        return " ".join(words)[: schema.get("maxLength", 100)]


def request_of(described: Described) -> tuple[str, str, dict[str, Any]]:
    """Method, address and the rest of one request."""
    draw, paths = described.draw, described.document["paths"]
    path = draw.choice(list(paths))
    method = draw.choice(list(paths[path]))
    operation, query, headers, more = paths[path][method], {}, {}, {}
    for parameter in operation.get("parameters", []):
        value = described.value(parameter["schema"])
        if parameter["in"] == "path":
            path = path.replace(f"{{{parameter['name']}}}", quote(str(value), safe="", errors="replace"))
        elif draw.random() < 0.6:
            query[parameter["name"]] = str(value)
    body = operation.get("requestBody", {}).get("content", {})
    if "application/json" in body and draw.random() < 0.95:
        more["json"] = described.value(body["application/json"]["schema"])
    elif body:
        more["content"] = bytes(draw.randrange(256) for _ in range(draw.choice([0, 1, 100, 5000])))
        headers["content-type"] = draw.choice([*body, "text/plain"])
    if draw.random() < 0.2:
        headers["range"] = draw.choice(
            ["bytes=0-9", "bytes=-5", "bytes=9-0", "bytes=0-0,5-9", "items=1-2", "x"]
        )
    method = "head" if method == "get" and draw.random() < 0.1 else method
    return method, path, {"params": query, "headers": headers, **more}


def held(pid: int) -> tuple[float, int]:
    """MB of memory and open files of a process and those that it started."""
    todo, size_kb, files = [pid], 0, 0
    while todo:
        one = todo.pop()
        try:
            status = Path(f"/proc/{one}/status").read_text()
            files += len(os.listdir(f"/proc/{one}/fd"))
            todo += map(int, Path(f"/proc/{one}/task/{one}/children").read_text().split())
            size_kb += int(status.partition("RssAnon:")[2].split()[0])
        except (OSError, IndexError):  # it has ended
            continue
    return size_kb / 1024, files


@pytest.mark.timeout(4 * 3600)
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="measures memory in /proc")
def test_requests_made_from_the_description(
    some_clips: Path, image_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """While the library is indexed again and again: no 5xx but 503, no way round the token, nothing that grows."""
    out, scratch, token = tmp_path / "library", tmp_path / "tmp", tmp_path / "token"
    scratch.mkdir()
    token.write_text("a token that is long enough")
    token.chmod(0o600)
    build = {"out": out, "model": image_model, "segmentation": SEGMENTATION, "background": BANK}
    harvest.Index.build(some_clips, **build).close()
    is_over, indexed = threading.Event(), Counter[str]()

    def index_on() -> None:
        number = 0
        while not is_over.wait(1.0):
            number += 1
            shutil.copy(some_clips / "0.mp4", some_clips / "again.mp4")
            (some_clips / "1.mp4").rename(some_clips / "moved.mp4")
            harvest.Index.build(some_clips, out=out).close()
            (some_clips / "again.mp4").unlink()
            (some_clips / "moved.mp4").rename(some_clips / "1.mp4")
            harvest.Index.build(some_clips, out=out).close()
            indexed["times"] += 2

    draw, statuses = random.Random(6), Counter[int]()
    early: tuple[float, int] = (0.0, 0)
    with served(out, "--token-file", str(token), TMPDIR=str(scratch)) as (address, process):
        base = address.partition("#")[0]
        allowed = {"authorization": f"Bearer {token.read_text()}"}
        with httpx.Client(base_url=base, timeout=60) as client:
            document = client.get("/openapi.json", headers=allowed).json()
            videos = [video["id"] for video in client.get("/api/videos", headers=allowed).json()["videos"]]
            described = Described(document, draw, [*videos, *(f"{video}.1" for video in videos)])
            indexer = threading.Thread(target=index_on)
            indexer.start()
            try:
                for number in range(REQUESTS):
                    method, path, how = request_of(described)
                    is_allowed = draw.random() < 0.9
                    if is_allowed:
                        how["headers"] |= allowed
                    try:
                        answer = client.request(method, path, **how)
                    except (httpx.InvalidURL, UnicodeEncodeError):  # no request was made of it
                        continue
                    client.cookies.clear()
                    statuses[answer.status_code] += 1
                    assert answer.status_code < 500 or answer.status_code == 503, (
                        method,
                        path,
                        how,
                        answer.text,
                    )
                    assert b"root:" not in answer.content
                    if not is_allowed and path not in ("/health", "/api/session"):
                        assert answer.status_code in (401, 404, 413, 503), (method, path, how)
                    if number == int(WARM_UP * REQUESTS):
                        early = held(process.pid)
            finally:
                is_over.set()
                indexer.join()
            late = held(process.pid)
            files = [path for path in scratch.rglob("*") if path.is_file()]
            assert client.get("/health").json()["status"] == "ok"
    with capsys.disabled():
        print(
            f"\n{REQUESTS} requests: {dict(sorted(statuses.items()))}; indexed {indexed['times']} times meanwhile; "
            f"{early[0]:.0f} MB, {early[1]} open files early, {late[0]:.0f} MB, {late[1]} late; {len(files)} files"
        )
    if REQUESTS >= 5000:  # caches are full by then
        assert late[0] < 1.1 * early[0] and late[1] <= early[1] + 20
    assert not list(scratch.iterdir())
