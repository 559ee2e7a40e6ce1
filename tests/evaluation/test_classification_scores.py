from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from harvest.cli import main
from harvest.data.benchmarks import BenchmarkData, Published
from harvest.data.manifest import write_manifest
from harvest.data.read_once import eval_batches
from harvest.evaluation import evaluate
from harvest.evaluation.benchmark import score_benchmark
from harvest.evaluation.settings import EvalSettings
from harvest.evaluation.tasks.classification import ClassificationTask
from harvest.interfaces import Example, HarvestError
from harvest.model.folder import load_head, save_model
from harvest.model.heads import Head, HeadConfig, build_head

from .conftest import World

NAMES = tuple("abcdef")


def make_head(world: World, kind: str = "linear", **of: object) -> Head:
    torch.manual_seed(0)
    width = world.model.config.video.width
    head = build_head(HeadConfig(kind, NAMES, width, num_heads=2, **of))
    torch.nn.init.normal_(head.linear.weight)
    return head.eval()


def rows(world: World, labels: list[int]) -> list[Example]:
    return [dataclasses.replace(e, label=x, texts=()) for e, x in zip(world.examples, labels, strict=True)]


def chances(world: World, head: Head, examples: list[Example], clips: int, crops: int) -> torch.Tensor:
    found = []
    for _, video in eval_batches(
        examples, num_frames=4, image_size=32, views=(clips, crops), batch_size=9, workers=0
    ):
        with torch.no_grad():
            for views in video:
                each = [head(world.model.video.features(view[None])).softmax(-1)[0] for view in views]
                found.append(torch.stack(each).mean(0))
    return torch.stack(found)


@pytest.mark.parametrize("kind", ["linear", "attentive"])
def test_views_are_averaged_as_probabilities(world: World, kind: str) -> None:
    head = make_head(world, kind)
    examples = rows(world, [0, 0, 0, 0])
    wanted = chances(world, head, examples, 2, 2)
    labels = wanted.argmax(dim=1).tolist()
    labels[3] = int(wanted[3].argsort(descending=True)[2])  # one that is only among the best five
    result = evaluate(
        world.model,
        world.tokenizer,
        rows(world, labels),
        task=ClassificationTask(num_clips=2, num_crops=2),
        head=head,
        settings=EvalSettings(batch_size=3),
    )
    assert result.metrics["top1"] == 0.75 and result.metrics["top5"] == 1.0
    assert "2 clips x 2 crops of 4 frames" in result.protocol and "6 classes" in result.protocol
    assert result.counts["clips"] == 4 and result.counts["classes_that_occur"] == len(set(labels))


def test_several_labels_give_mean_average_precision(world: World) -> None:
    from sklearn.metrics import average_precision_score

    head = make_head(world, several=True)
    examples = [
        dataclasses.replace(e, labels=x, texts=())
        for e, x in zip(world.examples, [(0, 1), (1,), (0,), (1, 2)], strict=True)
    ]
    result = evaluate(world.model, None, examples, task="classification", head=head)
    with torch.no_grad():
        (video,) = [
            v
            for _, v in eval_batches(
                examples, num_frames=4, image_size=32, views=(1, 1), batch_size=9, workers=0
            )
        ]
        scores = head(world.model.video.features(video.flatten(0, 1))).sigmoid()
    right = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 0, 0], [0, 1, 1]])
    wanted = average_precision_score(right.numpy(), scores[:, :3].numpy(), average="macro")
    assert result.metrics["mean_ap"] == pytest.approx(wanted)
    assert result.counts["classes_that_occur"] == 3
    with pytest.raises(HarvestError, match="a list of labels a row, example 'clip0' has one label"):
        evaluate(world.model, None, rows(world, [0, 0, 0, 0]), task="classification", head=head)


def test_a_head_lives_in_the_model_folder(world: World, tmp_path: Path) -> None:
    head = make_head(world, "attentive")
    save_model(tmp_path / "m", world.model, world.tokenizer, head=head)
    again = load_head(tmp_path / "m")
    assert again.config == head.config
    assert all(
        a.equal(b) for a, b in zip(again.state_dict().values(), head.state_dict().values(), strict=True)
    )
    (tmp_path / "m/head.json").write_text("{}")
    with pytest.raises(HarvestError, match="head cannot be read"):
        load_head(tmp_path / "m")


def data(world: World, examples: list[Example], names: tuple[str, ...] = NAMES) -> BenchmarkData:
    return BenchmarkData(
        name="toy",
        split="test",
        task="recognition",
        examples=tuple(examples),
        protocol="Toy, test: one of six.",
        counts={},
        published=Published({"rows": len(examples)}, "a test"),
        unresolved=frozenset(e.video for e in examples if not Path(e.video).exists()),
        class_names=names,
    )


def test_a_benchmark_with_a_head(world: World) -> None:
    head = make_head(world)
    examples = rows(world, [0, 1, 2, 3])
    result = score_benchmark(
        world.model, world.tokenizer, data(world, examples), head=head, task=ClassificationTask(num_clips=2)
    )
    assert result.task == "classification" and result.protocol.startswith(
        "Toy, test: one of six. Fine-tuned head"
    )
    assert result.settings["view_places"] == "inner"
    leading = dataclasses.replace(data(world, examples), view_places="leading")
    other = score_benchmark(
        world.model, world.tokenizer, leading, head=head, task=ClassificationTask(num_clips=2)
    )
    assert other.settings["view_places"] == "leading"
    assert score_benchmark(world.model, world.tokenizer, data(world, examples)).task == "recognition"
    with pytest.raises(HarvestError, match="another order"):
        score_benchmark(world.model, world.tokenizer, data(world, examples, NAMES[::-1]), head=head)
    gone = [*examples[:3], dataclasses.replace(examples[3], video="gone.mp4")]
    with pytest.raises(HarvestError, match="--allow-missing"):
        score_benchmark(world.model, world.tokenizer, data(world, gone), head=head)
    some = score_benchmark(world.model, world.tokenizer, data(world, gone), head=head, allow_missing=True)
    assert some.metrics["share_of_rows"] == 0.75 and some.counts["clips"] == 3
    assert some.protocol.endswith("Only 3 of 4 rows were scored.")


def test_classification_without_a_head_is_refused(world: World) -> None:
    with pytest.raises(HarvestError, match="needs the head of a model that was fine-tuned"):
        evaluate(world.model, world.tokenizer, rows(world, [0, 0, 0, 0]), task="classification")


def test_the_command_uses_the_head(world: World, tmp_path: Path, capsys) -> None:
    save_model(tmp_path / "m", world.model, world.tokenizer, head=make_head(world))
    write_manifest(tmp_path / "a.jsonl", rows(world, [0, 1, 2, 3]))
    args = ["evaluate", str(tmp_path / "m"), "--data", str(tmp_path / "a.jsonl"), "--task", "classification"]
    out = ["--num-clips", "2", "--num-crops", "3", "--workers", "0", "--out", str(tmp_path / "found.json")]
    assert main([*args, *out]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert "2 clips x 3 crops of 4 frames" in found["protocol"] and found["counts"]["clips"] == 4
    save_model(tmp_path / "bare", world.model, world.tokenizer)
    assert main(["evaluate", str(tmp_path / "bare"), *args[2:], "--workers", "0"]) == 2
    assert "needs the head of a model that was fine-tuned" in capsys.readouterr().err
