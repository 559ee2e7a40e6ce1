"""Captions encoded once: what is stored, read, shared, gone on with, and not taken for something else."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from small import END, PAD, START, small_batch, small_model

from harvest.cli import main
from harvest.config import LoopConfig, RunConfig
from harvest.data import stored_rows
from harvest.data.dataset import ClipDataset, DataConfig
from harvest.data.stored_rows import StoredRows, rows_a_block
from harvest.interfaces import Example, HarvestError
from harvest.objectives import stores, text_store
from harvest.objectives.contract import Ready
from harvest.objectives.post_pretraining import PostPretraining, PostPretrainingConfig
from harvest.objectives.stores import open_rows
from harvest.objectives.text_store import Captions, encode_texts, open_texts
from harvest.parallel import World
from harvest.training.loop import train

NUM_CAPTIONS = 11
_OBJECTIVE = PostPretrainingConfig(cache_texts=True)


class Words:
    """A tokenizer of numbers: the text "3 4" has the tokens 3 and 4."""

    config = "of numbers"
    core = type("core", (), {"to_str": staticmethod(lambda: "numbers")})

    def __call__(self, texts: list[str]) -> torch.Tensor:
        ids = torch.full((len(texts), 8), PAD)
        for row, text in zip(ids, texts, strict=True):
            words = [START, *map(int, text.split()), END]
            row[: len(words)] = torch.tensor(words)
        return ids


def dataset(changes: str = "") -> ClipDataset:
    """Five clips with three captions, two, none, …"""
    counts, rows, number = (3, 2, 0, 4, 2), [], 0
    for clip, count in enumerate(counts):
        texts = tuple(f"{1 + (number + n) % 5} {2 + n}{changes}" for n in range(count))
        number += count
        rows.append(Example(str(clip), f"{clip}.mp4", texts, 0))
    return ClipDataset(rows, DataConfig(num_frames=1), image_size=8, encode_text=Words(), seed=0)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (stored_rows, stores):
        monkeypatch.setattr(module, "rows_a_block", lambda num_rows, size: 4)


def opened(folder: Path, *, seed: int = 0, stored: str = "fp32", data: ClipDataset | None = None) -> Captions:
    config = RunConfig(
        "x", dataclasses.replace(_OBJECTIVE, text_store_type=stored), loop=LoopConfig(precision="fp32")
    )
    ready = Ready(config, data or dataset(), Words(), World(), lambda rows: iter(()), folder)
    return open_texts(small_model(seed=seed), ready, folder, stored)


FIELDS = {
    "numbers": (torch.int32, (2,)),
    "halves": (torch.float16, (3,)),
    "bytes": (torch.float8_e4m3fn, (2, 5)),
}


def computed(folder: Path, *, missing: int = -1) -> tuple[StoredRows, dict[str, torch.Tensor]]:
    """Eleven rows of three types, in batches of three."""
    torch.manual_seed(0)
    values = {name: (9 * torch.rand(11, *shape)).to(dtype) for name, (dtype, shape) in FIELDS.items()}

    def compute(rows: range) -> Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
        for start in range(rows.start, rows.stop, 3):
            some = [n for n in range(start, min(start + 3, rows.stop)) if n != missing]
            rows_of = {name: v.view(torch.uint8)[some].view(v.dtype) for name, v in values.items()}
            if some:
                yield torch.tensor(some), rows_of

    about = {"of": "test"}
    store = open_rows(folder, "rows", about, 11, FIELDS, compute, here=World(), precision="fp32")
    return store, values


def test_rows_come_back_from_every_block_in_every_process(tmp_path: Path, small_blocks: None) -> None:
    store, values = computed(tmp_path)
    assert len(list(store.folder.glob("block-*.bin"))) == 3 and store.folder.name.startswith("rows-")
    numbers = torch.tensor([[10, 0], [4, 4], [3, -1]])
    for copy in (store, pickle.loads(pickle.dumps(store))):
        found = copy.read(numbers)
        assert {name: (part.dtype, part.shape[2:]) for name, part in found.items()} == FIELDS
        for name, part in found.items():
            assert torch.equal(part.float(), values[name].float()[numbers]), name
    for wrong in (-2, 11):
        with pytest.raises(IndexError):
            store(torch.tensor([wrong]))


def test_a_row_that_could_not_be_computed_is_named(tmp_path: Path, small_blocks: None) -> None:
    store, _ = computed(tmp_path, missing=7)
    assert store(torch.tensor([6, 8])).any()
    with pytest.raises(HarvestError, match="lacks row 7"):
        store(torch.tensor([6, 7]))


def test_blocks_that_are_not_whole_are_named_and_missing_ones_computed(
    tmp_path: Path, small_blocks: None
) -> None:
    store, _ = computed(tmp_path)
    last = store.folder / "block-00002.bin"
    whole = last.read_bytes()
    last.unlink()
    assert computed(tmp_path)[0].folder == store.folder and last.read_bytes() == whole
    last.write_bytes(whole[:-4])
    with pytest.raises(HarvestError, match=r"block-00002\.bin has .* bytes, expected .*remove"):
        computed(tmp_path)


def test_blocks_are_many_enough_to_share_and_few_enough_to_open() -> None:
    for rows, size in (
        (1, 8),
        (300, 1024),
        (5_000, 1024),
        (10_700_000, 1024),
        (200_000, 2_000_000),
        (10**9, 4),
    ):
        blocks = -(-rows // rows_a_block(rows, size))
        assert blocks <= 512 and (blocks > 8 or rows <= 8 * 256)
    assert rows_a_block(10_700_000, 1024) == 2**16 and rows_a_block(10_000, 2**21) == 2**6


def test_every_caption_is_stored_and_the_empty_text(tmp_path: Path, small_blocks: None) -> None:
    data, found = dataset(), opened(tmp_path)
    assert found.num == NUM_CAPTIONS == data.num_captions
    expected = encode_texts(small_model(), Words()([*data.captions(), ""]))
    numbers = torch.tensor([*range(NUM_CAPTIONS), -1])
    torch.testing.assert_close(found.pooled(numbers), expected, atol=1e-6, rtol=0)
    assert found.clips(numbers[:-1]).tolist() == [0, 0, 0, 1, 1, 3, 3, 3, 3, 4, 4]
    halves = opened(tmp_path, stored="fp16")
    assert halves.pooled(numbers).dtype == torch.float16 and halves.folder != found.folder
    assert (halves.pooled(numbers).float() - expected).abs().max() < 5e-4


def test_a_stopped_start_goes_on_and_a_later_one_encodes_nothing(
    tmp_path: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened(tmp_path)
    assert first.folder is not None and not (first.folder / "filling.json").exists()
    numbers = torch.arange(-1, NUM_CAPTIONS)
    before = first.pooled(numbers)
    (first.folder / "cache.json").rename(first.folder / "filling.json")
    (first.folder / "block-00001.bin").unlink()
    encoded = []

    def counted(model, ids):
        encoded.append(len(ids))
        return encode_texts(model, ids)

    monkeypatch.setattr(text_store, "encode_texts", counted)
    again = opened(tmp_path)
    assert encoded == [4] and again.folder == first.folder and torch.equal(again.pooled(numbers), before)
    opened(tmp_path)
    assert encoded == [4]


def test_another_tower_or_other_texts_have_a_store_of_their_own(tmp_path: Path) -> None:
    folders = {
        opened(tmp_path).folder,
        opened(tmp_path, seed=1).folder,
        opened(tmp_path, data=dataset(changes=" 5")).folder,
    }
    assert len(folders) == 3
    folder = opened(tmp_path).folder
    assert folder in folders and folder is not None
    made_of = json.loads((folder / "cache.json").read_text())
    (folder / "cache.json").write_text(json.dumps(made_of | {"rows": 3}))
    with pytest.raises(HarvestError, match="store of texts of something else"):
        opened(tmp_path)


def test_rows_of_the_loader_give_the_loss_of_the_tower(tmp_path: Path) -> None:
    """What a batch brings is what the tower gives for its captions, in fp32 and, to its precision, in fp16."""
    batch = small_batch(6, captions=2)
    totals = {}
    for stored, off in ((None, 0.0), (torch.float32, 1e-6), (torch.float16, 2e-3)):
        config = dataclasses.replace(
            _OBJECTIVE, text_store_type="fp16" if stored == torch.float16 else "fp32"
        )
        made = PostPretraining(config, small_model(), seed=0)
        shown = batch
        if stored is not None:
            pooled = encode_texts(made.model, batch.text_ids.flatten(0, 1)).to(stored)
            shown = batch._replace(stored=pooled.view(6, 2, -1).view(torch.uint8))
        losses = made(shown.rows([4, 0, 5]), 3)
        losses.total.backward()
        gradients = {n: p.grad for n, p in made.model.named_parameters() if p.grad is not None}
        totals[stored] = losses.total.detach(), gradients
        total, plain = totals[None]
        torch.testing.assert_close(losses.total.detach(), total, atol=off, rtol=off)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, plain[name], atol=off, rtol=10 * off, msg=name)


def test_runs_beside_each_other_share_a_store_that_their_workers_read(
    tiny_run: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_run(loop={"steps": 2, "save_every": 2}, tuning={"steps": 0}, data={"workers": 1})
    assert config.objective.cache_texts and config.objective.text_bank
    train(config, tmp_path / "first")
    stores = list(tmp_path.glob("texts-*"))
    assert len(stores) == 1

    def refused(*_: object) -> None:
        raise AssertionError("captions are encoded again")

    monkeypatch.setattr(text_store, "encode_texts", refused)
    train(config, tmp_path / "second")
    lines = [(tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in ("first", "second")]
    assert [json.loads(line)["loss"] for line in lines[0]] == [json.loads(line)["loss"] for line in lines[1]]


def test_the_command_encodes_before_a_run(
    tiny_run: Callable[..., RunConfig], image_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["mini-harvest", "--tiny", "--start.model", str(image_model), "--out", str(tmp_path / "run")]
    assert main(["encode-texts", *args]) == 0
    assert "captions are encoded" in capsys.readouterr().out
    assert not (tmp_path / "run").exists() and len(list(tmp_path.glob("texts-*/cache.json"))) == 1
    assert main(["encode-texts", "harvest-b16", "--tiny"]) == 2
    assert "--objective.cache-texts" in capsys.readouterr().err
