"""`harvest demo`: an image model becomes a video model in the mini-world, with a page that shows what it learnt.

OUT/world/        the mini-world
OUT/run/          the training run: config.json, metrics.jsonl, checkpoints
OUT/model/        the video model, opened by `harvest.load`
OUT/report.html   the page; OUT/demo.json the same figures for programs
OUT/seconds.json  how long each part took, over all interruptions
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import av
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from harvest import __version__
from harvest.config import RunConfig, differences, read_config
from harvest.data.manifest import read_manifest
from harvest.data.miniworld import MiniWorld, reverse_of, write_miniworld
from harvest.data.video import read_clip
from harvest.evaluation import EvalSettings, evaluate
from harvest.evaluation.embed import Embeddings, Mode, cosines, embed_texts
from harvest.evaluation.motion_truth import DIRECTION, NO_DIRECTION, by_direction, motion_truth
from harvest.evaluation.result import Result
from harvest.evaluation.task import Evaluation
from harvest.evaluation.tasks.retrieval import RetrievalTask
from harvest.evaluation.word_filling import likeliest_words
from harvest.files import new_folder, write_file
from harvest.interfaces import Example, HarvestError, OnProgress
from harvest.machine import described, hardware, num_cores
from harvest.model.importing.pretrained import load_pretrained
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_text import VideoTextModel
from harvest.parallel import Precision, generator_for
from harvest.progress import bar, say
from harvest.recipes.mini import mini_harvest
from harvest.report import (
    Bar,
    Blank,
    Curve,
    Found,
    Guess,
    Page,
    Score,
    Search,
    curve,
    filmstrip,
    percent,
    write_report,
)
from harvest.tokens import Selector
from harvest.training import loop

CHOICES = {
    "motion_choice": ("motion, 4 options", "options differ in the motion only"),
    "motion_choice_held_out": (
        "motion, unseen combinations",
        "colour, shape and motion never met in training",
    ),
    "appearance_choice": ("appearance, 4 options", "options differ in colour or shape"),
    "order_choice": ("order of events, 2 options", "which of two things vanishes or jumps first"),
}
LEFT_OUT: Mapping[Selector, str] = {
    "random": ", at random",
    "tube": ", the same places all along",
    "motion": ", mostly what moves least",
    "attention": ", mostly what is looked at least",
    "run_length": ", mostly what repeats",
}
"""How it is chosen what a step leaves out, as the page says it."""
NUM_SEARCHES = 6
NUM_FOUND = 3
BLANKS = {"motion": 4, "colour": 2}  # questions of each kind on the page
NUM_WITHOUT_TIME = (
    200  # motion questions asked again with time taken from the clips: some seconds of the demo
)


def run_demo(out: Path, *, seed: int = 0, config: RunConfig | None = None) -> Path:
    """Make the mini-world, score the image model, post-pretrain it, score the video model, write the report.

    `config` None is the recipe `mini-harvest`; its training set is replaced by the mini-world in `out`. Goes on where
    an interrupted demo was. Returns the path of report.html.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    config = mini_harvest() if config is None else config
    run, seconds = out / "run", Seconds(out / "seconds.json")
    seconds.add_unfinished("train", until=run / "metrics.jsonl")

    with seconds.measure("world", is_added=True):
        say("1/5  the mini-world: short clips of moving shapes, with captions")
        with bar("drawing clips", quiet=(out / "world" / "world.json").exists()) as progress:
            world = write_miniworld(out / "world", config.world, progress=progress, workers=num_cores())
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, train=str(world.train.resolve()), videos=None),
        loop=dataclasses.replace(config.loop, seed=seed),
    )
    check_same(run, config)
    material = read_material(world)

    with seconds.measure("image_scores"):
        say("2/5  what the image model knows: every frame alone, embeddings averaged")
        image_model, tokenizer, _ = load_pretrained(config.start.model)
        with bar("scoring the image model") as progress:
            image = score(image_model, tokenizer, material, "image", config.loop.precision, progress)
        del image_model

    with seconds.measure("train", is_added=True):
        if (run / "model").is_dir():
            say("3/5  post-pretraining: finished before")
        else:
            seen = config.selection_at(0)
            say(
                f"3/5  post-pretraining on {clips_seen(config):,} clips, {seen.drop_ratio:.0%} of each left out"
                f"{LEFT_OUT[seen.selector]}"
            )
            loop.train(config, run)
        with new_folder(out / "model") as folder:
            shutil.copytree(run / "model", folder, dirs_exist_ok=True)

    with seconds.measure("video_scores"):
        say("4/5  what the video model knows")
        model, tokenizer, _ = load_pretrained(out / "model")
        with bar("scoring the video model") as progress:
            video = score(model, tokenizer, material, "video", config.loop.precision, progress)

    with seconds.measure("report"):
        say("5/5  the report")
        searches = show_searches(material, image, video, image_size=model.config.video.image_size)
        blanks = fill_blanks(model, tokenizer, material.questions, config.loop.precision)
        curves = draw_curves(run / "metrics.jsonl", config)
        facts = summary(image, video, config, out=out, seed=seed)
        write_page(out, facts, image, video, curves, searches, blanks, config, material, seconds.parts)
    facts["seconds"] = whole_seconds(seconds.parts)
    write_file(out / "demo.json", json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    _say_end(out, scores_of(facts), facts)
    return out / "report.html"


# ---- what is scored ----------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A row of a mini-world manifest, with the fields that are for analysis."""

    example: Example
    about: Mapping[str, Any]  # kind, group, motion, colour, shape


@dataclass(frozen=True)
class Material:
    """The manifests that the demo scores, and the queries it shows."""

    choices: Mapping[str, Sequence[Row]]
    retrieval: Sequence[Row]
    questions: Sequence[Row]
    queries: Sequence[int]  # places in `retrieval`


def read_material(world: MiniWorld) -> Material:
    found = _rows(world.retrieval)
    queries = choose_queries(found)
    # Shuffled, since the manifest has clips of one appearance side by side, and the "other clip" that words are
    # filled in with is the next one.
    order = torch.randperm(len(found), generator=generator_for(0, len(found))).tolist()
    return Material(
        choices={name: _rows(getattr(world, name)) for name in CHOICES},
        retrieval=[found[place] for place in order],
        questions=_rows(world.questions),
        queries=[order.index(place) for place in queries],
    )


def choose_queries(rows: Sequence[Row]) -> list[int]:
    """The first row of each group of motions, with a colour and a shape that no chosen one has."""
    chosen: list[int] = []
    used: set[Any] = {None, "still"}
    for place, (_, about) in enumerate(rows):
        marks = {about["group"], about["colour"], about["shape"]}
        if len(chosen) < NUM_SEARCHES and not marks & used:
            chosen.append(place)
            used |= marks
    for place, (_, about) in enumerate(rows):  # small worlds may not have that many
        if len(chosen) < NUM_SEARCHES and about["group"] not in used:
            chosen.append(place)
            used.add(about["group"])
    return chosen


def _rows(manifest: Path) -> list[Row]:
    lines = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    return [Row(example, about) for example, about in zip(read_manifest(manifest), lines, strict=True)]


@dataclass(frozen=True)
class Scores:
    """What one model scored."""

    results: Mapping[str, Result]
    """By manifest, `masked_words` and `qa` where the model can fill words in, and of a video model `motion_truth`."""
    found: Tensor  # int64 [queries, clips]: for each query of the page the clips, best first


def score(
    model: VideoTextModel,
    tokenizer: Tokenizer,
    material: Material,
    mode: Mode,
    precision: Precision,
    progress: OnProgress,
) -> Scores:
    """Score a model on every manifest of the demo; each clip is encoded once."""
    model = model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    settings = EvalSettings(image=mode == "image", precision=precision)
    fills = mode == "video" and model.fusion is not None
    asked_again = material.choices["motion_choice"][:NUM_WITHOUT_TIME] if mode == "video" else []
    sizes = [len(rows) for rows in material.choices.values()] + [len(material.retrieval)] * (1 + fills)
    of, before = sum(sizes) + len(material.questions) * fills + 4 * len(asked_again), 0

    def count(done: int, _: int) -> None:
        progress(before + done, of)

    def asked(task: str, rows: Sequence[Row], **how: Any) -> Result:
        nonlocal before
        examples = [row.example for row in rows]
        result = evaluate(model, tokenizer, examples, task=task, settings=settings, progress=count, **how)
        before += len(rows)
        return result

    results: dict[str, Result] = {}
    for name, rows in material.choices.items():
        groups = {row.example.id: str(row.about["group"] or row.about["kind"]) for row in rows}
        results[name] = asked("choice", rows, groups=groups)
    if asked_again:
        sorts = by_direction(
            {row.example.id: reverse_of(row.about["motion"]) is not None for row in asked_again}
        )
        results["motion_truth"] = motion_truth(
            lambda frame_order: asked("choice", asked_again, groups=sorts, frame_order=frame_order)
        )
    examples = [row.example for row in material.retrieval]
    given = Evaluation(model, tokenizer, examples, settings, progress=count)
    videos = given.embed_videos()
    results["retrieval"] = RetrievalTask().of_embeddings(given, videos)
    before += len(examples)
    if fills:
        results["masked_words"] = asked("masked_words", material.retrieval)
        results["qa"] = asked("qa", material.questions)
    return Scores(results, _search(model, tokenizer, examples, videos, material.queries, precision))


def _search(
    model: VideoTextModel,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    videos: Embeddings,
    queries: Sequence[int],
    precision: Precision,
) -> Tensor:
    texts = embed_texts(
        model, tokenizer, [examples[place].texts[0] for place in queries], precision=precision
    )
    order = cosines(texts, videos.pooled).argsort(dim=1, descending=True, stable=True)
    return videos.first[order]


# ---- what is shown -----------------------------------------------------------------------------------------------


def show_searches(material: Material, image: Scores, video: Scores, *, image_size: int) -> list[Search]:
    examples = [row.example for row in material.retrieval]

    def found(order: Sequence[int], right: int) -> list[Found]:
        return [
            Found(_strip(examples[place], image_size), examples[place].texts[0], place == right)
            for place in order[:NUM_FOUND]
        ]

    searches = []
    for number, right in enumerate(material.queries):
        by_image, by_video = image.found[number].tolist(), video.found[number].tolist()
        searches.append(
            Search(
                sentence=examples[right].texts[0],
                image=found(by_image, right),
                video=found(by_video, right),
                image_rank=by_image.index(right) + 1,
                video_rank=by_video.index(right) + 1,
            )
        )
    return searches


def fill_blanks(
    model: VideoTextModel, tokenizer: Tokenizer, questions: Sequence[Row], precision: Precision
) -> list[Blank]:
    """The first questions of each kind, filled with their own clip and with that of the next one of their form and another answer."""
    if model.fusion is None:
        return []
    size, blanks = model.config.video.image_size, []
    for kind, number in BLANKS.items():
        rows = [row.example for row in questions if row.about["kind"] == kind]
        for place, own in enumerate(rows[:number]):
            others = [
                row
                for row in rows[place + 1 :] + rows[:place]
                if row.answer != own.answer and _word_before(row) == _word_before(own)
            ]
            if not others or not own.question or not own.answer:
                continue
            other = others[0]
            guesses = [
                likeliest_words(
                    model, tokenizer, _frames(clip, model), own.question, most=3, precision=precision
                )[0]
                for clip in (own, other)
            ]
            own_guesses, other_guesses = (
                [Guess(word, 100 * share, word == clip.answer) for word, share in top]
                for top, clip in zip(guesses, (own, other), strict=True)
            )
            blanks.append(
                Blank(
                    sentence=own.question,
                    word=own.answer,
                    own_strip=_strip(own, size),
                    own=own_guesses,
                    other_strip=_strip(other, size),
                    other_sentence=(other.question or "").replace("[mask]", other.answer or ""),
                    other_word=other.answer or "",
                    other=other_guesses,
                )
            )
    return blanks


def _word_before(example: Example) -> str:
    """The word before the hidden one: questions that share it can be answered with each other's words."""
    return (example.question or "").split("[mask]")[0].split()[-1]


def _frames(example: Example, model: VideoTextModel) -> Tensor:
    video = model.config.video
    return read_clip(example.video, num_frames=video.num_frames, image_size=video.image_size).frames


def _strip(example: Example, image_size: int) -> str:
    return filmstrip(read_clip(example.video, num_frames=8, image_size=image_size).frames)


def draw_curves(metrics: Path, config: RunConfig) -> list[Curve]:
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    tuning_from = config.loop.steps if config.tuning.steps else None
    drawn = (
        curve(lines, "vtc", title="matching clips and captions", unit="loss", tuning_from=tuning_from),
        curve(lines, "mlm", title="filling hidden words", unit="loss", tuning_from=tuning_from),
        curve(
            lines,
            "words_right",
            title="hidden words filled rightly",
            unit="percent",
            scale=100,
            tuning_from=tuning_from,
        ),
    )
    return [one for one in drawn if one is not None]


# ---- what is written ---------------------------------------------------------------------------------------------


def summary(image: Scores, video: Scores, config: RunConfig, *, out: Path, seed: int) -> dict[str, Any]:
    """The content of demo.json, less the seconds; percent where nothing else is said."""
    facts: dict[str, Any] = {}
    for name in CHOICES:
        facts[name] = _pair(image.results[name], video.results[name], "accuracy")
        facts[name]["chance"] = _percent(video.results[name].metrics["chance"])
        facts[name]["groups"] = {
            key.removeprefix("accuracy."): {
                "image": _percent(image.results[name].metrics[key]),
                "video": _percent(value),
            }
            for key, value in video.results[name].metrics.items()
            if key.startswith("accuracy.")
        }
    found = video.results["retrieval"]
    for name in found.metrics:
        facts[name] = _pair(image.results["retrieval"], found, name)
    videos, captions = found.counts["videos"], found.counts["captions"]
    for k in (1, 5, 10):
        facts[f"t2v_r{k}"]["chance"] = _percent(min(1.0, k / videos))
        facts[f"v2t_r{k}"]["chance"] = _percent(min(1.0, k / captions))
    facts["t2v_median_rank"]["chance"], facts["v2t_median_rank"]["chance"] = (
        (videos + 1) / 2,
        (captions + 1) / 2,
    )
    if (words := video.results.get("masked_words")) is not None:
        facts["masked_words"] = {name: _percent(value) for name, value in words.metrics.items()}
        facts["masked_words"]["hidden_words"] = words.counts["hidden_words"]
        facts["masked_words"]["intervals"] = {name: _between(words, name) for name in words.intervals}
    if (truth := video.results.get("motion_truth")) is not None:
        facts["motion_truth"] = {
            **_truth(truth, "accuracy"),
            "questions": truth.counts["questions"],
            **{
                group: {
                    **_truth(truth, f"accuracy.{group}"),
                    "questions": truth.counts[f"questions.{group}"],
                }
                for group in (DIRECTION, NO_DIRECTION)
                if f"accuracy.{group}" in truth.metrics
            },
            "findings": list(truth.findings),
        }
    if (qa := video.results.get("qa")) is not None:
        facts["qa"] = {
            "video": _percent(qa.metrics["accuracy"]),
            "chance": _percent(qa.metrics["chance"]),
            "commonest_answer": _percent(qa.metrics["commonest_answer"]),
            "intervals": {"video": _between(qa, "accuracy")},
        }
    facts["protocol"] = {
        name: {
            mode: side.results[name].protocol
            for mode, side in (("image", image), ("video", video))
            if name in side.results
        }
        for name in video.results
    }
    if "masked_words" in facts["protocol"]:
        facts["protocol"]["masked_words"]["video"] += " The clips are those of the retrieval set, shuffled."
    facts |= {
        "recipe": config.recipe,
        "seed": seed,
        "clips_seen": clips_seen(config),
        "training_clips": config.world.train,
        "drop_ratio": config.selection_at(0).drop_ratio,
        "selector": config.selection_at(0).selector,
        "command": f"harvest demo --out {shlex.quote(str(out))}" + (f" --seed {seed}" if seed else ""),
        "date": datetime.date.today().isoformat(),
        "seconds": {},
        "hardware": hardware(),
        "versions": {
            "harvest": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "av": av.__version__,
        },
    }
    return facts


def _pair(image: Result, video: Result, name: str) -> dict[str, Any]:
    show = float if name.endswith("rank") else _percent
    pair: dict[str, Any] = {"image": show(image.metrics[name]), "video": show(video.metrics[name])}
    if name in video.intervals:
        pair["intervals"] = {"image": _between(image, name), "video": _between(video, name)}
    return pair


def _truth(result: Result, name: str) -> dict[str, float]:
    """A metric with the frames in order, and in every other order."""
    orders = ("forward", "reversed", "shuffled", "one_frame")
    return {
        order: _percent(result.metrics[name if order == "forward" else f"{name}.{order}"]) for order in orders
    }


def _percent(share: float) -> float:
    return round(100 * share, 2)


def _between(result: Result, name: str) -> list[float]:
    return [_percent(end) for end in result.intervals[name]]


def clips_seen(config: RunConfig) -> int:
    tuning = config.tuning.steps * (config.tuning.global_batch or config.loop.global_batch)
    return config.loop.steps * config.loop.global_batch + tuning


def scores_of(facts: Mapping[str, Any]) -> list[Score]:
    """The rows of the table."""
    named = dict(CHOICES)
    videos = round(2 * facts["t2v_median_rank"]["chance"] - 1)
    for k in (1, 5, 10):
        place = f"among the first {k}" if k > 1 else "first"
        named[f"t2v_r{k}"] = f"search, R@{k}", f"a caption finds its clip {place} of {videos}"
    named["t2v_median_rank"] = (
        "search, median rank",
        f"where the right clip of {videos} stands; less is better",
    )
    rows = []
    for key, (name, what) in named.items():
        pair = facts[key]
        intervals = {mode: tuple(ends) for mode, ends in pair.get("intervals", {}).items()}
        rows.append(
            Score(
                name,
                what,
                pair["image"],
                pair["video"],
                pair["chance"],
                intervals.get("image"),
                intervals.get("video"),
                is_rank=key.endswith("rank"),
            )
        )
    if "qa" in facts:
        qa = facts["qa"]
        ends = tuple(qa["intervals"]["video"])
        what = "a motion, a colour or a shape; the image model cannot answer"
        rows.append(Score("questions, one word", what, None, qa["video"], qa["chance"], None, ends))
    return rows


def write_page(
    out: Path,
    facts: Mapping[str, Any],
    image: Scores,
    video: Scores,
    curves: Sequence[Curve],
    searches: Sequence[Search],
    blanks: Sequence[Blank],
    config: RunConfig,
    material: Material,
    parts: Mapping[str, float],
) -> None:
    motion, held = facts["motion_choice"], facts["motion_choice_held_out"]
    took, machine = whole_seconds(parts), facts["hardware"]
    where = machine["gpu"] or (
        "one CPU core" if machine["threads"] == 1 else f"{machine['threads']} CPU cores"
    )
    claim = (
        f"Asked which of four motions a clip shows, the image model is right in {percent(motion['image'])} "
        f"(chance is {percent(motion['chance'])}). The video model made from it in {duration(took['train'])} on "
        f"{where} is right in {percent(motion['video'])}, and in {percent(held['video'])} where the combination of "
        "colour, shape and motion was never met in training."
    )
    words, note = facts.get("masked_words", {}), ""
    if words:
        right, other = words["intervals"]["right_clip"], words["intervals"]["other_clip"]
        note = (
            f"Of {words['hidden_words']} words hidden at random in the captions of {len(material.retrieval)} clips, "
            f"{percent(words['right_clip'])} are filled rightly with the own clip ({right[0]:.1f} to {right[1]:.1f}) "
            f"and {percent(words['other_clip'])} with another ({other[0]:.1f} to {other[1]:.1f})."
        )
    tuned = config.selection_at(config.loop.steps)
    tuning = (
        f"; then for {config.tuning.steps} steps {tuned.drop_ratio:.0%}{LEFT_OUT[tuned.selector]}"
        if config.tuning.steps
        else ""
    )
    details = [
        ("recipe", f"{facts['recipe']}, seed {facts['seed']}"),
        ("training", f"{facts['clips_seen']:,} clips seen, drawn from {facts['training_clips']:,}"),
        (
            "left out of each clip",
            f"{facts['drop_ratio']:.0%} of its patches{LEFT_OUT[facts['selector']]}{tuning}",
        ),
        ("training took", duration(took["train"])),
        (
            "world, scores",
            f"{duration(took['world'])}, {duration(took['image_scores'] + took['video_scores'])}",
        ),
        ("hardware", described(machine)),
        ("versions", ", ".join(f"{name} {version}" for name, version in facts["versions"].items())),
        ("date", facts["date"]),
    ]
    write_report(
        out / "report.html",
        Page(
            claim=claim,
            scores=scores_of(facts),
            right_clip=words.get("right_clip", 0.0),
            other_clip=words.get("other_clip", 0.0),
            curves=curves,
            has_tuning=config.tuning.steps > 0,
            searches=searches,
            num_clips=len(material.retrieval),
            bars=[
                Bar(name.replace("_", ", "), pair["image"], pair["video"])
                for name, pair in motion["groups"].items()
            ],
            bars_chance=motion["chance"],
            truth=truth_said(facts),
            blanks=blanks,
            blanks_note=note,
            facts=details,
            command=facts["command"],
            next_commands=next_commands(out),
        ),
    )


def truth_said(facts: Mapping[str, Any]) -> str:
    """What becomes of the motion questions when time is taken from the clips, as the page says it."""
    truth = facts.get("motion_truth")
    if truth is None:
        return ""
    return (
        f"How much of it needs time: of {truth['questions']} of these questions the video model answers "
        f"{percent(truth['forward'])} rightly, {percent(truth['shuffled'])} when the frames are shuffled, "
        f"{percent(truth['one_frame'])} when one frame is shown all the time. {_backwards_said(truth)}"
    )


def _backwards_said(truth: Mapping[str, Any]) -> str:
    """What becomes of the questions when clips run backwards, those of a direction apart from the rest."""
    has, has_not = truth.get(DIRECTION), truth.get(NO_DIRECTION)
    if has is None or has_not is None:
        return f"When clips run backwards, {percent(truth['reversed'])}."
    return (
        f"When clips run backwards, a motion with a direction shows its opposite: of {has['questions']} such questions "
        f"{percent(has['reversed'])} are then answered rightly, {percent(has['forward'])} as they are (the fewer the "
        f"better, as the model names what it sees). A motion that comes back shows the same again: of "
        f"{has_not['questions']}, {percent(has_not['reversed'])} and {percent(has_not['forward'])}."
    )


def next_commands(out: Path) -> list[tuple[str, str]]:
    """What to type next; with the path of the command where a plain `harvest` would not be found."""
    folder = shlex.quote(str(out))
    harvest = (
        "harvest" if shutil.which("harvest") else shlex.quote(str(Path(sys.executable).parent / "harvest"))
    )
    return [
        (
            "find these clips with words, in the browser",
            f"{harvest} index {folder}/world/videos/retrieval --model {folder}/model --out {folder}/library"
            f" && {harvest} serve {folder}/library --open",
        ),
        (
            "score the model yourself",
            f"{harvest} evaluate {folder}/model --data {folder}/world/motion_choice.jsonl --task choice",
        ),
        (
            "train for longer",
            f"{harvest} train mini-harvest --data.train {folder}/world/train.jsonl --loop.steps 4000 --out runs/longer",
        ),
        (
            "start from CLIP, with your own captioned clips",
            f"{harvest} train harvest-b16 --data.train clips.csv --out runs/clips",
        ),
    ]


def _say_end(out: Path, rows: Sequence[Score], facts: Mapping[str, Any]) -> None:
    console = Console()
    table = Table(show_edge=False, title_justify="left")
    table.add_column("")
    for title in ("chance", "image model", "video model"):
        table.add_column(title, justify="right")
    for row in rows:
        show = "{:.1f}".format if row.is_rank else percent
        table.add_row(
            row.name, show(row.chance), "" if row.image is None else show(row.image), show(row.video)
        )
    if "masked_words" in facts:
        words = facts["masked_words"]
        table.add_row("hidden words, its own clip shown", "", "", percent(words["right_clip"]))
        table.add_row("hidden words, another clip shown", "", "", percent(words["other_clip"]))
    took = facts["seconds"]
    console.print()
    console.print(table)
    lines = [
        "",
        f"took    {duration(took['total'])}, of which training {duration(took['train'])}",
        f"report  {out / 'report.html'}",
        f"model   {out / 'model'}",
        "",
        "next",
        f"  look at the report:  python -m webbrowser -t {shlex.quote((out / 'report.html').resolve().as_uri())}",
        *(f"  {what}:  {command}" for what, command in next_commands(out)),
    ]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


# ---- the run and its time ----------------------------------------------------------------------------------------


def check_same(run: Path, config: RunConfig) -> None:
    """Raise HarvestError where `run` holds a run with other settings, before time is spent on scores."""
    path = run / "config.json"
    if path.exists() and (other := differences(read_config(path), config)):
        raise HarvestError(
            f"{run} holds another run; it differs in\n  " + "\n  ".join(other) + "\n"
            "Give another folder with --out, or remove this one to start afresh."
        )


class Seconds:
    """Wall seconds of each part, kept in a file so that a demo that goes on knows what it took before."""

    def __init__(self, path: Path) -> None:
        self.path = path
        kept = json.loads(path.read_text()) if path.exists() else {}
        self.parts: dict[str, float] = kept.get("parts", {})
        self._since: dict[str, float] = kept.get("running_since", {})

    @contextmanager
    def measure(self, name: str, *, is_added: bool = False) -> Iterator[None]:
        """Time a part, also when it ends in an error. `is_added` for parts that go on where they were."""
        before = self.parts.get(name, 0.0) if is_added else 0.0
        started, self._since = time.perf_counter(), {name: time.time()}
        self._write()
        try:
            yield
        finally:
            self.parts[name] = before + time.perf_counter() - started
            self._since = {}
            self._write()

    def add_unfinished(self, name: str, *, until: Path) -> None:
        """Add the time of a part that was killed: it last wrote into the file `until`."""
        if name in self._since and until.exists():
            self.parts[name] = self.parts.get(name, 0.0) + max(0.0, until.stat().st_mtime - self._since[name])

    def _write(self) -> None:
        write_file(
            self.path, json.dumps({"parts": self.parts, "running_since": self._since}, indent=1) + "\n"
        )


def whole_seconds(parts: Mapping[str, float]) -> dict[str, float]:
    """The seconds of demo.json: every part and `total`."""
    named = {name: round(parts.get(name, 0.0), 1) for name in PARTS}
    return named | {"total": round(sum(named.values()), 1)}


PARTS = ("world", "image_scores", "train", "video_scores", "report")


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"
