from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch

from harvest.cli import main
from harvest.data.benchmarks import BenchmarkData, Published, read, widen, write_training
from harvest.data.manifest import read_manifest
from harvest.evaluation import evaluate
from harvest.evaluation.benchmark import check_complete, score_benchmark
from harvest.evaluation.result import is_fraction, shown
from harvest.evaluation.settings import EvalSettings
from harvest.evaluation.tasks.detection import DetectionTask
from harvest.evaluation.tasks.question_answering import squared_error
from harvest.evaluation.tasks.recognition import RecognitionTask
from harvest.evaluation.text_protocols import TEXTS, Texts
from harvest.interfaces import Example, HarvestError
from harvest.model.folder import save_model
from harvest.model.tokenizer import train_tokenizer

from .conftest import SENTENCES, WORDS, World, make_models


def retrieval_data(folder: Path, videos: list[Path], *, count: int = 4, published: int = 4) -> BenchmarkData:
    """MSR-VTT in small: `count` rows, of which there is a video for as many as are in `videos`."""
    (folder / "annotations").mkdir()
    (folder / "videos").mkdir()
    for number, path in enumerate(videos):
        os.link(path, folder / f"videos/video{number}.mp4")
    lines = "".join(f"r,m,video{number},{SENTENCES[number]}\n" for number in range(count))
    (folder / "annotations/MSRVTT_JSFUSION_test.csv").write_text("key,vid_key,video_id,sentence\n" + lines)
    data = read("msrvtt", folder / "annotations", videos=folder / "videos")
    return dataclasses.replace(data, published=Published({"rows": published}, "a test"))


def test_a_whole_benchmark_is_scored_as_its_rows_are(
    world: World, videos: list[Path], tmp_path: Path
) -> None:
    data = retrieval_data(tmp_path, videos)
    result = score_benchmark(world.model, world.tokenizer, data)
    with pytest.raises(HarvestError, match="detection: msrvtt is a benchmark of retrieval"):
        score_benchmark(world.model, world.tokenizer, data, task=DetectionTask())
    plain = evaluate(world.model, world.tokenizer, data.examples, task="retrieval")
    assert result.metrics == plain.metrics and "share_of_rows" not in result.metrics
    assert result.protocol == f"{data.protocol} {plain.protocol}"
    assert result.counts["rows"] == result.counts["rows_scored"] == 4


def test_a_smaller_set_is_refused_or_printed_with_its_share(
    world: World, videos: list[Path], tmp_path: Path
) -> None:
    data = retrieval_data(tmp_path, videos[:3])
    with pytest.raises(HarvestError, match=r"1 of 4 videos are missing.*--allow-missing.*75\.0 %"):
        score_benchmark(world.model, world.tokenizer, data)
    result = score_benchmark(world.model, world.tokenizer, data, allow_missing=True)
    assert result.metrics["share_of_rows"] == 0.75 and list(result.missing) == ["video3"]
    assert result.protocol.endswith(" Only 3 of 4 rows were scored.")
    there = evaluate(world.model, world.tokenizer, data.examples[:3], task="retrieval")
    assert {name: result.metrics[name] for name in there.metrics} == there.metrics


def test_rows_that_the_annotations_lack_count_as_missing(
    world: World, videos: list[Path], tmp_path: Path
) -> None:
    data = retrieval_data(tmp_path, videos, published=8)
    with pytest.raises(HarvestError, match=r"hold 4 rows, published are 8 .*50\.0 %"):
        score_benchmark(world.model, world.tokenizer, data)
    assert (
        score_benchmark(world.model, world.tokenizer, data, allow_missing=True).metrics["share_of_rows"]
        == 0.5
    )


def test_a_video_that_cannot_be_read_is_a_missing_one(
    world: World, videos: list[Path], tmp_path: Path
) -> None:
    data = retrieval_data(tmp_path, videos)
    path = tmp_path / "videos/video2.mp4"
    path.unlink()
    path.write_bytes(b"no video")
    with pytest.raises(HarvestError, match=r"1 of 4 rows cannot be read \(first: video2: .*75\.0 %"):
        score_benchmark(world.model, world.tokenizer, data)
    assert (
        score_benchmark(world.model, world.tokenizer, data, allow_missing=True).metrics["share_of_rows"]
        == 0.75
    )


def test_nothing_to_score_and_nothing_that_scores(tmp_path: Path) -> None:
    data = retrieval_data(tmp_path, [])
    with pytest.raises(HarvestError, match="nothing to score"):
        check_complete(data, allow_missing=True)
    with pytest.raises(HarvestError, match="cannot be scored: several videos"):
        check_complete(dataclasses.replace(data, unscored="several videos are right"), allow_missing=True)
    with pytest.raises(HarvestError, match="without a folder of videos"):
        check_complete(dataclasses.replace(data, unresolved=None))


@pytest.mark.parametrize("task", ["recognition", "qa", "choice"])
def test_a_task_gets_its_classes_answers_or_options(
    world: World, videos: list[Path], task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = Texts(templates=("a video of {}", "a photo of {}"))
    monkeypatch.setitem(TEXTS["model"], "small", prompts)  # type: ignore[index]

    def example(number: int, path: Path) -> Example:
        given = {
            "recognition": {"label": number},
            "choice": {"texts": SENTENCES, "label": number},
            "qa": {"question": "which colour?", "answer": ("red", "blue", "green", "white")[number]},
        }[task]
        return Example(id=str(number), video=str(path), **given)

    data = BenchmarkData(
        name="small",
        split="test",
        task=task,
        examples=tuple(example(number, path) for number, path in enumerate(videos)),
        protocol="A small test.",
        counts={"rows": 4},
        published=Published({"rows": 4}, "a test"),
        unresolved=frozenset(),
        answers=("red", "blue", "green"),
        class_names=SENTENCES,
    )
    result = score_benchmark(world.model, world.tokenizer, data, settings=EvalSettings(num_frames=2))
    assert (
        result.task == task and "2 frames" in result.protocol and result.protocol.startswith("A small test. ")
    )
    if task == "qa":
        assert result.counts["answers"] == 3 and result.counts["questions_with_unlisted_answer"] == 1
    elif task == "recognition":
        assert "2 prompt templates" in result.protocol and result.counts["classes"] == 4
        with pytest.raises(HarvestError, match="templates: the protocol of small says"):
            score_benchmark(world.model, world.tokenizer, data, task=RecognitionTask(("{} moves",)))
    json.loads(result.to_json())


# ---- the command as typed ----------------------------------------------------------------------------------------


def typed(*words: str | Path) -> int:
    try:
        return main(["benchmark", *map(str, words)])
    except SystemExit as end:  # tyro's way to end
        return int(end.code or 0)


def test_the_command_lists_says_what_is_missing_and_refuses(
    world: World,
    videos: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert typed() == 0
    assert "\ndidemo           retrieval    DiDeMo, paragraphs: test, val" in capsys.readouterr().out

    retrieval_data(tmp_path, videos[:3])
    folders = ["--annotations", tmp_path / "annotations", "--videos", tmp_path / "videos"]
    assert typed("msrvtt", *folders[:2]) == 0
    assert "rows: 4 (published: 1,000, Yu et al. 2018 (JSFusion))\n" in capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    assert typed("msrvtt", *folders) == 0
    out = capsys.readouterr().out
    assert "1 of 4 videos are missing" in out and "missing videos: missing-msrvtt-1k-a.txt" in out
    assert (tmp_path / "missing-msrvtt-1k-a.txt").read_text() == f"{tmp_path}/videos/video3.mp4\n"

    assert typed("msrvtt", *folders[:2], "--model", "anything") == 2
    assert "needs --videos" in capsys.readouterr().err

    save_model(tmp_path / "model", world.model, world.tokenizer)
    scored = [*folders, "--model", tmp_path / "model", "--workers", "0", "--out", tmp_path / "out/card.json"]
    assert typed("msrvtt", *scored) == 2
    answer = capsys.readouterr()
    assert (
        "--allow-missing" in answer.err
        and "share of the rows, 0.3 %" in answer.err
        and "t2v_r1" not in answer.out
    )
    assert typed("msrvtt", *scored, "--allow-missing", "--missing-list", tmp_path / "list.txt") == 0
    out = capsys.readouterr().out
    assert "share_of_rows" in out and "Only 3 of 1,000 rows were scored" in " ".join(out.split())
    assert json.loads((tmp_path / "out/card.json").read_text())["metrics"]["share_of_rows"] == 0.003
    assert (tmp_path / "list.txt").exists()


def test_texts_as_umts_tests_read_them(
    world: World,
    videos: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    retrieval_data(tmp_path, videos)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(TEXTS["umt"], "msrvtt", Texts("umt", 6))  # type: ignore[index] # the toy tower has room for 20
    save_model(tmp_path / "model", world.model, world.tokenizer)
    line = [
        "msrvtt",
        "--annotations",
        tmp_path / "annotations",
        "--videos",
        tmp_path / "videos",
        "--allow-missing",
    ]
    line += ["--model", tmp_path / "model", "--workers", "0", "--json"]
    cut = []
    for more in ([], ["--texts", "umt"]):
        assert typed(*line, *more) == 0
        found = json.loads(capsys.readouterr().out)
        cut.append(found["counts"]["texts_cut"])
    assert found["settings"]["cleaning"] == "umt" and found["settings"]["context_length"] == 6
    assert cut == [0, 4] and "only the first 6 tokens are seen" in found["protocol"]


def test_options_that_would_do_nothing_are_refused(
    videos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = retrieval_data(tmp_path, videos)
    monkeypatch.chdir(tmp_path)
    read_only = ["--annotations", tmp_path / "annotations"]
    with_videos = [*read_only, "--videos", tmp_path / "videos"]
    before = set(tmp_path.iterdir())
    for words, said in (
        ([*read_only, "--manifest", "a.jsonl"], "--manifest: needs --videos"),
        ([*read_only, "--missing-list", "a.txt"], "--missing-list: needs --videos"),
        ([*with_videos, "--out", "a.json", "--card", "a"], "--out, --card: needs --model"),
        ([*with_videos, "--motion-truth", "yes"], "--motion-truth: needs --model"),
        ([*with_videos, "--rerank-top-k", "8"], "options of retrieval: needs --model"),
        ([*with_videos, "--budget", "8"], "options of what a model sees: needs --model"),
        ([*with_videos, "--zero-shot"], "--zero-shot: needs --model"),
        (
            [*with_videos, "--model", "m", "--span-s", "0"],
            "span_s: ",
        ),
        ([*read_only, "--span-s", "2"], "span_s: "),
    ):
        assert typed("msrvtt", *words) == 2
        answer = capsys.readouterr()
        assert said in " ".join(answer.err.split()) and answer.out == ""
    assert set(tmp_path.iterdir()) == before
    with pytest.raises(HarvestError, match=r"span_s: .*; msrvtt is a benchmark of retrieval"):
        widen(data, 2.0)


def test_a_split_is_written_to_train_on(world: World, videos: list[Path], tmp_path: Path, capsys) -> None:
    data = retrieval_data(tmp_path, videos[:3])
    with pytest.raises(HarvestError, match="--allow-missing"):
        write_training(data, tmp_path / "train.jsonl")
    rows = write_training(data, tmp_path / "train.jsonl", allow_missing=True)
    assert list(read_manifest(tmp_path / "train.jsonl")) == [
        dataclasses.replace(e, video=str(Path(e.video))) for e in rows
    ]
    assert [e.id for e in rows] == ["video0", "video1", "video2"]
    assert not (tmp_path / "train.names.json").exists()
    answers = dataclasses.replace(data, answers=("red", "blue"))
    write_training(answers, tmp_path / "qa.jsonl", allow_missing=True)
    assert json.loads((tmp_path / "qa.names.json").read_text()) == ["red", "blue"]


def test_numbers_are_scored_by_how_far_off_they_are(videos: list[Path]) -> None:
    scores = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.2, 0.1]])  # says 1, then 1 or 2
    assert squared_error(scores, [1, 2, 10], [3, 2]) == pytest.approx((4 + 0.5) / 2)
    data = BenchmarkData(
        name="counts",
        split="test",
        task="count",
        examples=tuple(
            Example(id=str(n), video=str(path), question="how often?", answer=str(n))
            for n, path in enumerate(videos)
        ),
        protocol="Counts, test.",
        counts={"rows": 4},
        published=Published({"rows": 4}, "a test"),
        unresolved=frozenset(),
        answers=tuple(str(number) for number in range(1, 4)),
    )
    tokenizer = train_tokenizer([*WORDS, "how often? 0 1 2 3"], vocab_size=400, context_length=20)
    result = score_benchmark(make_models(tokenizer)[1], tokenizer, data)
    assert 0 <= result.metrics["squared_error"] <= 9 and result.counts["questions_with_unlisted_answer"] == 1
    assert shown("squared_error", 2.25) == "2.2" and not is_fraction("squared_error.shuffled")
