"""Ten million captioned clips on one machine: what opening, sharing and reading them takes, in seconds and memory.

A drawn csv is read and opened again, a store of its captions is built block by block and opened, and two workers read
from both what the steps of an epoch ask for: rows, samples and embeddings, without decoding videos. Tokens are empty and
embeddings drawn: what a tokenizer and a tower take is measured elsewhere.

    python -m experiments.ten_million --folder /tmp/ten-million --rows 10700000
"""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from experiments import main
from harvest.config import LoopConfig, RunConfig
from harvest.data.dataset import ClipDataset, DataConfig
from harvest.data.manifest import read_manifest
from harvest.data.sampler import Keys, StepSampler
from harvest.model.text_encoder import TextEncoderConfig
from harvest.model.tokenizer import Tokenizer, train_tokenizer
from harvest.model.video_encoder import VideoEncoderConfig
from harvest.model.video_text import ModelConfig, VideoTextModel
from harvest.objectives import text_store
from harvest.objectives.contract import Ready
from harvest.objectives.post_pretraining import PostPretrainingConfig
from harvest.objectives.text_store import TextType, open_texts
from harvest.parallel import World

WORDS = [
    "a",
    "man",
    "woman",
    "dog",
    "cat",
    "car",
    "boat",
    "bird",
    "runs",
    "walks",
    "turns",
    "looks",
    "at",
    "the",
    "sea",
    "road",
    "hill",
    "house",
    "in",
    "on",
    "under",
    "slowly",
]


@dataclass(frozen=True)
class TenMillion:
    folder: Path
    rows: int
    width: int
    stored: TextType = "fp16"
    steps: int = 1000
    batch: int = 1024
    workers: int = 2


def ten_million(*, folder: Path, rows: int = 10_700_000, width: int = 512, steps: int = 1000) -> None:
    """Print and write figures.json into the folder.

    Args:
        folder: where the csv, its columns and the store are written; the store takes 2 * width bytes a row
        rows: clips, each with one caption
        width: numbers of an embedding
        steps: of 1,024 clips whose embeddings are read
    """
    config = TenMillion(folder, rows, width, steps=steps)
    text_store.encode_texts = _drawn
    os.environ["XDG_CACHE_HOME"] = str(config.folder / "cache")
    manifest = config.folder / "clips.csv"
    config.folder.mkdir(parents=True, exist_ok=True)
    if not manifest.exists():
        _write(manifest, config.rows)
    figures: dict[str, Any] = {"rows": config.rows, "manifest_mb": manifest.stat().st_size / 1e6}

    def told(name: str, value: Any) -> None:
        figures[name] = value
        print(f"{name}: {value}", flush=True)
        (config.folder / "figures.json").write_text(json.dumps(figures, indent=1))

    for name in ("first reading", "opening"):
        found, seconds, peak = _apart(lambda: len(read_manifest(manifest)))
        told(f"manifest, {name}", {"rows": found, "s": round(seconds, 1), "peak_mb": peak})
    tokenizer = train_tokenizer([" ".join(WORDS)], vocab_size=400, context_length=16)
    empty: Any = _Empty(tokenizer.core, tokenizer.config)
    text = TextEncoderConfig(
        width=32, depth=1, num_heads=2, vocab_size=tokenizer.core.get_vocab_size(), context_length=16,
        embed_dim=config.width,
    )  # fmt: skip
    video = VideoEncoderConfig(
        width=32, depth=1, num_heads=2, image_size=8, patch_size=8, embed_dim=config.width
    )
    torch.manual_seed(0)
    model = VideoTextModel(ModelConfig(video=video, text=text))
    objective = PostPretrainingConfig(
        cache_texts=True, text_store_type=config.stored, masked_words_weight=0.0
    )
    run = RunConfig("ten-million", objective, loop=LoopConfig(precision="fp32"))

    def opened() -> tuple[ClipDataset, Any]:
        data = ClipDataset(
            read_manifest(manifest), DataConfig(num_frames=1), image_size=8, encode_text=_no_tokens, seed=0
        )
        ready = Ready(run, data, empty, World(), lambda rows: iter(()), config.folder / "run")
        return data, open_texts(model, ready, config.folder, config.stored)

    for name in ("building", "opening"):
        _, seconds, peak = _apart(lambda: opened()[1].num)
        told(f"manifest and store, {name}", {"s": round(seconds, 1), "peak_mb": peak})
    data, captions = opened()
    before = time.perf_counter()
    open_texts(
        model,
        Ready(run, data, empty, World(), lambda rows: iter(()), config.folder / "run"),
        config.folder,
        config.stored,
    )
    told("store alone, opening", {"s": round(time.perf_counter() - before, 2)})
    assert captions.num == config.rows and data.stored is not None
    told("an epoch of rows", _read(_Rows(data), config, steps=config.rows // config.batch))
    told("steps of rows and embeddings", _read(_Rows(data, embeds=True), config, steps=config.steps))
    told("the training process", {"peak_mb": _memory()["VmHWM"]})


def _write(path: Path, rows: int) -> None:
    generator = np.random.default_rng(0)
    part = path.with_suffix(".part")
    with open(part, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("videoid", "video", "caption"))
        for start in range(0, rows, 2**16):
            drawn = generator.integers(0, len(WORDS), (min(2**16, rows - start), 10)).tolist()
            for row, words in enumerate(drawn, start):
                writer.writerow((row, f"{row // 1000:05d}/{row:08d}.mp4", " ".join(WORDS[w] for w in words)))
    part.rename(path)


class _Empty(Tokenizer):
    def __call__(self, texts: list[str]) -> torch.Tensor:
        return _no_tokens(texts)


def _no_tokens(texts: list[str]) -> torch.Tensor:
    return torch.zeros(len(texts), 1, dtype=torch.int64)


def _drawn(model: VideoTextModel, text_ids: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.rand(len(text_ids), model.config.text_tower.embed_dim)


class _Rows(Dataset):
    """What a worker does for a step before it decodes: the rows' columns, and their captions' embeddings."""

    def __init__(self, data: ClipDataset, *, embeds: bool = False) -> None:
        self.data, self.embeds = data, embeds

    def __getitem__(self, keys: Keys) -> tuple[dict[str, float], float, Any]:
        samples = keys.samples[:, 0]
        read = [self.data.examples[int(sample)] for sample in samples]
        before = time.perf_counter()
        pooled = None
        if self.embeds and self.data.stored is not None:
            numbers = torch.from_numpy(samples)  # one caption a clip
            pooled = self.data.stored[1](numbers[:, None])
        seconds = time.perf_counter() - before
        assert len(read) == len(keys)
        return _memory() if keys[0][1] % 32 == 0 else {}, seconds, pooled


def _read(rows: _Rows, config: TenMillion, *, steps: int) -> dict[str, Any]:
    sampler = StepSampler(config.rows, config.batch)

    def keys() -> Iterator[Keys]:
        for step in range(steps):
            yield rows.data.with_samples(sampler.keys(step))

    loader = DataLoader(
        rows, sampler=keys(), batch_size=None, num_workers=config.workers, multiprocessing_context="fork"
    )  # type: ignore[arg-type]
    before, seconds, memory = time.perf_counter(), [], {}
    for found, took, _ in loader:
        seconds.append(took)
        memory = {name: max(value, memory.get(name, 0)) for name, value in found.items()} or memory
    return {
        "steps": steps,
        "all_s": round(time.perf_counter() - before, 1),
        "median_ms_of_embeddings": round(1e3 * float(np.median(seconds)), 3),
        "ms_a_step_over_workers": round(1e3 * float(np.mean(seconds)) / max(1, config.workers), 3),
        "worker_mb": memory,
    }


def _memory() -> dict[str, float]:
    """Of this process in MB: resident at most so far and now, and what is its own alone."""
    lines = (
        Path("/proc/self/status").read_text().splitlines()
        + Path("/proc/self/smaps_rollup").read_text().splitlines()
    )
    found: dict[str, float] = {}
    for line in lines:
        name, _, value = line.partition(":")
        if name in ("VmHWM", "VmRSS", "RssAnon"):
            found[name] = int(value.split()[0]) / 1e3
        if name == "Private_Dirty":  # clean pages are the system's cache of files
            found["own"] = int(value.split()[0]) / 1e3
    return {name: round(value, 1) for name, value in found.items()}


def _apart(work: Any) -> tuple[Any, float, dict[str, float]]:
    """What a function gives in a process of its own, its seconds, and the memory of that process."""
    context = torch.multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)

    def run() -> None:
        before = time.perf_counter()
        value = work()
        send.send((value, time.perf_counter() - before, _memory()))

    process = context.Process(target=run)
    process.start()
    found = receive.recv()
    process.join()
    return found


if __name__ == "__main__":
    main(ten_million)
