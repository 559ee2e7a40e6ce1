from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from harvest.cli import main
from harvest.data.manifest import write_manifest
from harvest.evaluation import evaluate
from harvest.evaluation.card import Card, make_card, read_card, split_of, write_card
from harvest.evaluation.comparison import compare
from harvest.evaluation.result import Credits, Result
from harvest.evaluation.tasks.retrieval import RetrievalTask
from harvest.interfaces import HarvestError
from harvest.machine import hardware
from harvest.model.folder import save_model

from .conftest import World


def card_of(world: World, result: Result, name: str = "toys") -> Card:
    split = split_of(world.examples, name)
    return make_card(
        result, split, world.model, source="toy", command="harvest evaluate toy", hardware=hardware()
    )


@pytest.fixture(scope="module")
def scored(world: World) -> Result:
    missing = dataclasses.replace(world.examples[0], id="gone", video="gone.mp4")
    return evaluate(
        world.model,
        world.tokenizer,
        [*world.examples, missing],
        task=RetrievalTask(dual_softmax=True),
    )


def test_a_card_tells_all_and_is_read_again(world: World, scored: Result, tmp_path: Path) -> None:
    card = card_of(world, scored)
    write_card(tmp_path / "card", card, scored)
    assert sorted(path.name for path in (tmp_path / "card").iterdir()) == [
        "card.html",
        "card.json",
        "card.md",
        "credits.npz",
    ]
    again, result = read_card(tmp_path / "card")
    assert dataclasses.asdict(again) == json.loads(json.dumps(dataclasses.asdict(card)))
    assert result.metrics == scored.metrics and result.intervals == scored.intervals
    assert result.missing.keys() == {"gone"}
    numbers = {number["name"]: number for number in again.numbers}
    assert numbers["t2v_r1"]["scored"] == "embeddings only"
    assert numbers["t2v_r1.dual_softmax"]["scored"].startswith("dual softmax")
    assert numbers["t2v_r1"]["interval"] == list(scored.intervals["t2v_r1"])
    assert numbers["t2v_median_rank"]["unit"] == "rank"
    text = (tmp_path / "card" / "card.md").read_text()
    page = (tmp_path / "card" / "card.html").read_text()
    for written in (text, page):
        for said in (
            "1 of 4 rows",
            "gone",
            card.split.digest,
            card.model["fingerprint"],
            "harvest evaluate toy",
            card.date,
        ):
            assert said in written
        assert "resolution" in written and "frames" in written
    assert "http" not in page  # needs nothing else


def test_credits_hold_no_code(world: World, scored: Result, tmp_path: Path) -> None:
    write_card(tmp_path / "card", card_of(world, scored), scored)
    with np.load(tmp_path / "card" / "credits.npz", allow_pickle=False) as arrays:
        assert arrays["values/t2v_r1"].mean() == pytest.approx(scored.metrics["t2v_r1"])
        assert all(arrays[name].dtype.kind in "fi" for name in arrays.files)


def test_fingerprints_and_digests_change_with_what_they_are_of(world: World, scored: Result) -> None:
    one = card_of(world, scored)
    other = make_card(scored, one.split, world.image_model, source="toy", command="", hardware=hardware())
    assert one.model["fingerprint"] == card_of(world, scored).model["fingerprint"]
    assert one.model["fingerprint"] != other.model["fingerprint"]
    moved = [dataclasses.replace(e, video=f"/elsewhere/{e.video}") for e in world.examples]
    assert split_of(moved, "a").digest == split_of(world.examples, "b").digest
    asked = [dataclasses.replace(world.examples[0], texts=("other",)), *world.examples[1:]]
    assert split_of(asked, "a").digest != one.split.digest
    assert split_of(moved, "a", ["x", "y"]).digest != split_of(moved, "a", ["y", "x"]).digest


def test_a_folder_with_other_things_is_left_alone(world: World, scored: Result, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(HarvestError, match="holds no card"):
        write_card(tmp_path, card_of(world, scored), scored)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    write_card(tmp_path / "card", card_of(world, scored), scored)
    write_card(tmp_path / "card", card_of(world, scored), scored)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 1, "split": {}}'])
def test_what_is_no_card(text: str, tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(
        HarvestError, match=r"card.json(: the file must be an object| is not (a benchmark card|JSON))"
    ):
        read_card(tmp_path)
    with pytest.raises(HarvestError, match="no such file"):
        read_card(tmp_path / "no.json")


@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.95, "cut", "empty"])
def test_damaged_credits_are_refused_by_name(
    world: World, scored: Result, tmp_path: Path, place: float | str
) -> None:
    write_card(tmp_path / "card", card_of(world, scored), scored)
    path = tmp_path / "card" / "credits.npz"
    content = bytearray(path.read_bytes())
    if isinstance(place, float):
        start = int(place * len(content))
        content[start : start + 60] = bytes(255 - byte for byte in content[start : start + 60])
    path.write_bytes({"cut": content[: len(content) // 2], "empty": b""}.get(str(place), content))
    with pytest.raises(
        HarvestError, match=r"card.json(: the file must be an object| is not (a benchmark card|JSON))"
    ):
        read_card(tmp_path / "card")


# ---- comparing ---------------------------------------------------------------------------------------------------


def answered(world: World, values: torch.Tensor, **settings: object) -> tuple[Card, Result]:
    result = Result(
        "choice",
        "video",
        "Asked.",
        {"accuracy": float(values.mean()), "chance": 0.25},
        settings={"num_frames": 8, "image_size": 32, **settings},
        credits={"accuracy": Credits(values.double(), torch.arange(len(values)))},
    )
    return card_of(world, result), result


def test_a_small_difference_is_seen_where_it_is_of_the_same_clips(world: World) -> None:
    """Both are right in half of 400 questions, B in 12 more: far inside either interval, and sure all the same."""
    a = (torch.arange(400) < 200).float()
    b = (torch.arange(400) < 212).float()
    other = a[
        torch.randperm(400, generator=torch.Generator().manual_seed(0))
    ]  # as good as A, on other questions
    found = compare(answered(world, a), answered(world, b))
    (accuracy, chance) = found.differences
    assert accuracy.b - accuracy.a == pytest.approx(0.03)
    assert accuracy.is_sure and accuracy.interval is not None
    assert 0.01 < accuracy.interval[0] < 0.03 < accuracy.interval[1] < 0.05
    assert chance.interval is None and not chance.is_sure
    assert not compare(answered(world, b), answered(world, other)).differences[0].is_sure
    same = compare(answered(world, a), answered(world, a)).differences[0]
    assert same.interval == (0.0, 0.0) and not same.is_sure


def test_without_time_more_is_not_better(world: World) -> None:
    """A skill has a better side; of what is left without time, or with another clip, it is said only that they differ."""
    skills = ("accuracy", "accuracy.mixture", "accuracy.no_direction.reversed", "right_clip")
    others = (
        *(
            "accuracy.reversed",
            "accuracy.direction.reversed",
            "t2v_r1.reversed",
            "accuracy.no_direction.shuffled",
        ),
        *("accuracy.shuffled", "accuracy.one_frame", "other_clip", "other_clip.shuffled"),
    )

    def scored(value: float) -> tuple[Card, Result]:
        names = (*skills, *others)
        credit = Credits(torch.full((4,), value, dtype=torch.float64), torch.arange(4))
        metrics = {**dict.fromkeys(names, value), "chance": 0.25}
        result = Result("choice", "video", "Asked.", metrics, credits=dict.fromkeys(names, credit))
        return card_of(world, result), result

    for a, b, better in ((0.2, 0.6, "B is better"), (0.6, 0.2, "A is better")):
        said = {one.name: one.verdict for one in compare(scored(a), scored(b)).differences}
        assert said == {**dict.fromkeys(skills, better), **dict.fromkeys(others, "they differ"), "chance": ""}
    assert compare(scored(0.2), scored(0.2)).differences[-2].verdict == "no clear difference"


def test_different_questions_are_refused(world: World) -> None:
    values = torch.ones(10)
    one = answered(world, values)

    def but(**changes: object) -> tuple[Card, Result]:
        return dataclasses.replace(one[0], **changes), one[1]

    split = one[0].split
    for other, said in (
        (but(task="qa"), "task: choice and qa"),
        (but(split=dataclasses.replace(split, digest="0123")), "split: 4 rows with annotation .* and .*0123"),
        (but(split=dataclasses.replace(split, missing={"x": "broken"})), r"missing rows: none and 1 \(x\)"),
        (answered(world, values, num_frames=4), "num_frames: 8 and 4"),
        (answered(world, values, templates=["a {}"]), r"templates: None and 1 \(a {}\)"),
    ):
        with pytest.raises(HarvestError, match=said):
            compare(one, other)
    found = compare(one, answered(world, values, num_frames=4), allow=["num_frames"])
    assert found.other_settings == ("num_frames: 8 and 4",)
    assert compare(one, answered(world, values, image_size=64)).other_settings == ("image_size: 32 and 64",)
    for wrong in ("split", "frames"):
        with pytest.raises(HarvestError, match=f"cannot allow for '{wrong}'"):
            compare(one, one, allow=[wrong])


def test_from_the_command_line(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "model", world.model, world.tokenizer)
    write_manifest(tmp_path / "rows.jsonl", world.examples)
    line = f"evaluate {tmp_path / 'model'} --data {tmp_path / 'rows.jsonl'} --workers 0"
    for name, more in (("a", ""), ("b", "--image"), ("c", "--num-frames 2")):
        assert main(f"{line} --card {tmp_path / name} {more}".split()) == 0
    card = json.loads((tmp_path / "b" / "card.json").read_text())
    assert card["command"].startswith(f"harvest evaluate {tmp_path / 'model'} --data ")
    assert card["command"].endswith("--image") and card["mode"] == "image"
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "a" / "card.json"), str(tmp_path / "b")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "they also differ in mode: video and image" in said and "t2v_r1" in said
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "c")]) == 2
    assert "num_frames: 4 and 2" in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "c"), "--allow", "num_frames"]) == 0
