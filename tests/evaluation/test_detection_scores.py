from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from harvest.data.benchmarks import BenchmarkData, Published, widen
from harvest.data.manifest import read_manifest, write_manifest
from harvest.data.read_once import eval_batches
from harvest.evaluation import evaluate
from harvest.evaluation.benchmark import score_benchmark
from harvest.evaluation.metrics import frame_rankings
from harvest.evaluation.settings import EvalSettings
from harvest.evaluation.tasks.detection import DetectionTask, read_boxes
from harvest.interfaces import Box, Example, HarvestError
from harvest.model.folder import load_head, save_model
from harvest.model.heads import BoxHead, HeadConfig
from harvest.model.regions import region_features

from .conftest import World

NAMES = ("walks", "talks", "sits")


# ---------------------------------------------------------------------------------------------------------------
# The metric


def frame_average_precisions(
    frame: Tensor, boxes: Tensor, scores: Tensor, *truth: Tensor, **how: int
) -> Tensor:
    """Of each action, float64 `[A]`, all pictures being of one video."""
    zeros = torch.zeros(int(torch.cat([frame, truth[0]]).max()) + 1, dtype=torch.int64)
    rankings = frame_rankings(frame, boxes, scores, *truth, group=zeros, **how)
    return torch.cat([ranking.average_precision() for ranking in rankings])


def by_loops(frame, boxes, scores, truth_frame, truth_boxes, truth_label, most=50) -> list[float]:
    """The official scripts' rule, written out: a picture at a time, a detection at a time."""
    found = []
    for action in range(scores.shape[1]):
        marks: list[tuple[float, bool]] = []
        for picture in sorted(set(frame.tolist())):
            mine = [n for n in range(len(frame)) if frame[n] == picture]
            entries = sorted(
                ((float(scores[n, a]), n, a) for n in mine for a in range(scores.shape[1])), reverse=True
            )
            mine = [(s, n) for s, n, a in entries[:most] if a == action]
            true = [
                n for n in range(len(truth_frame)) if truth_frame[n] == picture and truth_label[n] == action
            ]
            taken = set()
            for score, n in mine:
                overlaps = []
                for t in true:
                    a, b = boxes[n].tolist(), truth_boxes[t].tolist()
                    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
                    shared = max(w, 0) * max(h, 0)
                    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
                    overlaps.append(shared / (sum(areas) - shared))
                best = int(np.argmax(overlaps)) if overlaps else -1
                is_right = best >= 0 and overlaps[best] >= 0.5 and best not in taken
                taken |= {best} if is_right else set()
                marks.append((score, is_right))
        total = int((truth_label == action).sum())
        if not total:
            found.append(float("nan"))
            continue
        marks.sort(reverse=True)
        hits = np.cumsum([mark for _, mark in marks]) if marks else np.zeros(0)
        precision = np.concatenate([[0], hits / np.arange(1, len(hits) + 1), [0]])
        recall = np.concatenate([[0], hits / total, [1]])
        for i in range(len(precision) - 2, -1, -1):
            precision[i] = max(precision[i], precision[i + 1])
        found.append(float(((recall[1:] - recall[:-1]) * precision[1:]).sum()))
    return found


@pytest.mark.parametrize("seed", range(12))
def test_frame_average_precision_is_the_official_rule(seed: int) -> None:
    g = np.random.default_rng(seed)
    truth, label, truth_frame, boxes, frame = [], [], [], [], []
    for picture in range(8):
        for _ in range(g.integers(0, 4)):
            corner, size = g.uniform(0, 0.6, 2), g.uniform(0.1, 0.39, 2)
            sides = [*corner, *(corner + size)]
            for action in g.choice(3, g.integers(0, 3), replace=False):
                truth.append(sides)
                label.append(int(action))
                truth_frame.append(picture)
            for _ in range(g.integers(0, 3)):  # near it, some of them twice
                boxes.append(np.clip(np.array(sides) + g.normal(0, 0.04, 4), 0, 1).tolist())
                frame.append(picture)
    scores = torch.tensor(g.random((len(boxes), 4)))
    given = [torch.tensor(x) for x in (frame, boxes)], [torch.tensor(x) for x in (truth_frame, truth, label)]
    for most in (50, 5):
        ours = frame_average_precisions(*given[0], scores, *given[1], most=most).tolist()
        assert ours == pytest.approx(by_loops(*given[0], scores, *given[1], most=most), nan_ok=True)


def test_a_second_box_on_one_person_is_wrong() -> None:
    truth = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]])
    boxes = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.0, 0.0, 0.45, 1.0], [0.5, 0.0, 1.0, 1.0]])
    scores = torch.tensor([[0.9], [0.8], [0.7]])
    zeros = torch.zeros(3, dtype=torch.int64)
    found = frame_average_precisions(zeros, boxes, scores, zeros[:2], truth, zeros[:2])
    assert found.item() == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    half = torch.tensor([[0.0, 0.0, 0.25, 1.0]])  # half of it: exactly at the limit
    assert (
        frame_average_precisions(zeros[:1], half, scores[:1], zeros[:1], truth[:1], zeros[:1]).item() == 1.0
    )


def test_drawing_videos_again_is_having_their_pictures_as_often() -> None:
    generator = torch.Generator().manual_seed(3)
    corners = torch.rand(30, 2, 2, generator=generator).sort(dim=1).values
    boxes = corners.flatten(1)
    frame = torch.arange(30) // 3  # ten pictures of five videos
    scores = torch.rand(30, 2, generator=generator)
    truth = torch.arange(0, 30, 2)
    label = torch.arange(15) % 2
    video = torch.arange(10) // 2
    weights = torch.tensor([[2.0, 0.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    rankings = frame_rankings(frame, boxes, scores, frame[truth], boxes[truth], label, group=video)
    pictures = [0, 1, 0, 1, 4, 5, 6, 7, 8, 9]  # those of the first video twice

    def again(numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        places = [(numbers == old).nonzero()[:, 0] for old in pictures]
        return torch.cat(places), torch.arange(10).repeat_interleave(torch.tensor([len(p) for p in places]))

    (rows, frames), (true_rows, true_frames) = again(frame), again(frame[truth])
    expected = by_loops(
        frames, boxes[rows], scores[rows], true_frames, boxes[truth][true_rows], label[true_rows]
    )
    found = [float(ranking.average_precision(weights)) for ranking in rankings]
    assert found == pytest.approx(expected)


# ---------------------------------------------------------------------------------------------------------------
# A model


def head_of(world: World) -> BoxHead:
    torch.manual_seed(0)
    return BoxHead(HeadConfig("boxes", NAMES, world.model.config.video.width, several=True)).eval()


def pictures(world: World) -> list[Example]:
    sides = ((0.0, 0.0, 0.5, 0.5), (0.4, 0.3, 1.0, 1.0))
    return [
        dataclasses.replace(
            e, texts=(), boxes=(Box(sides[0], (n % 3,)), Box(sides[1], (2,)) if n else Box(sides[1]))
        )
        for n, e in enumerate(world.examples)
    ]


def wanted(world: World, head: BoxHead, examples: list[Example]) -> float:
    """On annotated boxes: the scores of every box, against what is done there."""
    (video,) = [
        v
        for _, v in eval_batches(examples, num_frames=4, image_size=32, batch_size=9, workers=0, fit="squash")
    ]
    owner = torch.arange(4).repeat_interleave(2)
    sides = torch.tensor([box.sides for e in examples for box in e.boxes])
    with torch.no_grad():
        scores = head(region_features(world.model.video.features(video).tokens, 16, sides, owner)).sigmoid()
    rows = [(n, b.sides, x) for n, e in enumerate(examples) for b in e.boxes for x in b.labels]
    truth_frame, truth, label = (torch.tensor(x) for x in zip(*rows, strict=True))
    found = by_loops(owner, sides, scores, truth_frame, truth, label)
    return float(np.nanmean(found))


def test_annotated_boxes(world: World) -> None:
    head, examples = head_of(world), pictures(world)
    result = evaluate(
        world.model, None, examples, task="detection", head=head, settings=EvalSettings(batch_size=3)
    )
    assert result.metrics["frame_map"] == pytest.approx(wanted(world, head, examples))
    assert result.counts["boxes"] == 8 and result.counts["labels"] == 7
    low, high = result.intervals["frame_map"]
    assert low <= result.metrics["frame_map"] <= high
    assert "on annotated boxes" in result.protocol and "overlap" not in result.protocol
    assert "intersection over union 0.5" in result.protocol and "3 of 3 actions" in result.protocol


def test_detected_boxes(world: World, tmp_path: Path) -> None:
    head = head_of(world)
    examples = [dataclasses.replace(e, id=f"aaaaaaaaaa{n},0902") for n, e in enumerate(pictures(world))]
    lines = [f"{e.id},{','.join(map(str, box.sides))},,0.95\n" for e in examples for box in e.boxes]
    lines.append(f"{examples[0].id},0.1,0.1,0.2,0.2,,0.3\n")  # not sure enough
    (tmp_path / "found.csv").write_text("".join(lines))
    detected = DetectionTask(boxes=tmp_path / "found.csv")
    same = evaluate(world.model, None, examples, task=detected, head=head)
    assert same.metrics["frame_map"] == pytest.approx(wanted(world, head, examples))
    assert "on a detector's boxes" in same.protocol
    (tmp_path / "some.csv").write_text("".join(line for line in lines if "a3" not in line))
    missed = evaluate(world.model, None, examples, task=DetectionTask(tmp_path / "some.csv"), head=head)
    assert missed.counts["boxes"] == 6 and missed.counts["labels"] == 7  # who is not found counts as missed
    with pytest.raises(HarvestError, match="1 pictures of the detected boxes are not in this set"):
        evaluate(world.model, None, examples[1:], task=detected, head=head)
    with pytest.raises(HarvestError, match="is the id of more than one picture"):
        evaluate(world.model, None, [*examples, examples[0]], task="detection", head=head)
    for wrong, said in (
        ("a,0902,0,0,1\n", "line 1: expected video, second"),
        ("a,0902,0,0,1.4,1,0.9\n", "line 1: .*not inside the picture"),
        ("a,0902,0,0,x,1,0.9\n", "line 1: not a number"),
        ("a,0902,0,0,1,1,0.1\n", "no box with a score of at least 0.8"),
    ):
        (tmp_path / "wrong.csv").write_text(wrong)
        with pytest.raises(HarvestError, match=said):
            read_boxes(tmp_path / "wrong.csv")


def test_a_benchmark_of_boxes(world: World, tmp_path: Path) -> None:
    head, examples = head_of(world), pictures(world)
    save_model(tmp_path / "m", world.model, world.tokenizer, head=head)
    data = BenchmarkData(
        name="toy",
        split="val",
        task="detection",
        examples=tuple(examples),
        protocol="Toy, val.",
        counts={},
        published=Published({"rows": 4}, "a test"),
        unresolved=frozenset(),
        actions={7: "talks", 3: "walks", 9: "sits"},
    )
    assert data.action_names == NAMES
    result = score_benchmark(world.model, world.tokenizer, data, head=load_head(tmp_path / "m"))
    assert result.metrics["frame_map"] == pytest.approx(wanted(world, head, examples))
    assert result.protocol.startswith("Toy, val. Frame-mAP")
    wide = widen(
        dataclasses.replace(
            data, examples=tuple(dataclasses.replace(e, start_s=0.4, end_s=0.6) for e in examples)
        ),
        0.5,
    )
    assert [(e.start_s, e.end_s) for e in wide.examples] == [(0.25, 0.75)] * 4
    told = score_benchmark(world.model, world.tokenizer, wide, head=head).protocol
    assert told.startswith("Toy, val. Around each picture 0.5 s of video are shown. Frame-mAP")
    with pytest.raises(HarvestError, match="fine-tuned to detect actions"):
        score_benchmark(world.model, world.tokenizer, data)
    with pytest.raises(HarvestError, match="another order"):
        other = dataclasses.replace(data, actions={1: "talks", 2: "walks", 3: "sits"})
        score_benchmark(world.model, world.tokenizer, other, head=head)
    gone = dataclasses.replace(
        data,
        examples=(*examples[:3], dataclasses.replace(examples[3], video="x.mp4")),
        unresolved=frozenset({"x.mp4"}),
    )
    with pytest.raises(HarvestError, match="--allow-missing"):
        score_benchmark(world.model, world.tokenizer, gone, head=head)
    some = score_benchmark(world.model, world.tokenizer, gone, head=head, allow_missing=True)
    assert some.metrics["share_of_rows"] == 0.75 and some.counts["boxes"] == 6


def test_boxes_in_manifests(world: World, tmp_path: Path) -> None:
    write_manifest(tmp_path / "a.jsonl", pictures(world))
    assert [e.boxes for e in read_manifest(tmp_path / "a.jsonl")] == [e.boxes for e in pictures(world)]
    (tmp_path / "b.jsonl").write_text('{"video": "a.mp4", "boxes": [{"sides": [0, 0, 2, 1]}]}\n')
    with pytest.raises(HarvestError, match=r"line 1.*not inside the picture"):
        read_manifest(tmp_path / "b.jsonl")
    (tmp_path / "b.jsonl").write_text('{"video": "a.mp4", "boxes": [[0, 0, 1, 1]]}\n')
    with pytest.raises(HarvestError, match="line 1: boxes are a list of"):
        read_manifest(tmp_path / "b.jsonl")
