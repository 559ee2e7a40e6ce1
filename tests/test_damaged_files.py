"""Libraries, checkpoints, model folders and shards with bytes flipped, cut or swapped: the same results, or an error."""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Hashable
from pathlib import Path

import pytest
import torch
from torch import nn

import harvest
from harvest.data.miniworld import MiniWorldConfig, make_clip, render
from harvest.data.options import PrepareConfig
from harvest.data.prepare import prepare
from harvest.data.shards import read_shards
from harvest.data.video import VideoError, write_video
from harvest.interfaces import Example, HarvestError
from harvest.model.folder import load_model
from harvest.search.library import local_store
from harvest.search.library.segmentation import Segmentation
from harvest.training.checkpoint import CheckpointWriter, load_checkpoint
from harvest.training.optim import OptimConfig, build_optimizer

# 15 damages of each of five kinds of files in the suite; HARVEST_DAMAGES=400 for the figures in docs/results.md.
DAMAGES = int(os.environ.get("HARVEST_DAMAGES", "15"))
IMAGE_MODEL = Path(harvest.__file__).parent / "weights" / "mini-image"
Answer = Hashable


def damage(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    place = draw.randrange(min(len(changed), draw.choice([512, 8192, 2**40])))
    length = draw.choice([1, 16, 512, 4096])
    match draw.choice(["flip", "flip", "flip", "byte", "zeros", "cut", "end", "swap", "more"]):
        case "flip":
            changed[place] ^= 1 << draw.randrange(8)
        case "byte":
            changed[place] = draw.randrange(256)
        case "zeros":
            changed[place : place + length] = bytes(len(changed[place : place + length]))
        case "cut":
            del changed[place : place + length]
        case "end":
            del changed[place:]
        case "swap":
            other = draw.randrange(len(changed))
            one, two = changed[place : place + length], changed[other : other + length]
            changed[place : place + len(one)], changed[other : other + len(two)] = two, one
            del changed[len(data) :]
        case "more":
            changed += bytes(length)
    return bytes(changed)


def clips(folder: Path, count: int) -> list[Example]:
    world, rows = MiniWorldConfig(seed=11, retrieval=count), []
    for number in range(count):
        scene, row = make_clip(world, "retrieval", number)
        frames = torch.from_numpy(render(scene)).permute(0, 3, 1, 2)
        write_video(folder / f"{number}.mp4", frames, fps=8)
        rows.append(
            Example(str(number), str(folder / f"{number}.mp4"), texts=tuple(row["texts"]), label=number)
        )
    return rows


def make_library(folder: Path) -> None:
    videos = folder.with_name("videos")
    videos.mkdir()
    clips(videos, 6)
    harvest.Index.build(
        videos,
        out=folder,
        model=IMAGE_MODEL,
        segmentation=Segmentation(window_s=2.0),
        background=[f"nothing {n}" for n in range(20)],
    ).close()


def ask_library(folder: Path) -> Answer:
    with harvest.Index.open(folder) as index:
        answer = index.search("a red circle moves to the left")
        videos = tuple((video.id, video.path, video.duration_s) for video in index.videos())
        return tuple((hit.moment.id, round(hit.score, 6)) for hit in answer.hits), videos


def run_of(folder: Path) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 8))
    return layer, build_optimizer(layer, OptimConfig(lr=0.1))


def make_checkpoints(folder: Path) -> None:
    layer, optimizer = run_of(folder)
    for step in (1, 2):
        layer(torch.ones(2, 64)).square().sum().backward()
        optimizer.step()
        with CheckpointWriter(folder, keep_last=2) as writer:
            writer.save(step, objective=layer, optimizer=optimizer)


def ask_checkpoints(folder: Path) -> Answer:
    layer, optimizer = run_of(folder)
    step = load_checkpoint(folder, objective=layer, optimizer=optimizer)
    moments = [t for state in optimizer.state.values() for t in state.values()]
    tensors = [*layer.state_dict().values(), *moments]
    return step, tuple(t.numpy().tobytes() for t in tensors)


def make_model(folder: Path) -> None:
    shutil.copytree(IMAGE_MODEL, folder, dirs_exist_ok=True)


def ask_model(folder: Path) -> Answer:
    model, tokenizer = load_model(folder)
    assert tokenizer is not None
    weights = tuple(tensor.numpy().tobytes() for tensor in model.state_dict().values())
    return weights, repr(model.config), repr(tokenizer.config), tuple(tokenizer(["a red circle"])[0].tolist())


def make_shards(folder: Path) -> None:
    videos = folder.with_name("videos")
    videos.mkdir()
    prepare(clips(videos, 6), folder, PrepareConfig(short_side=64, clips_per_shard=3), workers=0)


def ask_shards(folder: Path) -> Answer:
    shards = read_shards(str(folder))
    found = []
    for number in range(len(shards)):
        try:
            example, packed = shards.fetch(number)
        except VideoError:
            continue  # named, and left out of training
        place = shards.id_of(number).rpartition("/")[2]
        found.append((place, example.texts, example.label, int(shards.labels[number]), packed.files))
    return tuple(found)


KINDS: dict[str, tuple[Callable[[Path], None], Callable[[Path], Answer], str]] = {
    "library": (make_library, ask_library, "library.db"),
    "graph": (make_library, ask_library, "*.usearch"),
    "checkpoints": (make_checkpoints, ask_checkpoints, "checkpoints/*/*"),
    "model": (make_model, ask_model, "*"),
    "shards": (make_shards, ask_shards, "shard-*"),
}


@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_named_or_changes_nothing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make, ask, pattern = KINDS[kind]
    if kind == "graph":  # as in a library of more than 100,000 moments
        monkeypatch.setattr(local_store, "EXACT_MOST", 3)
    whole, copy = tmp_path / "whole", tmp_path / "copy"
    whole.mkdir()
    make(whole)
    right, draw, said = ask(whole), random.Random(5), Counter[str]()
    for _ in range(DAMAGES):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(whole, copy)
        path = draw.choice(sorted(p for p in copy.glob(pattern) if p.is_file()))
        path.write_bytes(damage(path.read_bytes(), draw))
        if path.read_bytes() == (whole / path.relative_to(copy)).read_bytes():
            continue
        try:
            found = ask(copy)
        except HarvestError as error:
            assert str(error)
            said["named"] += 1
            continue
        if found == right:
            said["the same"] += 1
        elif kind == "checkpoints":
            assert isinstance(found, tuple) and found[0] == 1
            said["the one before"] += 1
        else:
            assert kind == "shards" and isinstance(found, tuple) and isinstance(right, tuple), path
            assert set(found) < set(right)
            said["samples left out"] += 1
    with capsys.disabled():
        print(f"\n{kind}: {dict(said)}")
