"""The HTTP service: real requests, over a client in the process and over sockets."""

from __future__ import annotations

import concurrent.futures
import errno
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import harvest
from harvest.data.video import probe, read_clip, write_pictures
from harvest.interfaces import HarvestError

pytest.importorskip("fastapi")

import httpx2 as httpx
from starlette.testclient import TestClient

from harvest.search.serving import access, routes, server
from harvest.search.serving.access import AccessControl, Gate
from harvest.search.serving.metrics import Metrics
from harvest.search.serving.server import gate_of, make_app

from ..conftest import BANK, SEGMENTATION

LOCAL = gate_of("127.0.0.1", token=None)
TOKEN = "a token that is long enough"


def client_of(index: harvest.Index, scratch: Path, gate: Gate = LOCAL) -> TestClient:
    return TestClient(
        make_app(index, gate=gate, scratch=scratch),
        base_url="http://localhost",
        raise_server_exceptions=False,
    )


@pytest.fixture(scope="module")
def client(library: harvest.Index, tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    return client_of(library, tmp_path_factory.mktemp("scratch"))


@pytest.fixture(scope="module")
def picture(clips: Path) -> bytes:
    return write_pictures(read_clip(clips / "3.mp4", num_frames=1, image_size=64, end_s=2.0).frames)[0]


def says(answer: httpx.Response, status: int, part: str) -> None:
    """An error is JSON with one sentence."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["error"] and part in answer.json()["error"]
    assert "\n" not in answer.json()["error"] and "Traceback" not in answer.text


# ---- searching


def test_a_sentence_finds_what_the_library_finds(client: TestClient, library: harvest.Index) -> None:
    asked = {"text": "a red circle", "k": 4, "false_accept": 0.2}
    answer = client.post("/api/search", json=asked)
    assert answer.status_code == 200
    expected = library.search("a red circle", k=4, false_accept=0.2)
    assert [hit["moment"]["id"] for hit in answer.json()["hits"]] == [h.moment.id for h in expected.hits]
    assert answer.json()["hits"][0]["chance"] == expected.hits[0].chance
    assert answer.json()["is_there"] is expected.is_there


def test_nothing_like_this_here(client: TestClient) -> None:
    answer = client.post("/api/search", json={"text": BANK[0], "false_accept": 0.01}).json()
    assert answer["is_there"] is False and answer["hits"]


def test_more_like_this_and_filters(client: TestClient, library: harvest.Index) -> None:
    moment = f"{library.videos()[2].id}.1"
    answer = client.post("/api/search", json={"moment": moment, "k": 50}).json()
    assert moment not in {hit["moment"]["id"] for hit in answer["hits"]} and len(answer["hits"]) == 23
    trip = {
        "moment": moment,
        "k": 50,
        "where": {"path": "trip/*", "min_duration_s": 1, "after": "2000-01-01"},
    }
    hits = client.post("/api/search", json=trip).json()["hits"]
    assert len(hits) == 9 and all(hit["moment"]["path"].startswith("trip/") for hit in hits)
    trip["where"] = {"before": "2000-01-01"}
    assert client.post("/api/search", json=trip).json()["notes"][0] == "no video meets the filter"
    without = {"text": "a circle", "without": ["a circle"], "k": 5}
    assert client.post("/api/search", json=without).json()["hits"] == []


def test_a_picture_finds_its_moment(client: TestClient, library: harvest.Index, picture: bytes) -> None:
    sent = client.post("/api/pictures", content=picture, headers={"content-type": "image/jpeg"})
    assert sent.status_code == 201
    answer = client.post("/api/search", json=sent.json() | {"k": 1}).json()
    assert answer["hits"][0]["moment"]["path"] == "3.mp4" and answer["hits"][0]["moment"]["start_s"] == 0.0
    assert answer["query"] == "a picture"
    [scores] = client.post("/api/timelines", json=sent.json() | {"videos": [library.videos()[3].id]}).json()
    assert max(scores["scores"]) == scores["scores"][0]


def test_timelines(client: TestClient, library: harvest.Index) -> None:
    ids = [video.id for video in library.videos()[:3]]
    found = client.post("/api/timelines", json={"text": "a red circle", "videos": ids}).json()
    assert [scores["video"]["id"] for scores in found] == ids
    expected = library.timeline("a red circle", ids[1])
    assert found[1]["scores"] == pytest.approx(expected.scores, abs=1e-4)
    assert found[1]["start_s"] == [0.0, 2.0, 4.0] and found[1]["end_s"] == [2.0, 4.0, 6.0]
    moment = client.post("/api/timelines", json={"moment": f"{ids[0]}.2", "videos": ids[:1]}).json()
    assert moment[0]["scores"][2] == pytest.approx(1.0, abs=1e-3)
    assert library.timeline(None, ids[0], moment=f"{ids[0]}.2").scores[2] == pytest.approx(1.0, abs=1e-3)
    with pytest.raises(HarvestError, match="exactly one"):
        library.timeline(None, ids[0])


@pytest.mark.parametrize(
    ("asked", "status", "part"),
    [
        ({}, 422, "exactly one of text, moment and picture"),
        ({"text": "a", "moment": "b.0"}, 422, "exactly one"),
        ({"text": ""}, 422, "text: String should have at least 1 character"),
        ({"text": "  "}, 400, "the query is empty"),
        ({"text": "a" * 10_000}, 422, "at most 2000 characters"),
        ({"text": "a", "k": 0}, 422, "k: "),
        ({"text": "a", "k": 10**9}, 422, "k: "),
        ({"text": "a", "colour": 1}, 422, "colour: Extra inputs"),
        ({"text": "a", "without": ["b"] * 9}, 422, "without: "),
        ({"text": "a", "where": {"after": "soon"}}, 400, "expected a date"),
        ({"text": "a", "where": {"path": "x" * 501}}, 422, "where.path: "),
        ({"text": "a", "rerank": 5}, 400, "no matching head"),
        ({"moment": "../../etc/passwd"}, 404, "no video"),
        ({"moment": "00.99"}, 404, "no video"),
        ({"picture": "../../../etc/passwd"}, 404, "send it again"),
    ],
)
def test_bad_queries(client: TestClient, asked: dict[str, Any], status: int, part: str) -> None:
    says(client.post("/api/search", json=asked), status, part)


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 422),
        (b"\xff\xfe", "application/json", 422),
        (b'{"text": "\\ud800"}', "application/json", 422),
        (b'{"text": "a", "false_accept": NaN}', "application/json", 422),
        (b"[" * 50_000, "application/json", 400),
        (b'{"text": "a"}', "text/plain", 422),
        (b"", "application/json", 422),
        (b'{"text": "' + b"a" * access.MAX_JSON_BYTES + b'"}', "application/json", 413),
    ],
)
def test_malformed_bodies(client: TestClient, body: bytes, kind: str, status: int) -> None:
    says(client.post("/api/search", content=body, headers={"content-type": kind}), status, "")
    assert client.get("/health").json()["status"] == "ok"


def test_other_languages_are_searched_with(client: TestClient) -> None:
    assert (
        client.post("/api/search", json={"text": "ein roter Kreis, 赤い丸, دائرة حمراء"}).status_code == 200
    )


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a", b"#EXTM3U\nfile:///etc/passwd", b"ffconcat version 1.0\nfile a.mp4"]
)
def test_what_is_no_picture_is_refused(client: TestClient, data: bytes) -> None:
    says(client.post("/api/pictures", content=data), 400, "JPEG, PNG or WebP")


def test_damaged_and_huge_pictures(client: TestClient, picture: bytes) -> None:
    says(client.post("/api/pictures", content=picture[:40]), 400, "damaged")
    says(client.post("/api/pictures", content=bytes(access.MAX_PICTURE_BYTES + 1)), 413, "too large")

    def parts() -> Iterator[bytes]:  # without a length
        for _ in range(access.MAX_PICTURE_BYTES // 2**20 + 1):
            yield picture[:4] + bytes(2**20)

    says(client.post("/api/pictures", content=parts()), 413, "too large")


# ---- files


def test_a_file_by_ranges(client: TestClient, library: harvest.Index) -> None:
    video = library.videos()[6]
    data = library.file(video.id).read_bytes()
    address = f"/api/videos/{video.id}/file"
    whole = client.get(address)
    assert whole.content == data and whole.headers["content-type"] == "video/mp4"
    assert whole.headers["accept-ranges"] == "bytes"
    for asked, part in (
        ("bytes=0-99", data[:100]),
        ("bytes=1000-", data[1000:]),
        ("bytes=-50", data[-50:]),
        (f"bytes=10-{len(data) + 999}", data[10:]),
    ):
        answer = client.get(address, headers={"range": asked})
        assert answer.status_code == 206 and answer.content == part
        first = data.index(part) if len(part) > 60 else len(data) - len(part)
        assert answer.headers["content-range"] == f"bytes {first}-{first + len(part) - 1}/{len(data)}"
    beyond = client.get(address, headers={"range": f"bytes={len(data)}-"})
    says(beyond, 416, "beyond the end")
    assert beyond.headers["content-range"] == f"bytes */{len(data)}"
    says(client.get(address, headers={"range": "bytes=9-5,x"}), 400, "malformed")
    head = client.head(address)
    assert head.headers["content-length"] == str(len(data)) and head.content == b""
    tag = whole.headers["etag"]
    assert client.get(address, headers={"range": "bytes=0-9", "if-range": tag}).status_code == 206
    assert client.get(address, headers={"range": "bytes=0-9", "if-range": '"old"'}).status_code == 200


def test_heads_known_answers_and_other_ranges(client: TestClient, library: harvest.Index) -> None:
    video = library.videos()[0].id
    for address in ("/api/stats", f"/api/videos/{video}/file", f"/api/videos/{video}/thumbnail", "/page.js"):
        got, bare = client.get(address), client.head(address)
        assert bare.status_code == 200 and bare.content == b"" and got.content
        assert bare.headers["content-length"] == str(len(got.content))
        if "etag" in got.headers:
            known = client.get(address, headers={"if-none-match": got.headers["etag"]})
            assert known.status_code == 304 and known.content == b""
    address = f"/api/videos/{video}/file"
    whole = client.get(address)
    assert whole.headers["content-type"] == "video/mp4"
    assert client.get(address, headers={"range": "lines=0-1"}).content == whole.content
    since = {"if-modified-since": whole.headers["last-modified"]}
    assert client.get(address, headers=since).status_code == 304
    assert "attachment" in client.get(address, params={"download": True}).headers["content-disposition"]
    says(client.get("/api/stats", headers={"x": "a" * 17_000}), 431, "too large")


def test_a_proxys_path(library: harvest.Index, tmp_path: Path) -> None:
    app = make_app(library, gate=LOCAL, scratch=tmp_path, prefix="/videos")
    client = TestClient(app, base_url="http://localhost", follow_redirects=False)
    for address in ("/videos/api/stats", "/api/stats"):  # whether the proxy takes it off or leaves it
        assert client.get(address).status_code == 200
    assert client.get("/videos").headers["location"] == "/videos/"
    assert client.get("/videos/").text == client.get("/").text
    assert client.get("/openapi.json").json()["servers"] == [{"url": "/videos"}]
    says(client.get(f"/api/videos/{library.videos()[0].id}/path"), 403, "own machine")


def test_a_file_that_is_swapped_after_it_was_opened(
    some_clips: Path, image_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(b"not for you")
    with harvest.Index.build(some_clips, out=tmp_path / "library", model=image_model) as index:
        [video] = [video for video in index.videos() if video.path == "0.mp4"]
        file, really_open = some_clips / "0.mp4", os.open
        whole = file.read_bytes()

        def swap(path: Any, *args: Any) -> int:
            """A link while it is opened, and the file itself when its name is looked at."""
            kept = file.rename(file.with_suffix(".kept"))
            file.symlink_to(secret)
            descriptor = really_open(path, *args)
            kept.rename(file)
            return descriptor

        with monkeypatch.context() as patch:
            patch.setattr("harvest.search.index.os.open", swap)
            with pytest.raises(HarvestError, match="outside the library"):
                index.open_file(video.id)
        client = client_of(index, tmp_path / "scratch")
        assert client.get(f"/api/videos/{video.id}/file").content == whole


def test_what_a_dead_service_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harvest.search.serving.uploads import scratch_folder

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / "harvest-serve-dead"
    left.mkdir()
    (left / ".lock").touch()
    with scratch_folder() as first, scratch_folder() as second:
        assert not left.exists() and first.is_dir() and second.is_dir()
    assert not list(tmp_path.iterdir())


def test_thumbnails_and_previews(client: TestClient, library: harvest.Index, tmp_path: Path) -> None:
    video = library.videos()[1]
    answer = client.get(f"/api/videos/{video.id}/thumbnail", params={"time_s": 2.5, "height": 48})
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.content == library.thumbnail(video.id, 2.5, height=48)
    says(client.get(f"/api/videos/{video.id}/thumbnail?height=100000"), 422, "height: ")
    says(client.get(f"/api/videos/{video.id}/thumbnail?time_s=nan"), 422, "time_s: ")

    address = f"/api/moments/{video.id}.1/preview"
    preview = client.get(address)
    assert preview.status_code == 200 and preview.headers["content-type"] == "video/mp4"
    path = tmp_path / "preview.mp4"
    path.write_bytes(preview.content)
    assert probe(path).codec == "h264" and probe(path).duration_s == pytest.approx(2.0, abs=0.05)
    shown = read_clip(path, num_frames=4, image_size=32).frames.float()
    meant = read_clip(
        library.file(video.id), num_frames=4, image_size=32, start_s=2.0, end_s=4.0
    ).frames.float()
    other = read_clip(
        library.file(video.id), num_frames=4, image_size=32, start_s=4.0, end_s=6.0
    ).frames.float()
    assert (shown - meant).abs().mean() < 0.5 * (shown - other).abs().mean()
    assert client.get(address, headers={"range": "bytes=0-9"}).content == preview.content[:10]


@pytest.mark.parametrize(
    "address",
    [
        "/api/videos/../../etc/passwd/file",
        "/api/videos/..%2f..%2fetc%2fpasswd/file",
        "/api/videos/%2fetc%2fpasswd/file",
        "/api/videos/%2e%2e/file",
        "/api/videos/0.mp4/file",
        "/api/videos/00%00/file",
        "/api/videos/" + "0" * 64 + "/file",
        "/api/videos/" + "0" * 9000 + "/file",
        "/api/moments/../../etc/passwd/preview",
        "/api/moments/00.1/preview",
        "/page.py",
        "/../server.py",
        "/%2e%2e/server.py",
        "//etc/passwd",
        "/page/../../server.py",
    ],
)
def test_no_way_to_another_file(client: TestClient, address: str) -> None:
    answer = client.get(address)
    assert answer.status_code in (404, 422) and list(answer.json()) == ["error"]
    assert b"root:" not in answer.content and b"import" not in answer.content


def test_links_and_vanished_files_are_not_served(some_clips: Path, image_model: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.mp4"
    shutil.copy(some_clips / "0.mp4", secret)
    with harvest.Index.build(
        some_clips, out=tmp_path / "library", model=image_model, segmentation=SEGMENTATION, background=BANK
    ) as index:
        client = client_of(index, tmp_path / "scratch")
        first, second, third = (video.id for video in index.videos()[:3])
        (some_clips / "0.mp4").unlink()
        (some_clips / "0.mp4").symlink_to(secret)
        (some_clips / "1.mp4").unlink()
        shutil.move(some_clips, tmp_path / "elsewhere")
        some_clips.mkdir()
        (some_clips / "2.mp4").symlink_to(tmp_path / "elsewhere" / "2.mp4")
        for address in (
            f"/api/videos/{first}/file",
            f"/api/videos/{second}/file",
            f"/api/videos/{third}/file",
        ):
            assert client.get(address).status_code == 404
            assert client.get(address.replace("file", "thumbnail")).status_code == 404
        says(client.get(f"/api/moments/{third}.0/preview"), 404, "outside the library")
        assert str(tmp_path) not in client.get(f"/api/videos/{third}/file").text
        (some_clips / "2.mp4").unlink()
        (some_clips / "2.mp4").write_bytes(b"no video any more")
        says(client.get(f"/api/videos/{third}/thumbnail"), 422, "cannot be read")


def test_a_full_disk_is_told_without_paths(
    library: harvest.Index, picture: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = client_of(library, tmp_path)

    def full(source: object, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source))

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        for answer in (
            client.post("/api/pictures", content=picture),
            client.get(f"/api/moments/{library.videos()[0].id}.0/preview"),
        ):
            says(answer, 503, "cannot read or write a file")
            assert str(tmp_path) not in answer.text
    assert client.get(f"/api/moments/{library.videos()[0].id}.0/preview").status_code == 200


# ---- what it says of itself


def test_lists_stats_and_openapi(client: TestClient, library: harvest.Index) -> None:
    listed = client.get("/api/videos", params={"path": "TRIP", "limit": 2}).json()
    assert listed["total"] == 3 and [v["path"] for v in listed["videos"]] == ["trip/5.mp4", "trip/6.mp4"]
    assert client.get(f"/api/videos/{listed['videos'][0]['id']}").json() == listed["videos"][0]
    stats = client.get("/api/stats").json()
    assert stats["videos"] == 8 and stats["moments"] == 24 and stats["duration_s"] == 48.0
    assert client.get("/api/broken").json() == []
    api = client.get("/openapi.json").json()
    assert set(api["paths"]) >= {"/api/search", "/api/videos/{video}/file", "/metrics"}
    assert "SearchRequest" in api["components"]["schemas"] and "Answer" in api["components"]["schemas"]
    says(client.get("/docs"), 404, "")
    says(client.delete("/api/search"), 405, "")


def test_metrics_count_and_keep_quiet_about_queries(library: harvest.Index, tmp_path: Path) -> None:
    client = client_of(library, tmp_path)
    for _ in range(3):
        client.post("/api/search", json={"text": "a very private wish"})
    client.get("/api/videos/00/file")
    client.get("/no/such/place")
    text = client.get("/metrics").text
    assert 'harvest_requests_total{method="POST",route="/api/search",status="200"} 3.0' in text
    assert 'harvest_requests_total{method="GET",route="/api/videos/{video}/file",status="404"} 1.0' in text
    assert 'harvest_requests_total{method="GET",route="other",status="404"} 1.0' in text
    assert "harvest_library_moments 24.0" in text and "harvest_request_seconds_bucket" in text
    assert "private" not in text and "/no/such" not in text


def test_the_page_asks_for_nothing_from_outside(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    for address in ("/", "/page.css", "/page.js"):
        text = client.get(address).text
        assert len(text) > 500
        assert not re.search(r"""(?:https?:)?//[a-z0-9-]+\.[a-z]""", text.replace("http://www.w3.org/", ""))
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|\sstyle=", page.text)  # the policy would refuse them


# ---- who may ask


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8077", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8077", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example:8077", 421),
        ("192.168.1.5", 421),
        ("[::1", 421),
        ("localhost:80@evil.example", 421),
        ("", 421),
    ],
)
def test_the_host_header_is_ours(client: TestClient, host: str, status: int) -> None:
    answer = client.get("/api/stats", headers={"host": host})
    assert answer.status_code == status
    if status != 200:
        says(answer, status, "host name")


def test_a_service_for_others_goes_by_addresses_and_given_names() -> None:
    gate = gate_of("0.0.0.0", token=TOKEN, names=("Videos.example",))
    assert gate.knows("192.168.1.5:8077") and gate.knows("[fe80::1]") and gate.knows("videos.example:443")
    assert not gate.knows("evil.example") and not gate.knows("")


def test_pages_of_other_sites_may_not_ask(client: TestClient) -> None:
    says(client.get("/api/stats", headers={"sec-fetch-site": "cross-site"}), 403, "other sites")
    assert client.get("/", headers={"sec-fetch-site": "cross-site"}).status_code == 200  # a link to the page
    assert client.get("/api/stats", headers={"sec-fetch-site": "same-origin"}).status_code == 200
    assert "access-control-allow-origin" not in client.get("/api/stats").headers


def test_a_token_is_required_elsewhere() -> None:
    assert gate_of("127.0.0.1", token=None).token is None and gate_of("::1", token=None).token is None
    made = gate_of("0.0.0.0", token=None).token
    assert made is not None and len(made) >= 32 and made != gate_of("0.0.0.0", token=None).token
    assert gate_of("192.168.1.5", token=None).token is not None
    assert gate_of("127.0.0.1", token=TOKEN).token == TOKEN
    with pytest.raises(HarvestError, match="at least 16"):
        gate_of("0.0.0.0", token="short")


def test_the_token(library: harvest.Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(library, tmp_path, gate_of("0.0.0.0", token=TOKEN))
    video = library.videos()[0].id
    closed = ["/api/stats", "/api/videos", f"/api/videos/{video}/file", "/metrics", "/openapi.json", "/no"]
    for address in closed:
        answer = client.get(address)
        says(answer, 401, "token")
        assert answer.headers["www-authenticate"].startswith("Bearer")
    says(client.post("/api/search", json={"text": "a"}), 401, "token")
    for address in ("/", "/page.js", "/page.css", "/health"):
        assert client.get(address).status_code == 200
    for wrong in ("Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer", "Bearer é"):
        assert client.get("/api/stats", headers={"authorization": wrong.encode()}).status_code == 401
    assert client.get(f"/api/stats?token={TOKEN}").status_code == 401  # never in an address
    assert client.get("/api/stats", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200

    says(client.post("/api/session", json={"token": "wrong"}), 401, "not the library's token")
    given = client.post("/api/session", json={"token": TOKEN})
    cookie = given.headers["set-cookie"]
    assert given.status_code == 204 and TOKEN not in cookie
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    assert client.get(f"/api/videos/{video}/file").status_code == 200  # the client keeps the cookie
    client.cookies.clear()
    name = cookie.partition("=")[0]
    assert client.get("/api/stats", headers={"cookie": f"{name}=00"}).status_code == 401

    compared: list[str] = []
    monkeypatch.setattr(access.hmac, "compare_digest", lambda a, b: compared.append(a) or a == b)
    client.get("/api/stats", headers={"authorization": "Bearer wrong"})
    assert compared == [b"wrong"]


# ---- how much at once


def test_too_many_waiting_are_told_to_come_again(
    library: harvest.Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "MAX_WAITING", 3)
    go = threading.Event()
    monkeypatch.setattr(library, "stats", lambda: go.wait(20) and harvest.Index.stats(library))
    with client_of(library, tmp_path) as client, concurrent.futures.ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(client.get, "/api/stats") for _ in range(6)]
        done, _ = concurrent.futures.wait(asked, timeout=20, return_when="FIRST_COMPLETED")
        while len(done) < 3:
            done, _ = concurrent.futures.wait(asked, timeout=0.1)
        for refused in done:
            says(refused.result(), 503, "try again")
            assert refused.result().headers["retry-after"] == "1"
        assert client.get("/health").status_code == 200  # the loop is free while threads are busy
        go.set()
        assert sorted(answer.result().status_code for answer in asked) == [200] * 3 + [503] * 3


def test_a_slow_body_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    import anyio

    monkeypatch.setattr(access, "BODY_S", 0.1)
    sent: list[Any] = []

    async def app(*_: Any) -> None:
        raise AssertionError("not reached")

    async def receive() -> dict[str, Any]:
        await anyio.sleep(0.06)
        return {"type": "http.request", "body": b"a", "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/api/search",
        "headers": [(b"host", b"localhost")],
        "server": ("127.0.0.1", 1),
    }
    asked = AccessControl(app, gate=LOCAL, metrics=Metrics())
    anyio.run(asked, scope, receive, send)
    assert sent[0]["status"] == 408 and b"did not arrive" in sent[1]["body"]
    assert asked._held_bytes == 0

    monkeypatch.setattr(access, "MAX_BODIES_BYTES", 3)
    monkeypatch.setattr(access, "BODY_S", 5.0)
    sent.clear()
    anyio.run(asked, scope, receive, send)
    assert sent[0]["status"] == 503 and asked._held_bytes == 0


# ---- over sockets


@contextmanager
def served(folder: Path, *options: str, **environment: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`harvest serve` in a process of its own; gives the address it prints."""
    process = subprocess.Popen(
        [sys.executable, "-m", "harvest", "serve", str(folder), "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line.startswith("serving "), process.stderr.read()
        yield line.split(" at ")[1].strip(), process
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.fixture(scope="module")
def address(library: harvest.Index) -> Iterator[str]:
    with served(library._library.database.path.parent) as (address, _):
        yield address


def test_a_thousand_requests_while_indexing_goes_on(
    some_clips: Path, image_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "library"
    harvest.Index.build(
        some_clips, out=out, model=image_model, segmentation=SEGMENTATION, background=BANK
    ).close()
    with served(out) as (address, _), concurrent.futures.ThreadPoolExecutor(50) as pool:
        limits = httpx.Limits(max_connections=50, max_keepalive_connections=50)
        with httpx.Client(base_url=address, timeout=60, limits=limits) as client:
            video = client.get("/api/videos").json()["videos"][7]["id"]

            def ask(number: int) -> tuple[int, float]:
                started = time.monotonic()
                if number % 5 == 4:
                    address = f"/api/videos/{video}/file"
                    answer = client.get(address, headers={"range": "bytes=0-999"})
                else:
                    answer = client.post("/api/search", json={"text": f"a circle {number % 7}"})
                return answer.status_code, time.monotonic() - started

            answers = [pool.submit(ask, number) for number in range(1000)]
            for number in range(3):
                shutil.copy(some_clips / "0.mp4", some_clips / f"new{number}.mp4")
                shutil.move(some_clips / f"{number + 1}.mp4", some_clips / f"moved{number}.mp4")
                harvest.Index.build(some_clips, out=out).close()
            assert {answer.result()[0] for answer in answers} == {200, 206}
            took = sorted(answer.result()[1] for answer in answers)
            print(f"1,000 requests from 50 connections: p50 {took[500]:.3f} s, p99 {took[990]:.3f} s")
            paths = {v["path"] for v in client.get("/api/videos").json()["videos"]}
            assert {"new2.mp4", "moved2.mp4"} <= paths and "3.mp4" not in paths


def test_pictures_go_with_the_service(library: harvest.Index, picture: bytes, tmp_path: Path) -> None:
    with served(library._library.database.path.parent, TMPDIR=str(tmp_path)) as (address, process):
        assert httpx.post(f"{address}api/pictures", content=picture).status_code == 201
        [kept] = tmp_path.glob("harvest-serve-*/pictures/*.jpg")
        assert kept.read_bytes() == picture and kept.parents[1].stat().st_mode & 0o77 == 0
    assert process.returncode == 0 and list(tmp_path.iterdir()) == []


def raw(address: str, data: bytes, *, timeout: float = 20.0) -> bytes:
    """What comes back for bytes that no client would send."""
    url = httpx.URL(address)
    with socket.create_connection((url.host, url.port), timeout=timeout) as connection:
        connection.sendall(data)
        answer = b""
        while part := connection.recv(65536):
            answer += part
        return answer


def test_raw_requests(address: str) -> None:
    head = b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    for path in (
        b"/../../../etc/passwd",
        b"//etc/passwd",
        b"/..%2f..%2fetc%2fpasswd",
        b"/api/videos/../../x/file",
    ):
        answer = raw(address, b"GET " + path + head)
        assert answer.startswith(b"HTTP/1.1 404") and b"root:" not in answer
    assert raw(address, b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 4")
    assert raw(address, b"\x16\x03\x01 nonsense\r\n\r\n").startswith(b"HTTP/1.1 4")
    assert raw(address, b"GET /" + b"a" * 100_000 + head).startswith(b"HTTP/1.1 4")
    long = b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n"
    assert raw(address, long).startswith(b"HTTP/1.1 413")
    assert b"server:" not in raw(address, b"GET /health" + head).lower()
    assert httpx.get(f"{address}health").json()["status"] == "ok"


def test_a_slow_head_is_cut_off(library: harvest.Index, monkeypatch: pytest.MonkeyPatch) -> None:
    import uvicorn

    monkeypatch.setattr(server, "HEADERS_S", 0.3)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    bound = socket.create_server(("127.0.0.1", 0))
    run = uvicorn.Server(
        uvicorn.Config(
            app, http=server.Protocol, ws="none", lifespan="off", log_level="warning", timeout_keep_alive=200
        )
    )
    thread = threading.Thread(target=run.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        whole = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
        for first in (b"", whole):  # at once, and after a request that was answered
            with socket.create_connection(bound.getsockname(), timeout=20) as connection:
                connection.sendall(first)
                assert not first or connection.recv(999).startswith(b"HTTP/1.1 204")
                connection.sendall(b"GET / HT")
                started = time.monotonic()
                assert connection.recv(999) == b""
                assert (
                    time.monotonic() - started < 15
                )  # uvicorn's own limit is longer, and only between requests
    finally:
        run.should_exit = True
        thread.join(20)


def test_serve_makes_a_token_for_others(library: harvest.Index) -> None:
    folder = library._library.database.path.parent
    with served(folder, "--host", "0.0.0.0") as (address, _):
        base, _, token = address.partition("#token=")
        port = httpx.URL(base).port
        assert httpx.get(f"http://127.0.0.1:{port}/api/stats").status_code == 401
        allowed = httpx.get(
            f"http://127.0.0.1:{port}/api/stats", headers={"authorization": f"Bearer {token}"}
        )
        assert allowed.json()["videos"] == 8


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "203.0.113.77"], "cannot listen at 203.0.113.77"),
        (["--port", "99999"], "port: expected at least 0 and at most 65535"),
        (["--token-file", "absent"], "token file absent: cannot be read"),
        (["--model", "absent"], "absent"),
    ],
)
def test_mistakes_are_told_in_a_line(
    library: harvest.Index, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    from harvest.cli import main

    assert main(["serve", str(library._library.database.path.parent), "--port", "0", *options]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_serving_what_is_no_library(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from harvest.cli import main

    assert main(["serve", str(tmp_path)]) == 2
    assert "is not a library" in capsys.readouterr().err
