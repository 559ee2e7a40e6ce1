"""A library of generated clips, and the models that index them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import harvest
from harvest.data.miniworld import MiniWorldConfig, make_clip, render
from harvest.data.video import write_video
from harvest.model.folder import load_model, save_model
from harvest.model.inflation import as_video_model
from harvest.search.cutting import Cutting

IMAGE_MODEL = Path(harvest.__file__).parent / "weights" / "mini-image"
WORLD = MiniWorldConfig(seed=11, retrieval=40)
CUTTING = Cutting(window_s=2.0)
BANK = [f"{what} {does}" for what in ("a purple ring", "an orange cross") for does in "abcdefghijklmnop"]


def write_long(path: Path, indices: range) -> list[str]:
    """Clips of the mini-world, one after the other in one file; gives their captions. Each takes two seconds."""
    clips = [make_clip(WORLD, "retrieval", index) for index in indices]
    frames = np.concatenate([render(scene) for scene, _ in clips])
    write_video(path, torch.from_numpy(frames).permute(0, 3, 1, 2), fps=8)
    return [row["texts"][0] for _, row in clips]


@pytest.fixture(scope="session")
def image_model() -> Path:
    return IMAGE_MODEL


@pytest.fixture(scope="session")
def video_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image model as a video model that has not been trained further."""
    folder = tmp_path_factory.mktemp("models") / "video"
    image, tokenizer = load_model(IMAGE_MODEL)
    model, _ = as_video_model(image, num_frames=8, tubelet_size=2)
    save_model(folder, model, tokenizer)
    return folder


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight videos of three moments each, in two folders. Read only: `some_clips` is a copy to change."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "trip").mkdir()
    for number in range(8):
        name = f"{number}.mp4" if number < 5 else f"trip/{number}.mp4"
        write_long(folder / name, range(3 * number, 3 * number + 3))
    return folder


@pytest.fixture
def some_clips(clips: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clips, tmp_path / "videos"))


@pytest.fixture(scope="session")
def library(
    clips: Path, image_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[harvest.Index]:
    """All clips, indexed. Not to be written to."""
    out = tmp_path_factory.mktemp("library")
    with harvest.Index.build(clips, out=out, model=image_model, cutting=CUTTING, background=BANK) as index:
        yield index


class QdrantServer:
    """A Qdrant server, or the stand-in for one, in a process of its own on loopback, that may be killed."""

    def __init__(self, binary: str | None, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._grpc_port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self._binary, self._folder = binary, folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, **environment: str) -> None:
        stand_in = [sys.executable, str(Path(__file__).with_name("qdrant_stand_in.py"))]
        command = [self._binary] if self._binary else [*stand_in, str(self.port), str(self._folder)]
        settings = {
            "QDRANT__SERVICE__HOST": "127.0.0.1",
            "QDRANT__SERVICE__HTTP_PORT": str(self.port),
            "QDRANT__SERVICE__GRPC_PORT": str(self._grpc_port),
            "QDRANT__STORAGE__STORAGE_PATH": str(self._folder / "storage"),
            "QDRANT__STORAGE__SNAPSHOTS_PATH": str(self._folder / "snapshots"),
            "QDRANT__TELEMETRY_DISABLED": "true",
            "QDRANT__LOG_LEVEL": "WARN",
        }
        self._folder.mkdir(exist_ok=True)
        self._process = subprocess.Popen(command, env=os.environ | settings | environment, cwd=self._folder)
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                assert self._process.poll() is None, "the server ended at once"
                time.sleep(0.1)
        raise AssertionError("the server does not listen")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture(params=["stand-in", "server"])
def qdrant(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[QdrantServer]:
    """A Qdrant server of this test's own: the stand-in, and the real one where its binary is."""
    pytest.importorskip("qdrant_client")
    binary = None
    if request.param == "server":
        binary = shutil.which("qdrant")
        if binary is None:
            pytest.skip("no Qdrant server here: put the binary `qdrant` on the PATH")
    server = QdrantServer(binary, tmp_path / "qdrant")
    server.start()
    yield server
    server.kill()
