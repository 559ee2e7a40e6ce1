"""A library on a server: over HTTP, against the stand-in of qdrant_stand_in.py and, where its binary is, Qdrant itself."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import harvest
from harvest.cli import main
from harvest.interfaces import HarvestError
from harvest.search.index import UnknownId
from harvest.search.results import Where

from .conftest import BANK, QdrantServer
from .test_index import build, content
from .test_store import WIDTH, video

pytest.importorskip("qdrant_client")


def alike(here: Path, there: Path) -> None:
    """Two libraries of the same files: one on a server, which keeps vectors in fp32."""
    one, two = content(here), content(there)
    assert one.keys() == two.keys()
    for name in one:
        assert one[name][:2] == two[name][:2] and one[name][3] == two[name][3]
        a, b = (np.frombuffer(library[name][2], "<f4") for library in (one, two))
        np.testing.assert_allclose(a, b, atol=1e-3)


def _delete(qdrant: QdrantServer) -> None:
    from qdrant_client import QdrantClient

    client = QdrantClient(url=qdrant.address, check_compatibility=False)
    for name in ("videos", "videos-videos"):
        client.delete_collection(name)
    client.close()


def test_all_of_a_librarys_life(
    some_clips: Path, image_model: Path, tmp_path: Path, qdrant: QdrantServer
) -> None:
    store = f"{qdrant.address}/videos"
    local, remote = tmp_path / "local", tmp_path / "remote"
    build(some_clips, local, image_model).close()
    build(some_clips, remote, image_model, store=store).close()
    (some_clips / "0.mp4").rename(some_clips / "moved.mp4")
    (some_clips / "1.mp4").unlink()
    (some_clips / "broken.mp4").write_text("no video")
    os.utime(some_clips / "2.mp4")
    with build(some_clips, local) as here, build(some_clips, remote) as there:
        assert here.report is not None and there.report is not None
        assert dataclasses.replace(there.report, seconds=0) == dataclasses.replace(here.report, seconds=0)
        assert there.report.moved == 1 and there.videos() == here.videos() and there.broken() == here.broken()
        assert there.stats().store == store
        for where in (None, Where(path="trip"), Where(path="nowhere"), Where(min_duration_s=7)):
            one, two = (index.search("a red circle", k=5, where=where) for index in (here, there))
            assert [hit.moment for hit in one.hits] == [hit.moment for hit in two.hits]
            assert [hit.score for hit in one.hits] == pytest.approx([hit.score for hit in two.hits], abs=1e-3)
            assert one.notes == two.notes
        one, two = (index.search("a circle", without="a red circle", k=5) for index in (here, there))
        assert [hit.moment for hit in one.hits] == [hit.moment for hit in two.hits]
        with pytest.raises(UnknownId):
            there.moment("0123456789abcdef.0")
    alike(local, remote)
    with build(some_clips, remote) as index:
        assert index.report is not None and index.report.unchanged == 8 and index.report.changed == 0
    with pytest.raises(HarvestError, match="--reindex"):
        build(some_clips, remote, store="local")
    _delete(qdrant)  # the server has lost its data
    for use in (lambda: harvest.Index.open(remote), lambda: build(some_clips, remote)):
        with pytest.raises(HarvestError, match=r"does not hold this library.*--reindex"):
            use()
    with build(some_clips, remote, image_model, store=store, reindex=True) as index:
        assert index.report is not None and index.report.new == 8 and index.search("a red circle").hits


def test_another_librarys_vectors_are_left_alone(
    some_clips: Path, image_model: Path, tmp_path: Path, qdrant: QdrantServer
) -> None:
    store = f"{qdrant.address}/videos"
    build(some_clips, tmp_path / "mine", image_model, store=store).close()
    before = content(tmp_path / "mine")
    for reindex in (False, True):
        with pytest.raises(HarvestError, match=r"another library.*curl -X DELETE"):
            build(some_clips / "trip", tmp_path / "other", image_model, store=store, reindex=reindex)
    assert content(tmp_path / "mine") == before
    _delete(qdrant)  # somebody does what the message says
    build(some_clips / "trip", tmp_path / "other", image_model, store=store).close()
    for use in (lambda: harvest.Index.open(tmp_path / "mine"), lambda: build(some_clips, tmp_path / "mine")):
        with pytest.raises(HarvestError, match="another library"):
            use()


def test_an_indexer_that_is_killed_goes_on(
    some_clips: Path, image_model: Path, tmp_path: Path, qdrant: QdrantServer
) -> None:
    """kill -9 in the middle of what is written for a group of files, and while the next is encoded."""
    store = f"{qdrant.address}/videos"
    bank = tmp_path / "bank.txt"
    bank.write_text("\n".join(BANK))
    code = """
import os, signal, sys
from harvest.cli import main
from harvest.search import building
from harvest.search.qdrant import QdrantStore
building.GROUP = 2
put_files, left = QdrantStore._put_files, [int(sys.argv[1])]
def put_files_and_die(*asked):
    put_files(*asked)
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
QdrantStore._put_files = put_files_and_die
sys.exit(main(sys.argv[2:]))
"""
    asked = ["index", some_clips, "--model", image_model, "--out", tmp_path / "remote", "--store", store]
    for number in (3, 2):  # of the second group before its moments are written; of the first, after
        command = [sys.executable, "-c", code, number, *asked, "--window-s", "2", "--background", bank]
        done = subprocess.run([str(word) for word in command], capture_output=True, timeout=120)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
        with harvest.Index.open(tmp_path / "remote") as index:
            assert len(index.videos()) + len(index.broken()) in (4, 6) and len(index.videos()) in (2, 4)
            assert index.search("a red circle").hits
    (some_clips / "4.mp4").unlink()  # begun, and gone before anybody went on
    build(some_clips, tmp_path / "local", image_model).close()
    build(some_clips, tmp_path / "remote", background=bank).close()
    alike(tmp_path / "local", tmp_path / "remote")


def test_a_server_that_is_killed_and_comes_back(
    some_clips: Path, image_model: Path, tmp_path: Path, qdrant: QdrantServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harvest.search import building

    store = f"{qdrant.address}/videos"
    monkeypatch.setattr(building, "GROUP", 2)
    embed = building.embed_moments
    groups: list[int] = []

    def embed_and_kill(*asked: Any, **settings: Any) -> Any:
        groups.append(1)
        if len(groups) == 3:
            qdrant.kill()
        return embed(*asked, **settings)

    monkeypatch.setattr(building, "embed_moments", embed_and_kill)
    with pytest.raises(HarvestError, match=r"does not answer.*run the same command again"):
        build(some_clips, tmp_path / "remote", image_model, store=store)
    with pytest.raises(HarvestError, match="does not answer"):
        harvest.Index.open(tmp_path / "remote")
    qdrant.start()
    with build(some_clips, tmp_path / "remote", background=BANK) as index:
        assert index.report is not None and (index.report.unchanged, index.report.new) == (4, 4)
        assert index.report.moments == 24
    build(some_clips, tmp_path / "local", image_model).close()
    alike(tmp_path / "local", tmp_path / "remote")


def test_it_is_served(clips: Path, image_model: Path, tmp_path: Path, qdrant: QdrantServer) -> None:
    pytest.importorskip("fastapi")
    import httpx2 as httpx

    from .test_server import served

    build(clips, tmp_path / "remote", image_model, store=f"{qdrant.address}/videos").close()
    with served(tmp_path / "remote") as (address, _):
        found = httpx.post(f"{address}api/search", json={"text": "a red circle", "k": 3}, timeout=60).json()
        assert len(found["hits"]) == 3
        moment = found["hits"][0]["moment"]
        like = httpx.post(f"{address}api/search", json={"moment": moment["id"]}, timeout=60).json()
        assert like["hits"]
        lines = httpx.post(
            f"{address}api/timelines", json={"text": "a red circle", "videos": [moment["video"]]}, timeout=60
        )
        assert len(lines.json()[0]["scores"]) == 3
        assert httpx.get(f"{address}api/stats").json()["store"] == f"{qdrant.address}/videos"
        qdrant.kill()
        lost = httpx.post(f"{address}api/search", json={"text": "a blue star"}, timeout=60)
        assert lost.status_code == 503 and "does not answer" in lost.json()["error"]
        qdrant.start()
        assert httpx.post(f"{address}api/search", json={"text": "a blue star"}, timeout=60).json()["hits"]


def test_a_key(
    clips: Path, image_model: Path, tmp_path: Path, qdrant: QdrantServer, monkeypatch: Any
) -> None:
    qdrant.kill()
    qdrant.start(QDRANT__SERVICE__API_KEY="open sesame", QDRANT_API_KEY="open sesame")
    store = f"{qdrant.address}/videos"
    monkeypatch.delenv("QDRANT_API_KEY", raising=False)
    with pytest.raises(HarvestError, match="refuses: set QDRANT_API_KEY"):
        build(clips / "trip", tmp_path / "remote", image_model, store=store)
    monkeypatch.setenv("QDRANT_API_KEY", "open sesame")
    with build(clips / "trip", tmp_path / "remote", image_model, store=store) as index:
        assert index.search("a red circle").hits


def test_ranks_write_to_one_server(
    clips: Path, video_model: Path, tmp_path: Path, qdrant: QdrantServer
) -> None:
    build(clips, tmp_path / "one", video_model).close()
    bank = tmp_path / "bank.txt"
    bank.write_text("\n".join(BANK))
    code = "import sys; from harvest.search import building; building.GROUP = 2; from harvest.cli import main; sys.exit(main(sys.argv[1:]))"
    (tmp_path / "run.py").write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    asked = ["index", clips, "--model", video_model, "--out", tmp_path / "two", "--window-s", "2"]
    asked += ["--background", bank, "--store", f"{qdrant.address}/videos"]
    done = subprocess.run(
        [str(word) for word in (*command, tmp_path / "run.py", *asked)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    one, two = content(tmp_path / "one"), content(tmp_path / "two")
    assert one.keys() == two.keys()
    for name in one:
        assert one[name][:2] == two[name][:2]
        a, b = (np.frombuffer(library[name][2], "<f4") for library in (one, two))
        np.testing.assert_allclose(a, b, atol=2e-3)


class Killed(BaseException):
    pass


class Dying:
    """A client that is ended before one of its writing requests, after `left` of them."""

    def __init__(self, client: Any, left: int) -> None:
        self._client, self._left = client, left

    def __getattr__(self, name: str) -> Any:
        ask = getattr(self._client, name)
        if name not in ("upsert", "delete", "create_collection", "delete_collection", "create_payload_index"):
            return ask
        if self._left == 0:
            raise Killed
        self._left -= 1
        return ask


def ended_before_each(store: Any, work: Any, look: Any) -> int:
    """Do some work, ended before its first writing request, then its second, and so on; how many it has."""
    client, number = store.client, 0
    while True:
        store.client = Dying(client, number)
        try:
            work()
        except Killed:
            number += 1
            store.client = client
            look()
        else:
            store.client = client
            return number


def test_no_moment_is_left_without_a_file() -> None:
    """However an indexer ends, and once more, and all is right."""
    from qdrant_client import QdrantClient

    from harvest.search.qdrant import QdrantStore

    before = [video("a", 5, seed=1), video("b", 4, seed=2)]
    after = [video("b", 2, seed=3), video("c", 3, seed=4)]
    client = QdrantClient(":memory:")
    store = QdrantStore("http://localhost:6333/t", width=WIDTH, library="t", client=client)
    store.begin()
    store.put(before)

    def look() -> None:
        points, _ = client.scroll("t", limit=100, with_payload=True)
        assert {point.payload["video"] for point in points if point.payload} <= store.entries().keys()
        store.put(after, gone=["a"])
        assert store.entries() == {entry.id: entry for entry, _ in after} and store.num_moments() == 5
        for entry, spans in after:
            np.testing.assert_array_equal(store.spans(entry.id).vectors, spans.vectors)
        store.put(before, gone=["c"])

    assert ended_before_each(store, lambda: store.put(after, gone=["a"]), look) == 5


def test_a_library_that_was_not_finished_being_made() -> None:
    from qdrant_client import QdrantClient

    from harvest.search.qdrant import QdrantStore

    client = QdrantClient(":memory:")
    store = QdrantStore("http://localhost:6333/t", width=WIDTH, library="t", client=client)

    def look() -> None:
        if not store.client.collection_exists("t-videos") or not store.client.count("t-videos").count:
            with pytest.raises(HarvestError, match=r"does not hold this library.*--reindex"):
                store.check()
        store.begin()
        store.check()
        store.put([video("a", 5, seed=1)])

    assert ended_before_each(store, store.begin, look) == 6
    assert store.entries() == {} and store.num_moments() == 0


@pytest.mark.parametrize(
    "address",
    [
        "ftp://x/y",
        "http://x",
        "http://x/",
        "http://x/a/b",
        "http://x/a b",
        "http://x:99999/a",
        "http:///a",
        "http://x/a?b=c",
        "http://me:secret@x/a",
        "x/y",
        "http://[::1/a",
    ],
)
def test_addresses_that_are_none(address: str) -> None:
    from harvest.search.qdrant import QdrantStore

    with pytest.raises(HarvestError, match="HOST:PORT/NAME"):
        QdrantStore(address, width=WIDTH, library="t")


def test_addresses() -> None:
    from harvest.search.qdrant import _parts

    assert _parts("http://host/my-videos") == ("http://host:6333", "my-videos")
    assert _parts("https://[::1]:443/a/") == ("https://[::1]:443", "a")


def test_a_server_that_is_not_there_or_another(
    some_clips: Path, image_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(HarvestError, match="does not answer"):
        build(some_clips, tmp_path / "library", image_model, store="http://127.0.0.1:9/videos")
    command = [sys.executable, "-m", "http.server", "0", "--bind", "127.0.0.1"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as other:
        assert other.stdout is not None
        port = other.stdout.readline().split(" port ")[1].split()[0]
        asked = ["index", some_clips, "--model", image_model, "--out", tmp_path / "new"]
        try:
            assert main([*map(str, asked), "--store", f"http://127.0.0.1:{port}/videos"]) == 2
        finally:
            other.kill()
    error = capsys.readouterr().err
    assert "cannot do this: Unexpected Response: 404" in error and "Traceback" not in error
