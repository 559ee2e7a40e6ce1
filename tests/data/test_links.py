"""Addresses are asked on a server of this machine: what is there, what is gone, what is slow, what is shy."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from harvest.cli import main
from harvest.data import links as module
from harvest.data.links import check_links
from harvest.data.manifest import read_manifest
from harvest.data.video import VideoError, read_clip
from harvest.interfaces import HarvestError


class Server(ThreadingHTTPServer):
    daemon_threads = True
    asked: Counter[str]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def answer(self) -> None:
        name = self.path.partition("?")[0].strip("/")
        self.server.asked[f"{self.command} {name}"] += 1
        code, kind, size = 200, "video/mp4", "1000"
        if name == "gone.mp4":
            code = 404
        elif name in ("page.mp4", "watch"):
            kind = "text/html; charset=utf-8"
        elif name == "empty.mp4":
            size = "0"
        elif name == "shy.mp4":
            code = 405 if self.command == "HEAD" else 206
        elif name == "secret.mp4":
            code = 403
        elif name == "busy.mp4":
            code = 503 if self.server.asked["HEAD busy.mp4"] < 3 else 200
        elif name == "dead.mp4":
            code = 500
        elif name == "slow.mp4":
            time.sleep(1.0)
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", size if self.command == "HEAD" else "1")
        self.end_headers()
        if self.command == "GET":
            assert self.headers["Range"] == "bytes=0-0"
            self.wfile.write(b"x")

    do_HEAD = do_GET = answer

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.001)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Server(("127.0.0.1", 0), Handler)
    server.asked = Counter()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_each_way_of_being_gone_is_named(server: Server) -> None:
    names = ["good", "gone", "page", "empty", "shy", "secret", "busy", "dead", "good"]
    addresses = [f"{server.address}/{name}.mp4" for name in names]
    told: list[tuple[int, int]] = []
    gone = check_links(addresses, timeout_s=60, progress=lambda *at: told.append(at))
    assert {address.rpartition("/")[2]: reason for address, reason in gone.items()} == {
        "gone.mp4": "404 Not Found",
        "page.mp4": "leads to a web page, not to a video",
        "empty.mp4": "empty (0 bytes)",
        "secret.mp4": "403 Forbidden",
        "dead.mp4": "500 Internal Server Error",
    }
    assert told[-1] == (8, 8)  # one address came twice
    assert server.asked["HEAD good.mp4"] == 1
    assert server.asked["HEAD gone.mp4"] == 1  # what is gone is not asked for again
    assert server.asked["HEAD dead.mp4"] == server.asked["HEAD busy.mp4"] == 3


def test_a_server_that_does_not_answer_in_time(server: Server) -> None:
    slow = f"{server.address}/slow.mp4"
    gone = check_links([slow, "memory://links/nothing.mp4"], timeout_s=0.2, tries=2)
    assert gone == {slow: "no answer within 0.2 s", "memory://links/nothing.mp4": "not there"}


def test_a_page_behind_an_address_that_names_no_video_is_fine(server: Server) -> None:
    assert check_links([f"{server.address}/page.mp4?x", f"{server.address}/watch"]).keys() == {
        f"{server.address}/page.mp4?x"
    }


def test_other_kinds_of_addresses(server: Server) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    MemoryFileSystem().pipe_file("/links/a.mp4", b"x")
    gone = check_links(["memory://links/a.mp4", "memory://links/b.mp4", "nosuch://b/a.mp4", "http:///a.mp4"])
    assert gone.keys() == {"memory://links/b.mp4", "nosuch://b/a.mp4", "http:///a.mp4"}
    assert gone["memory://links/b.mp4"] == "not there"


def test_a_machine_without_network_is_not_a_rotten_data_set(server: Server) -> None:
    free = server.address.rpartition(":")[2]
    server.shutdown()
    server.server_close()
    with pytest.raises(HarvestError, match="is this machine online"):
        check_links([f"http://127.0.0.1:{free}/a.mp4", f"http://127.0.0.1:{free}/b.mp4"], timeout_s=0.5)


def links_of(path: Path) -> dict[str, str]:
    return read_manifest(path, captions_required=False, keep_links=True).links


def test_rows_that_are_addresses(tmp_path: Path) -> None:
    manifest = tmp_path / "clips.csv"
    manifest.write_text("url,caption\nhttps://a.org/1.mp4,one\nhttps://a.org/2.mp4,two\n")
    rows = read_manifest(manifest)
    wanted = ["https://a.org/1.mp4", "https://a.org/2.mp4"]
    assert [row.video for row in rows] == list(links_of(manifest).values()) == wanted
    with pytest.raises(VideoError, match="an address: download"):
        read_clip(rows[0].video, num_frames=1, image_size=8)
    webvid = tmp_path / "webvid.csv"
    webvid.write_text("videoid,contentUrl,duration,page_dir,name\n7,https://a.org/7.mp4,PT1S,p,seven\n")
    assert list(links_of(webvid).values()) == ["https://a.org/7.mp4"]
    (tmp_path / "paths.jsonl").write_text(json.dumps({"video": "a.mp4", "caption": "a"}) + "\n")
    assert links_of(tmp_path / "paths.jsonl") == {}


def test_check_asks_only_when_it_is_told_to(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, out = tmp_path / "clips.jsonl", tmp_path / "out"
    rows = [
        {"id": name, "video": f"{server.address}/{name}.mp4", "caption": "some words"}
        for name in ("good", "gone")
    ]
    rows.append(
        {"id": "here", "video": "x.mp4", "url": f"{server.address}/gone.mp4", "caption": "some words"}
    )
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["check", str(manifest), "--out", str(out)]) == 0
    assert not server.asked and "2 rows are addresses, not looked at: --links" in capsys.readouterr().out
    assert main(["check", str(manifest), "--out", str(out), "--links"]) == 0
    said = json.loads((out / "check.json").read_text())
    assert said["missing"] == {"gone": "404 Not Found", "here": "no such file"}
    assert said["rotted"] == {"here": "404 Not Found"}  # its file is what counts, were it there
    clean = read_manifest(out / "clean.jsonl")
    assert [(row.id, row.video) for row in clean] == [("good", f"{server.address}/good.mp4")]
    assert "rotted" in capsys.readouterr().out
