from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch

from harvest.cli import main
from harvest.data.manifest import write_manifest
from harvest.evaluation.blending import Point, Skill, Sweep, draw_curve, sweep
from harvest.evaluation.result import Credits, Result
from harvest.interfaces import HarvestError
from harvest.model.folder import load_model, save_model
from harvest.model.inflation import blend
from harvest.model.video_text import VideoTextModel

from .conftest import World, moved_to


def point(share: float, image: float, video: float) -> Point:
    return Point(
        share, Skill(image, (image - 0.02, image + 0.02)), Skill(video, (video - 0.02, video + 0.02))
    )


def curve(*points: Point, **limits: float) -> Sweep:
    return Sweep(points, Skill(0.90, (0.88, 0.92)), **limits)


def test_the_rule_by_hand() -> None:
    points = point(0.0, 0.80, 0.30), point(0.6, 0.895, 0.78), point(0.9, 0.885, 0.79), point(1.0, 0.85, 0.80)
    found = curve(*points)
    assert found.losses(points[1]) == pytest.approx((0.5, 2.0))
    # Of its limits of 1 and 2 points: 0.5 and 1, then 1.5 and 0.5, then 5 and 0.
    assert [found.used(p) for p in points[1:]] == pytest.approx([1.0, 1.5, 5.0])
    assert found.best is points[1]
    assert curve(*points, image_limit=10.0, video_limit=0.1).best is points[3]
    gains = point(0.5, 0.95, 0.80), point(0.7, 0.91, 0.82), point(1.0, 0.90, 0.80)
    assert curve(*gains).best is gains[1]  # none loses anything: the most video skill


def result(value: float) -> Result:
    values = torch.full((4,), value, dtype=torch.float64)
    return Result(
        "choice", "video", "", {"accuracy": value}, credits={"accuracy": Credits(values, torch.arange(4))}
    )


def test_every_share_is_that_blend_and_the_model_stays(world: World) -> None:
    """A skill that reads the weights: how far they are from the image model's, between 0 and 1."""
    image_model, model = world.image_model, VideoTextModel(world.model.config)
    model.load_state_dict(world.model.state_dict())
    with torch.no_grad():
        model.text.words.weight += 1.0
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def skill(scored: VideoTextModel, mode: str) -> Result:
        assert mode == ("image" if scored is image_model else "video")
        moved = (scored.text.words.weight - image_model.text.words.weight).detach().mean()
        return result(round(float(moved), 4))

    found = sweep(image_model, model, image_skill=skill, video_skill=skill, shares=(0.0, 0.25, 0.5))
    assert [p.video_ratio for p in found.points] == [0.0, 0.25, 0.5, 1.0]
    assert [p.video.value for p in found.points] == pytest.approx([0.0, 0.25, 0.5, 1.0], abs=1e-3)
    assert found.image_model.value == 0.0
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_what_cannot_be_blended(world: World) -> None:
    def refused(scored: VideoTextModel, mode: str) -> Result:
        raise AssertionError("scored before it was checked")

    how = {"image_skill": refused, "video_skill": refused}
    with pytest.raises(HarvestError, match="go from 0 to 1"):
        sweep(world.image_model, world.model, shares=(1.5,), **how)
    with pytest.raises(HarvestError, match="above 0 points"):
        sweep(world.image_model, world.model, image_limit=0.0, **how)
    with pytest.raises(HarvestError, match="sees 4 frames"):
        sweep(world.model, world.model, **how)
    config = world.image_model.config
    wide = dataclasses.replace(config, video=dataclasses.replace(config.video, mlp_width=128))
    with pytest.raises(HarvestError, match=r"was not made of this image model: video\.blocks\.0\."):
        sweep(VideoTextModel(wide), world.model, **how)


def test_the_picture_has_every_share() -> None:
    found = curve(point(0.0, 0.8, 0.3), point(0.5, 0.9, 0.7), point(1.0, 0.9, 0.7))
    svg = ET.fromstring(draw_curve(found, image_name="choice <a>", video_name="b"))
    marks = [e for e in svg.iter() if e.tag.endswith("circle")]
    assert len(marks) == 3 + 1  # every share, and the best once more
    said = {e.text for e in svg.iter()}
    assert {"choice <a>, %", "b, %", "image model", "best: 1", "0.5"} <= said


def test_from_the_command_line(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path / "image", world.image_model, world.tokenizer)
    save_model(tmp_path / "video", world.model, world.tokenizer)
    write_manifest(tmp_path / "rows.jsonl", world.examples)
    line = f"blend {tmp_path / 'image'} {tmp_path / 'video'} --evaluate {tmp_path / 'rows.jsonl'} --workers 0"
    line += f" --image-evaluate {tmp_path / 'rows.jsonl'} --shares 0 0.5 --out {tmp_path / 'out'}"
    moved = moved_to(monkeypatch)
    assert main(line.split()) == 0
    assert moved == [torch.device("cpu")] * 2  # both models, once
    told = json.loads((tmp_path / "out" / "curve.json").read_text())
    assert [p["video_ratio"] for p in told["points"]] == [0.0, 0.5, 1.0]
    assert ET.fromstring((tmp_path / "out" / "curve.svg").read_text()) is not None
    model, _ = load_model(tmp_path / "out" / "model")
    expected = VideoTextModel(world.model.config)
    expected.load_state_dict(world.model.state_dict())
    blend(world.image_model, expected, video_ratio=told["best"])
    own = model.state_dict()
    assert all(torch.allclose(own[name], t) for name, t in expected.state_dict().items())
    assert "best" in capsys.readouterr().out
