from __future__ import annotations

import copy
import dataclasses
import json
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from harvest.data.labels import class_names_of
from harvest.data.video import read_clip, write_video
from harvest.evaluation import evaluate, read_class_names, table
from harvest.evaluation.embed import Embeddings, embed_texts, embed_videos
from harvest.evaluation.metrics import mean_rank, recall_at
from harvest.evaluation.result import Credits, Result
from harvest.evaluation.settings import EvalSettings
from harvest.evaluation.task import Evaluation
from harvest.evaluation.tasks.recognition import RecognitionTask, embed_classes
from harvest.evaluation.tasks.retrieval import RetrievalTask, retrieval_ranks
from harvest.interfaces import Example, HarvestError
from harvest.tokens import Selection

from .conftest import SENTENCES, World


def unit(*angles: float) -> torch.Tensor:
    angles_ = torch.tensor(angles, dtype=torch.float64)
    return torch.stack([angles_.cos(), angles_.sin()], dim=1).float()


def test_ranks_with_several_captions_a_video() -> None:
    videos = unit(0.0, 1.0, 2.0)
    texts = unit(0.1, 0.9, 1.1, 1.9)  # the second, nearest to video 1, belongs to video 0
    owner = torch.tensor([0, 0, 1, 2])
    t2v, v2t = retrieval_ranks(videos, texts, owner)
    assert t2v.expected().tolist() == [1, 2, 1, 1]
    assert v2t.expected().tolist() == [1, 1.5, 1]  # 0.9 and 1.1 are equally far from 1.0
    assert recall_at(t2v, 1) == 0.75
    assert mean_rank(v2t) == pytest.approx(3.5 / 3)
    assert recall_at(v2t, 1) == pytest.approx(2.5 / 3)


def test_a_video_without_captions_is_an_item_and_no_query() -> None:
    t2v, v2t = retrieval_ranks(unit(0.0, 0.1), unit(0.2), torch.tensor([0]))
    assert t2v.expected().tolist() == [2]
    assert v2t.expected().tolist() == [1]


def test_retrieval_agrees_with_loops(world: World) -> None:
    examples = [
        dataclasses.replace(example, texts=(SENTENCES[number], SENTENCES[(number + 1) % 4] + " again"))
        for number, example in enumerate(world.examples)
    ]
    result = evaluate(world.model, world.tokenizer, examples, task="retrieval")
    videos = embed_videos(world.model, examples).pooled
    texts = embed_texts(
        world.model, world.tokenizer, [text for example in examples for text in example.texts]
    )
    scores = texts @ videos.T  # [8, 4]
    t2v = [int((scores[c] > scores[c, c // 2]).sum()) + 1 for c in range(8)]
    v2t = [int((scores[:, v] > scores[2 * v : 2 * v + 2, v].max()).sum()) + 1 for v in range(4)]
    assert result.metrics["t2v_r1"] == pytest.approx(sum(rank == 1 for rank in t2v) / 8)
    assert result.metrics["t2v_mean_rank"] == pytest.approx(sum(t2v) / 8)
    assert result.metrics["v2t_r1"] == pytest.approx(sum(rank == 1 for rank in v2t) / 4)
    assert result.metrics["v2t_mean_rank"] == pytest.approx(sum(v2t) / 4)
    assert result.metrics["t2v_r5"] == 1.0
    assert result.counts["captions"] == 8
    assert result.counts["videos"] == 4
    low, high = result.intervals["t2v_r1"]
    assert low <= result.metrics["t2v_r1"] <= high


def test_a_caption_of_several_videos_by_hand() -> None:
    videos = unit(0.0, 1.0, 2.0)
    texts = unit(0.9, 0.1)  # of videos 0 and 2, of video 1
    has = torch.tensor([[True, False, True], [False, True, False]])
    t2v, v2t = retrieval_ranks(videos, texts, has)
    # Nearest to 0.9 are 1.0, then 0.0 and 2.0; nearest to 0.1 are 0.0, 1.0, 2.0.
    assert t2v.expected().tolist() == [2, 2]
    assert v2t.expected().tolist() == [2, 2, 1]


def test_captions_that_videos_share(world: World) -> None:
    """As Something-Something's templates: two captions for four videos."""
    examples = [
        dataclasses.replace(example, texts=(SENTENCES[number // 2],))
        for number, example in enumerate(world.examples)
    ]
    how = RetrievalTask(dual_softmax=True, shared_captions=True)
    result = evaluate(world.model, world.tokenizer, examples, task=how)
    videos = embed_videos(world.model, examples).pooled
    texts = embed_texts(world.model, world.tokenizer, list(SENTENCES[:2]))
    scores = texts @ videos.T  # [2, 4]
    best = [int((scores[c] > scores[c, 2 * c : 2 * c + 2].max()).sum()) + 1 for c in range(2)]
    assert result.metrics["t2v_mean_rank"] == pytest.approx(sum(best) / 2)
    assert result.counts["captions"] == 2 and len(result.credits["t2v_r1.dual_softmax"].values) == 2
    assert len(result.credits["v2t_r1"].values) == 4 and "best ranked counts" in result.protocol
    plain = evaluate(world.model, world.tokenizer, examples, task="retrieval")
    assert plain.counts["captions"] == 4


def test_rows_of_one_stretch_are_one_video(world: World) -> None:
    by_video = [dataclasses.replace(example, texts=(*example.texts, "again")) for example in world.examples]
    by_row = [
        dataclasses.replace(example, id=f"{example.id} {text}", texts=(text,))
        for example in by_video
        for text in example.texts
    ]
    grouped = evaluate(world.model, world.tokenizer, by_video, task="retrieval")
    result = evaluate(world.model, world.tokenizer, by_row, task="retrieval")
    assert (result.metrics, result.intervals) == (grouped.metrics, grouped.intervals)
    assert result.counts == grouped.counts | {"rows": 8, "rows_scored": 8}
    assert grouped.counts["captions_shared_by_videos"] == 4


def test_a_caption_of_two_videos_is_a_tie(world: World) -> None:
    examples = [dataclasses.replace(example, texts=("the same",)) for example in world.examples]
    result = evaluate(world.model, world.tokenizer, examples, task="retrieval")
    # Text to video, each of four equal queries is right with its own video: one of them is first.
    assert result.metrics["t2v_r1"] == pytest.approx(0.25)
    assert result.metrics["t2v_mean_rank"] == 2.5
    # Video to text, all captions tie.
    assert result.metrics["v2t_r1"] == pytest.approx(0.25)
    assert result.metrics["v2t_median_rank"] == 2.5


def test_missing_videos_are_counted_and_named(world: World, tmp_path: Path) -> None:
    gone = Example("gone", str(tmp_path / "gone.mp4"), texts=("one", "two"))
    result = evaluate(world.model, world.tokenizer, [gone, *world.examples], task="retrieval")
    whole = evaluate(world.model, world.tokenizer, world.examples, task="retrieval")
    assert list(result.missing) == ["gone"]
    assert result.counts["examples_missing"] == 1
    assert result.counts["captions_left_out"] == 2
    assert result.metrics == pytest.approx(whole.metrics)


def test_choice(world: World) -> None:
    videos = embed_videos(world.model, world.examples).pooled
    texts = embed_texts(world.model, world.tokenizer, SENTENCES)
    best = (videos @ texts.T).argmax(dim=1).tolist()
    right = [dataclasses.replace(e, texts=SENTENCES, label=best[n]) for n, e in enumerate(world.examples)]
    result = evaluate(world.model, world.tokenizer, right, task="choice")
    assert result.metrics == {"accuracy": 1.0, "chance": 0.25}
    assert result.counts["questions"] == 4
    two_wrong = [
        dataclasses.replace(e, label=(e.label + 1) % 4) if n < 2 and e.label is not None else e
        for n, e in enumerate(right)
    ]
    groups = {"clip0": "first", "clip1": "first", "clip2": "last", "clip3": "last"}
    result = evaluate(world.model, world.tokenizer, two_wrong, task="choice", groups=groups)
    assert result.metrics == {"accuracy": 0.5, "chance": 0.25, "accuracy.first": 0.0, "accuracy.last": 1.0}
    assert result.counts["questions.first"] == 2


def test_choice_among_equal_options_is_at_chance(world: World) -> None:
    examples = [
        Example(e.id, e.video, texts=(SENTENCES[0],) * (2 + 2 * (n % 2)), label=0)
        for n, e in enumerate(world.examples)
    ]
    result = evaluate(
        world.model,
        world.tokenizer,
        examples,
        task="choice",
        settings=EvalSettings(image=True, precision="bf16"),
    )
    assert result.metrics["accuracy"] == pytest.approx(0.375)
    assert result.metrics["chance"] == pytest.approx(0.375)
    assert result.counts["questions_tied"] == 4
    assert "image baseline" in result.protocol


def test_recognition(world: World, tmp_path: Path) -> None:
    names = ["red circle", "blue square", "green star", "white ring", "dog", "cat", "tree"]
    templates = ("a video of {}", "a photo of {}.")
    classes = embed_classes(world.model, world.tokenizer, names, templates=templates)
    one, other = (
        embed_texts(world.model, world.tokenizer, [template.replace("{}", "dog")])[0]
        for template in templates
    )
    assert torch.allclose(classes[4], torch.nn.functional.normalize(one + other, dim=0), atol=1e-6)
    order = (embed_videos(world.model, world.examples).pooled @ classes.T).argsort(dim=1, descending=True)
    places = [0, 2, 4, 5]  # where the label of each clip stands
    examples = [
        dataclasses.replace(e, label=int(order[n, place]))
        for n, (e, place) in enumerate(zip(world.examples, places, strict=True))
    ]
    result = evaluate(
        world.model, world.tokenizer, examples, task=RecognitionTask(templates=templates), names=names
    )
    assert result.metrics["top1"] == 0.25
    assert result.metrics["top5"] == 0.75
    assert result.metrics["chance"] == pytest.approx(1 / 7)
    assert result.counts["classes"] == 7

    (tmp_path / "names.txt").write_text("red circle\n\nblue square\n")
    (tmp_path / "names.json").write_text('["red circle", "blue square"]')
    assert read_class_names(tmp_path / "names.txt") == read_class_names(tmp_path / "names.json") == names[:2]
    (tmp_path / "bad.json").write_text('["red circle", 3]')
    (tmp_path / "cut.json").write_text('["red circle"')
    for name in ("bad.json", "cut.json", "gone.json"):
        with pytest.raises(HarvestError, match=name):
            read_class_names(tmp_path / name)


def test_class_names_from_the_manifest() -> None:
    examples = [
        Example("a", "v", ("dog",), 1),
        Example("b", "w", ("cat",), 0),
        Example("c", "x", ("dog",), 1),
    ]
    assert class_names_of(examples) == ["cat", "dog"]
    with pytest.raises(HarvestError, match="both 'dog' and 'cow'"):
        class_names_of([*examples, Example("d", "y", ("cow",), 1)])
    with pytest.raises(HarvestError, match=r"labels \[0\]"):
        class_names_of(examples[:1])
    with pytest.raises(HarvestError, match="'e'"):
        class_names_of([Example("e", "y", (), 1)])


def test_mistakes_are_told_before_any_video_is_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **settings: object) -> None:
        raise AssertionError("read a video")

    monkeypatch.setattr("harvest.evaluation.clips.eval_batches", refuse)

    def say(**settings: object) -> str:
        with pytest.raises(HarvestError) as caught:
            evaluate(world.model, world.tokenizer, world.examples, **settings)  # type: ignore[arg-type]
        return str(caught.value)

    assert "retrieval, choice" in say(task="dance") and "did you mean 'retrieval'" in say(task="retreival")
    assert "'clip0'" in say(task="choice")
    assert "label None, the classes go from 0 to 1" in say(task="recognition", names=["a", "b"])
    assert "no question" in say(task="qa")
    assert "class names" in say(task="recognition")
    assert "names: retrieval has no use" in say(task="retrieval", names=["a"])
    assert "groups: qa gives no figures of groups" in say(task="qa", groups={})


def test_retrieval_without_captions(world: World) -> None:
    bare = [dataclasses.replace(example, texts=()) for example in world.examples]
    with pytest.raises(HarvestError, match="no readable example has one"):
        evaluate(world.model, world.tokenizer, bare, task="retrieval")


def test_result_as_table_and_json(world: World) -> None:
    result = evaluate(world.model, world.tokenizer, world.examples, task="retrieval")
    again = json.loads(result.to_json())
    assert again["metrics"] == result.metrics
    assert again["task"] == "retrieval"
    assert "4 captions against 4 videos, 4 frames a video" in again["protocol"]
    page = StringIO()
    Console(file=page, width=80).print(table(result))
    lines = page.getvalue().splitlines()
    assert lines[1].split() == ["R@1", "R@5", "R@10", "median", "mean"]
    names = ("r1", "r5", "r10", "median_rank", "mean_rank")
    for way, line in (("t2v", lines[2]), ("v2t", lines[4])):  # one line each way, all of it
        values = [result.metrics[f"{way}_{name}"] for name in names]
        said = [f"{100 * value:.1f} %" for value in values[:3]] + [f"{value:.1f}" for value in values[3:]]
        assert line.split("video" if way == "t2v" else "text", 1)[1].split() == " ".join(said).split()
    assert "…" not in page.getvalue()


def test_videos_may_be_embedded_before(world: World) -> None:
    videos = embed_videos(world.model, world.examples)
    assert isinstance(videos, Embeddings)
    result = RetrievalTask().of_embeddings(Evaluation(world.model, world.tokenizer, world.examples), videos)
    whole = evaluate(world.model, world.tokenizer, world.examples, task="retrieval")
    assert (result.metrics, result.intervals) == (whole.metrics, whole.intervals)
    assert result.protocol == whole.protocol and result.counts.items() <= whole.counts.items()


def test_a_budget_of_tokens_and_of_entries(world: World) -> None:
    few, short = Selection(budget=6, selector="motion"), EvalSettings(budget=6)
    result = evaluate(world.model, world.tokenizer, world.examples, task=RetrievalTask(dim=7), settings=short)
    assert "Of each clip 6 tubelets, selector motion." in result.protocol
    assert "The first 7 entries of each embedding." in result.protocol
    videos = embed_videos(world.model, world.examples, selection=few, dim=7)
    texts = embed_texts(world.model, world.tokenizer, [e.texts[0] for e in world.examples], dim=7)
    t2v, _ = retrieval_ranks(videos.pooled, texts, torch.arange(4))
    assert result.metrics["t2v_r1"] == pytest.approx(recall_at(t2v, 1))
    named = [
        dataclasses.replace(e, label=n, texts=(s,))
        for n, (e, s) in enumerate(zip(world.examples, SENTENCES, strict=True))
    ]
    result = evaluate(world.model, world.tokenizer, named, task=RecognitionTask(dim=7), settings=short)
    assert result.counts["clips"] == 4


def test_a_caption_twice_is_a_query_twice(world: World) -> None:
    """As in the official counts and the published numbers of MSVD."""
    examples = [
        dataclasses.replace(e, texts=(*e.texts, *e.texts[:1]) if n == 0 else e.texts)
        for n, e in enumerate(world.examples)
    ]
    plain = evaluate(world.model, world.tokenizer, world.examples, task="retrieval")
    result = evaluate(world.model, world.tokenizer, examples, task="retrieval")
    assert result.counts["captions"] == 5 and result.counts["captions_repeated"] == 1
    assert plain.counts["captions_repeated"] == 0 and result.counts["captions_shared_by_videos"] == 0
    videos = embed_videos(world.model, world.examples)
    texts = embed_texts(world.model, world.tokenizer, [text for e in examples for text in e.texts])
    t2v, v2t = retrieval_ranks(videos.pooled, texts, torch.tensor([0, 0, 1, 2, 3]))
    assert result.metrics["t2v_mean_rank"] == float(t2v.expected().mean())
    assert result.metrics["v2t_mean_rank"] == float(v2t.expected().mean())


def test_dual_softmax_stands_apart(world: World) -> None:
    plain = evaluate(world.model, world.tokenizer, world.examples, task="retrieval")
    both = evaluate(
        world.model,
        world.tokenizer,
        world.examples,
        task=RetrievalTask(dual_softmax=True),
    )
    assert {name: both.metrics[name] for name in plain.metrics} == plain.metrics
    more = both.metrics.keys() - plain.metrics.keys()
    assert more == {f"{name}.dual_softmax" for name in plain.metrics}
    videos = embed_videos(world.model, world.examples).pooled.double()
    texts = embed_texts(world.model, world.tokenizer, SENTENCES).double()
    scaled = texts @ videos.T / 0.07
    best = (scaled * scaled.softmax(dim=0)).argmax(dim=1)
    assert both.metrics["t2v_r1.dual_softmax"] == pytest.approx(
        float((best == torch.arange(4)).double().mean())
    )
    back = (scaled.T * scaled.T.softmax(dim=0)).argmax(dim=1)
    assert both.metrics["v2t_r1.dual_softmax"] == pytest.approx(
        float((back == torch.arange(4)).double().mean())
    )
    assert "dual_softmax" not in plain.protocol and "at the model's scale of 14.3" in both.protocol
    page = StringIO()
    Console(file=page, width=80).print(table(both))
    assert page.getvalue().count("video to text, dual softmax  ") == 1 and "…" not in page.getvalue()


@pytest.mark.parametrize("task", ["retrieval", "choice", "recognition", "masked_words", "qa"])
def test_texts_that_are_cut_are_counted_and_said(world: World, task: str) -> None:
    long = "a red circle moves to the left and " * 5
    given: list[dict] = [
        {"texts": (long, SENTENCES[1]), "label": 0, "question": f"{long} [mask]", "answer": "red"},
        {"texts": (SENTENCES[0], long), "label": 1, "question": "which colour?", "answer": "blue"},
    ]
    examples = [dataclasses.replace(e, **some) for e, some in zip(world.examples[:2], given, strict=True)]
    names = [long, "dog"] if task == "recognition" else None
    before = world.tokenizer.truncated
    result = evaluate(world.model, world.tokenizer, examples, task=task, names=names)
    assert result.counts["texts_cut"] == 1  # each distinct text once
    assert "Of 1 texts only the first 20 tokens are seen" in result.protocol
    assert world.tokenizer.truncated > before
    short = [dataclasses.replace(e, texts=("red", "blue"), question="[mask]") for e in examples]
    names = ["dog", "cat"] if task == "recognition" else None
    if task == "masked_words":
        short[1] = dataclasses.replace(short[1], texts=("blue",))
    result = evaluate(world.model, world.tokenizer, short, task=task, names=names)
    assert result.counts["texts_cut"] == 0 and "tokens are seen" not in result.protocol


def test_a_line_of_any_figure_fits_into_80_columns() -> None:
    name = "accuracy.no_direction.one_frame"
    credit = Credits(torch.ones(8, dtype=torch.float64), torch.arange(8))
    result = Result("choice", "video", "", {name: 1.0, "squared_error": 12345.678}, credits={name: credit})
    page = StringIO()
    Console(file=page, width=80).print(table(result))
    assert f"{name}" in page.getvalue() and "100.0-100.0" in page.getvalue() and "12345.7" in page.getvalue()


@pytest.mark.parametrize("fit", ["squash", "pad"])
def test_pictures_become_squares_as_the_model_says(world: World, tmp_path: Path, fit: str) -> None:
    """Evaluation shows a wide clip as the model folder has it, and says so."""
    generator = torch.Generator().manual_seed(5)
    blocks = torch.randint(256, (8, 3, 2, 6), generator=generator, dtype=torch.uint8)
    wide = blocks.repeat_interleave(16, dim=2).repeat_interleave(16, dim=3)
    write_video(tmp_path / "wide.mp4", wide, fps=8, crf=0)
    rows = [Example("wide", str(tmp_path / "wide.mp4"), texts=("a",))]
    model = copy.deepcopy(world.model)
    cropped = embed_videos(model, rows).pooled
    video = dataclasses.replace(model.config.video, fit=fit)
    model.config = dataclasses.replace(model.config, video=video)
    frames = read_clip(rows[0].video, num_frames=4, image_size=32, fit=fit).frames
    shown = embed_videos(model, rows).pooled
    assert torch.allclose(shown, model.eval().encode_video(frames[None]).pooled.detach(), atol=1e-6)
    assert not torch.allclose(shown, cropped, atol=1e-3)
    assert evaluate(model, world.tokenizer, rows, task="retrieval").settings["fit"] == fit
