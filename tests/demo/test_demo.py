"""The demo end to end at a tiny size, interrupted twice, and the parts of its page."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import re
import shutil
import signal
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import av
import pytest
import torch

from harvest import Index
from harvest.cli import demo as demo_command
from harvest.config import RunConfig
from harvest.data.miniworld import MiniWorldConfig
from harvest.demo import page as demo_page
from harvest.demo import run as demo
from harvest.demo import run_demo
from harvest.demo.page import Score, curve, harvest_command, not_learned, percent, short
from harvest.demo.pictures import filmstrip, is_right
from harvest.demo.scores import MiniWorldRow, choose_queries
from harvest.demo.seconds import Seconds, duration
from harvest.interfaces import Example, HarvestError
from harvest.model.folder import load_model
from harvest.recipes import tiny
from harvest.training import loop

PERCENT = [
    "motion_choice.image",
    "motion_choice.video",
    "motion_choice_held_out.image",
    "motion_choice_held_out.video",
    "appearance_choice.image",
    "appearance_choice.video",
    "order_choice.image",
    "order_choice.video",
    "t2v_r1.image",
    "t2v_r1.video",
    "t2v_r10.video",
    "v2t_r1.video",
    "masked_words.right_clip",
    "masked_words.other_clip",
    "qa.video",
]


class Finished(NamedTuple):
    out: Path
    report: Path
    train_seconds: list[float]  # after each of three runs
    config: RunConfig


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """The tiny twin of the demo's recipe, from an image model trained for a few steps."""
    folder = tmp_path_factory.mktemp("image")
    image = tiny("mini-image")
    world = MiniWorldConfig(seed=8, train=48, retrieval=1, questions=1)
    data = dataclasses.replace(image.data, workers=0)
    image_model = loop.train(dataclasses.replace(image, world=world, data=data), folder / "run")
    config = tiny("mini-harvest")
    return dataclasses.replace(
        config,
        start=dataclasses.replace(config.start, model=str(image_model)),
        data=dataclasses.replace(config.data, workers=0),
        world=MiniWorldConfig(seed=7, train=48, retrieval=30, questions=12),
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, config: RunConfig) -> Finished:
    """A demo stopped while it trains, stopped again after that, and then left to finish."""
    out = tmp_path_factory.mktemp("demo") / "out"
    took = []
    with pytest.MonkeyPatch.context() as patch:
        numbers = loop._numbers

        def ask_to_stop(losses: Any, step: int) -> dict[str, float]:
            if step == 3:
                signal.raise_signal(signal.SIGINT)
            return numbers(losses, step)

        patch.setattr(loop, "_numbers", ask_to_stop)
        with pytest.raises(HarvestError, match="the same command goes on"):
            run_demo(out, seed=3, config=config)
    took.append(_kept(out)["train"])
    with pytest.MonkeyPatch.context() as patch:
        score = demo.score

        def score_once(*arguments: Any) -> Any:
            if "video" in arguments:
                raise KeyboardInterrupt
            return score(*arguments)

        patch.setattr(demo, "score", score_once)
        with pytest.raises(KeyboardInterrupt):
            run_demo(out, seed=3, config=config)
    took.append(_kept(out)["train"])
    report = run_demo(out, seed=3, config=config)
    took.append(_kept(out)["train"])
    return Finished(out, report, took, config)


def _kept(out: Path) -> dict[str, float]:
    parts: dict[str, float] = json.loads((out / "seconds.json").read_text())["parts"]
    return parts


def _facts(finished: Finished) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((finished.out / "demo.json").read_text())
    return facts


# ---- end to end --------------------------------------------------------------------------------------------------


def test_demo_json_has_every_figure_in_its_range(finished: Finished) -> None:
    facts = _facts(finished)
    for path in PERCENT:
        value: Any = facts
        for name in path.split("."):
            value = value[name]
        assert isinstance(value, float) and 0 <= value <= 100, path
    assert facts["motion_choice"]["chance"] == 25 and facts["order_choice"]["chance"] == 50
    assert facts["t2v_r1"]["chance"] == pytest.approx(100 / 30, abs=0.01)
    assert 1 <= facts["t2v_median_rank"]["video"] <= 30
    low, high = facts["motion_choice"]["intervals"]["video"]
    assert low <= facts["motion_choice"]["video"] <= high
    assert set(facts["motion_choice"]["groups"]) >= {"horizontal", "vertical", "size"}
    truth = facts["motion_truth"]
    assert all(0 <= truth[order] <= 100 for order in ("forward", "reversed", "shuffled", "one_frame"))
    assert truth["forward"] == facts["motion_choice"]["video"] and truth["questions"] == 12
    assert "the order of frames is worth" in truth["findings"][0]
    sorts = [truth[sort] for sort in ("direction", "no_direction")]
    assert sum(sort["questions"] for sort in sorts) == 12
    for order in ("forward", "reversed", "shuffled", "one_frame"):
        whole = sum(sort["questions"] * sort[order] for sort in sorts) / 12
        assert whole == pytest.approx(truth[order], abs=0.02)
    assert "a motion with a direction shows its opposite" in finished.report.read_text()
    assert "when the frames are shuffled" in finished.report.read_text()
    assert facts["clips_seen"] == 6 * 16 + 2 * 8
    assert facts["seed"] == 3 and "--seed 3" in facts["command"]
    assert facts["hardware"]["cores"] >= 1 and facts["hardware"]["cpu"]
    assert facts["versions"].keys() == {"harvest", "torch", "python", "av"}
    assert "image baseline" in facts["protocol"]["motion_choice"]["image"]
    assert not list(finished.out.glob(".*"))  # nothing half written is left


def test_seconds_count_what_was_interrupted(finished: Finished) -> None:
    first, second, third = finished.train_seconds
    assert 0 < first < second <= third < second + 1  # the third run had nothing left to train
    seconds = _facts(finished)["seconds"]
    assert seconds["train"] == pytest.approx(third, abs=0.06)
    parts = [
        seconds[name] for name in ("world", "image_scores", "train", "video_scores", "library", "report")
    ]
    assert all(part >= 0 for part in parts) and seconds["total"] == pytest.approx(sum(parts), abs=0.01)


def test_the_run_went_on_and_the_model_opens(finished: Finished) -> None:
    lines = (finished.out / "run" / "metrics.jsonl").read_text().splitlines()
    read = [json.loads(line) for line in lines]
    assert [line["step"] for line in read if "loss" in line] == list(range(1, 9))
    scored = [line["step"] for line in read if "motion_choice/accuracy" in line]
    assert scored == [0, 2, 4, 6, 8]
    model, tokenizer = load_model(finished.out / "model")
    assert model.fusion is not None and model.config.video.num_frames == 8
    assert tokenizer(["a red circle"]).shape[0] == 1


def test_another_seed_does_not_go_on_with_this_run(finished: Finished) -> None:
    before = (finished.out / "demo.json").read_bytes()
    with pytest.raises(HarvestError, match=r"loop\.seed"):
        run_demo(finished.out, seed=4, config=finished.config)
    assert (finished.out / "demo.json").read_bytes() == before


class _Page(HTMLParser):
    """Notes what a page loads, and whether its tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.open: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "data", "srcset")]
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_needs_no_other_file(finished: Finished) -> None:
    assert finished.report == finished.out / "report.html"
    html = finished.report.read_text(encoding="utf-8")
    page = _Page()
    page.feed(html)
    assert not page.open  # every tag was closed
    assert page.sources and all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert not {"link", "iframe", "object"} & set(page.tags) and "<script src" not in html
    assert page.tags.count("svg") == 4
    words = re.sub(r"data:[^\"]*|http://www.w3.org/2000/svg", "", html)  # data, and the name of SVG
    assert not re.search(r"https?:|url\(|@import", words)


def test_the_report_says_what_was_measured(finished: Finished) -> None:
    facts, html = _facts(finished), finished.report.read_text(encoding="utf-8")
    for name in ("motion_choice", "appearance_choice", "t2v_r1"):
        for mode in ("image", "video"):
            assert percent(facts[name][mode]) in html
    assert percent(facts["masked_words"]["other_clip"]) in html
    assert facts["command"] in html
    assert 6 + 2 <= html.count('class="query"') <= 6 + 6  # of few questions some have no partner


def test_the_library_has_what_is_proposed_and_refuses_what_is_not_there(finished: Finished) -> None:
    with Index.open(finished.out / "library") as index:
        assert (
            len(index.videos()) == 30 + 12
        )  # the retrieval set, and the combinations that were never trained on
        answer = index.search(demo_page.SENTENCE, k=3)
        assert len(answer.hits) == 3 and all(hit.chance is not None for hit in answer.hits)
        assert not [note for note in answer.notes if "background" in note or "calibrat" in note]


def test_no_command_has_an_absolute_path(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(finished.out.parent)
    assert short(finished.out / "model") == "out/model" and short(Path("/usr/x")) == "/usr/x"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert harvest_command() == "python -m harvest"
    (finished.out.parent / "bin").mkdir()
    (finished.out.parent / "bin" / "harvest").touch()
    monkeypatch.setattr(sys, "executable", str(finished.out.parent / "bin" / "python"))
    assert harvest_command() == "bin/harvest"
    for _, line in demo_page.next_commands(finished.out):
        assert str(finished.out) not in line


@pytest.mark.parametrize(("answer", "opened"), [("", 1), ("y", 1), ("n", 0)])
def test_the_command_offers_to_open_the_report(
    answer: str, opened: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("harvest.demo.run_demo", lambda out, seed: out / "report.html")
    monkeypatch.setattr("builtins.input", lambda prompt: asked.append(prompt) or answer)
    pages: list[str] = []
    monkeypatch.setattr(demo_command.webbrowser, "open", pages.append)
    demo_command.demo_command(tmp_path)
    assert not asked and not pages  # nobody is there to answer
    for stream in ("stdin", "stdout"):
        monkeypatch.setattr(getattr(sys, stream), "isatty", lambda: True, raising=False)
    demo_command.demo_command(tmp_path)
    assert len(asked) == 1 and len(pages) == opened and all(page.startswith("file://") for page in pages)


# ---- its parts ---------------------------------------------------------------------------------------------------


def test_the_time_of_a_killed_run_is_counted(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.touch()
    kept = {"parts": {"train": 10.0}, "running_since": {"train": 1000.0}}
    (tmp_path / "seconds.json").write_text(json.dumps(kept))
    os.utime(metrics, (1007.0, 1007.0))
    seconds = Seconds(tmp_path / "seconds.json")
    seconds.add_unfinished("train", until=metrics)
    with seconds.measure("world", is_added=True):
        pass
    assert Seconds(tmp_path / "seconds.json").parts["train"] == pytest.approx(17.0)
    again = Seconds(tmp_path / "seconds.json")
    again.add_unfinished("train", until=metrics)  # counted once
    assert again.parts["train"] == pytest.approx(17.0)


def test_queries_are_the_first_of_their_groups() -> None:
    looks = [
        ("size", "red", "star"),
        ("size", "blue", "ring"),
        ("spin", "red", "cross"),  # red came before
        ("spin", "blue", "ring"),
        ("still", "white", "circle"),
        (None, "green", "square"),
    ]
    rows = [
        MiniWorldRow(Example(str(n), "x.mp4"), {"group": group, "colour": colour, "shape": shape})
        for n, (group, colour, shape) in enumerate(looks)
    ]
    assert choose_queries(rows) == [0, 3]


@pytest.mark.parametrize(
    ("word", "answer", "motion", "right"),
    [
        ("up", "up", "moves up", True),
        ("upwards", "up", "moves up", True),
        ("down", "up", "moves up", False),
        ("blue", "red", "moves up", False),
        ("up", "grows", "grows", False),
    ],
)
def test_words_that_mean_the_same_are_right(word: str, answer: str, motion: str, right: bool) -> None:
    asked = Example("a", "a.mp4", question="a red star moves [mask]", answer=answer)
    assert is_right(word, MiniWorldRow(asked, {"motion": motion})) is right


def test_the_better_figure_is_bold_where_the_intervals_are_apart() -> None:
    def best(image: float, video: float, *intervals: tuple[float, float], is_rank: bool = False) -> str:
        return Score("", "", image, video, 25.0, *intervals, is_rank=is_rank).best

    assert best(20.0, 90.0, (10.0, 30.0), (85.0, 95.0)) == "video"
    assert best(90.0, 20.0, (85.0, 95.0), (10.0, 30.0)) == "image"
    assert best(50.0, 55.0, (45.0, 56.0), (50.0, 60.0)) == ""
    assert best(10.0, 2.0, is_rank=True) == "video" and best(2.0, 2.0, is_rank=True) == ""


def test_what_is_not_learned_is_said(finished: Finished) -> None:
    said = not_learned(_facts(finished))
    assert said.endswith("%).") and "least" in said and said in finished.report.read_text(encoding="utf-8")
    assert ("Not learned" in said) == ("(not learned)" in finished.report.read_text(encoding="utf-8"))


def test_a_filmstrip_shows_its_frames() -> None:
    frames = torch.zeros(3, 3, 16, 16, dtype=torch.uint8)
    frames[0, 0] = 220  # red, green, blue
    frames[1, 1] = 200
    frames[2, 2] = 240
    assert filmstrip(frames).startswith("data:image/jpeg;base64,")
    row = frames.permute(2, 0, 3, 1).reshape(16, 48, 3).numpy()
    decoder = av.CodecContext.create("mjpeg", "r")
    (picture,) = decoder.decode(av.Packet(base64.b64decode(filmstrip(frames).partition(",")[2])))
    shown = picture.to_ndarray(format="rgb24")[::2, ::2]  # it is drawn at twice the size
    assert shown.shape == row.shape
    assert abs(shown.astype(int) - row).max() <= 12


def test_a_curve_needs_two_points_and_says_its_last_mean() -> None:
    lines = [{"step": step, "loss": 5.0 / step} for step in range(1, 50)] + [
        {"step": 50, "loss": float("nan")}
    ]
    drawn = curve(lines, "loss", title="t", unit="loss", tuning_from=40)
    assert drawn is not None and drawn.last == "0.10" and drawn.svg.count("<polyline") == 2
    assert 'class="mark"' in drawn.svg and ">40<" in drawn.svg
    assert curve(lines, "other", title="t", unit="loss") is None


def test_durations_as_people_say_them() -> None:
    assert [duration(seconds) for seconds in (3.24, 42.4, 60, 221.6)] == [
        "3.2 s",
        "42 s",
        "1 min",
        "3 min 42 s",
    ]
