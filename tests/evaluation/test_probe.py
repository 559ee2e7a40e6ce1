from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from harvest.cli import main
from harvest.data.benchmarks import BenchmarkData, Published
from harvest.data.manifest import write_manifest
from harvest.evaluation import probe as room
from harvest.evaluation.benchmark import probe_benchmark
from harvest.evaluation.probe import ProbeConfig, draw_shots, fit_attentive, fit_linear, probe
from harvest.evaluation.result import Result
from harvest.interfaces import Example, HarvestError
from harvest.model.folder import save_model

from .conftest import World, moved_to

CPU = torch.device("cpu")


def blobs(n: int = 90, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % 3
    centres = 1.2 * torch.randn(3, 6, generator=torch.Generator().manual_seed(9))
    return centres[label] + torch.randn(n, 6, generator=generator), label


def test_the_linear_probe_is_scikit_learns_logistic_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    x, label = blobs(12)  # too few for a choice of penalties: 0.01
    classify = fit_linear(x.half(), label, num_classes=3, seed=0, device=CPU)
    seen = x.half().float()
    scaled = (seen - seen.mean(0)) / seen.std(0, unbiased=False)
    theirs = LogisticRegression(C=1 / (0.01 * len(x)), max_iter=5000, tol=1e-8).fit(
        scaled.numpy(), label.numpy()
    )
    wanted = torch.tensor(theirs.predict_proba(scaled.numpy())).float()
    torch.testing.assert_close(classify(x.half()), wanted, atol=2e-3, rtol=0)


def test_the_penalty_is_chosen_on_held_out_clips(monkeypatch) -> None:
    """Much to overfit: the chosen penalty is better on new clips than the weakest and than the strongest."""

    def clips(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, label = blobs(n, seed)
        return torch.cat(
            [x, torch.randn(n, 80, generator=torch.Generator().manual_seed(seed + 50))], 1
        ), label

    x, label = clips(120, 1)
    test_x, test_label = clips(600, 2)

    def likelihood() -> float:
        classify = fit_linear(x, label, num_classes=3, seed=0, device=CPU)
        return float(classify(test_x)[torch.arange(600), test_label].log().mean())

    chosen = likelihood()
    for only in (room.PENALTIES[0], room.PENALTIES[-1]):
        monkeypatch.setattr(room, "PENALTIES", (only,))
        assert chosen > likelihood() + 0.05


def test_an_attentive_probe_finds_the_token_that_tells() -> None:
    """The class stands in one token of eight, at a random place: their mean hardly shows it."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(3, 16, generator=generator)

    def clips(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        label = torch.randint(3, (n,), generator=generator)
        tokens = torch.randn(n, 8, 16, generator=generator)
        tokens[torch.arange(n), torch.randint(8, (n,), generator=generator)] = 3 * codes[label]
        return tokens, label

    tokens, label = clips(300)
    of = dict(names=("a", "b", "c"), num_heads=4, epochs=20, lr=3e-3, seed=0, device=CPU)
    classify = fit_attentive(tokens, label, **of)
    test_tokens, test_label = clips(300)
    assert (classify(test_tokens).argmax(1) == test_label).float().mean() > 0.9
    assert classify(test_tokens).equal(fit_attentive(tokens, label, **of)(test_tokens))


def test_shots_are_so_many_of_each_class() -> None:
    label = torch.tensor([0, 1, 0, 1, 0, 1, 1])
    drawn = draw_shots(label, 2, 2, torch.Generator().manual_seed(0))
    assert label[drawn].tolist() == [0, 0, 1, 1] and len(set(drawn.tolist())) == 4
    with pytest.raises(HarvestError, match="class 0 has 3 training clips, 4 are asked for"):
        draw_shots(label, 4, 2, torch.Generator())


def sets(world: World) -> tuple[list[Example], list[Example]]:
    """Stretches of four clips of noise: the first half of each trains, the second is asked about."""
    train, test = [], []
    for number, e in enumerate(world.examples):
        bare = dataclasses.replace(e, texts=(), label=number % 2)
        train += [dataclasses.replace(bare, id=f"{e.id}-{k}", start_s=k / 8, end_s=0.5) for k in range(3)]
        test.append(dataclasses.replace(bare, start_s=0.5, end_s=1.0))
    return train, test


@pytest.mark.parametrize("kind", ["linear", "attentive"])
def test_probes_of_a_model(world: World, kind: str, tmp_path: Path, monkeypatch) -> None:
    train, test = sets(world)
    config = ProbeConfig(kind=kind, epochs=2, cache=tmp_path / "features")

    def probed(**how: int) -> Result:
        asked = dataclasses.replace(config, **how)
        return probe(world.model, train, test, class_names=("a", "b"), config=asked)

    first = probed()
    assert first.task == f"{kind}_probe" and first.counts["clips"] == 4
    assert "frozen tower" in first.protocol and "12 clips" in first.protocol
    # Features are there now: nothing is decoded again, and the figures are the same.
    monkeypatch.setattr(room, "collect", lambda *a, **k: pytest.fail("decoded again"))
    assert probed() == first
    few = probed(shots=2, draws=3)
    assert few.counts["shots"] == 2 and few.counts["draws"] == 3 and not few.intervals
    assert few.metrics["top1_lowest"] <= few.metrics["top1"] <= few.metrics["top1_highest"]
    assert "2 clips a class, mean of 3 draws" in few.protocol


def test_a_clip_on_both_sides_is_refused(world: World) -> None:
    train, test = sets(world)
    with pytest.raises(HarvestError, match="1 clips are in the training and in the test set"):
        probe(world.model, [*train, test[0]], test, class_names=("a", "b"))
    with pytest.raises(HarvestError, match="classes go from 0 to 0"):
        probe(world.model, train, test, class_names=("a",))


@pytest.mark.parametrize(
    "wrong",
    [
        {"shots": 0},
        {"shots": -1},
        {"shots": 1, "draws": 0},
        {"batch_size": 0},
        {"num_frames": 0},
        {"epochs": 0},
        {"workers": -1},
    ],
)
def test_what_is_less_than_one(wrong: dict[str, int]) -> None:
    (name, value) = list(wrong.items())[-1]
    with pytest.raises(
        HarvestError, match=f"^{name}: expected at least {int(name != 'workers')}, got {value}$"
    ):
        ProbeConfig(**wrong)


def test_a_benchmark_is_probed_whole_or_with_its_share(world: World) -> None:
    train, test = sets(world)

    def data(split: str, examples: list[Example], gone: int = 0) -> BenchmarkData:
        rows = [dataclasses.replace(e, video="gone.mp4") if n < gone else e for n, e in enumerate(examples)]
        return BenchmarkData(
            name="toy",
            split=split,
            task="recognition",
            examples=tuple(rows),
            protocol=f"Toy, {split}.",
            counts={},
            published=Published({"rows": len(examples)}, "a test"),
            unresolved=frozenset({"gone.mp4"} if gone else ()),
            class_names=("a", "b"),
        )

    whole = probe_benchmark(world.model, data("train", train), data("test", test))
    assert (
        whole.protocol.startswith("Toy, test. Logistic regression") and "share_of_rows" not in whole.metrics
    )
    with pytest.raises(HarvestError, match="--allow-missing"):
        probe_benchmark(world.model, data("train", train), data("test", test, gone=1))
    with pytest.raises(HarvestError, match="--allow-missing"):
        probe_benchmark(world.model, data("train", train, gone=2), data("test", test))
    some = probe_benchmark(
        world.model, data("train", train, gone=2), data("test", test, gone=1), allow_missing=True
    )
    assert some.metrics["share_of_rows"] == 0.75
    assert "Of the training split train 2 rows are missing" in some.protocol
    assert some.protocol.endswith("Only 3 of 4 rows were scored.")


def test_the_command(world: World, tmp_path: Path, capsys, monkeypatch) -> None:
    train, test = sets(world)
    save_model(tmp_path / "model", world.model, world.tokenizer)
    write_manifest(tmp_path / "train.jsonl", train)
    write_manifest(tmp_path / "test.jsonl", test)
    (tmp_path / "names.txt").write_text("a\nb\n")
    args = ["probe", str(tmp_path / "model"), "--workers", "0", "--out", str(tmp_path / "found.json")]
    assert main(args) == 2
    assert "probe needs --train, --test and --classes" in capsys.readouterr().err
    args += ["--train", str(tmp_path / "train.jsonl"), "--test", str(tmp_path / "test.jsonl")]
    assert main([*args, "--classes", str(tmp_path / "names.txt"), "--shots", "0"]) == 2
    assert "shots: expected at least 1, got 0" in capsys.readouterr().err
    moved = moved_to(monkeypatch)
    assert main([*args, "--classes", str(tmp_path / "names.txt")]) == 0
    assert moved == [CPU]
    assert json.loads((tmp_path / "found.json").read_text())["task"] == "linear_probe"
