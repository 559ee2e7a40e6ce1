"""`harvest demo`: an image model becomes a video model in the mini-world, with a page that shows what it learned.

OUT/world/        the mini-world
OUT/run/          the training run: config.json, metrics.jsonl, checkpoints
OUT/model/        the video model, opened by `harvest.load`
OUT/library/      clips that `harvest search` and `harvest serve` find by words
OUT/report.html   the page; OUT/demo.json the same figures for programs
OUT/seconds.json  how long each part took, over all interruptions
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from harvest.config import EvalConfig, RunConfig, differences, read_config
from harvest.data.miniworld import MiniWorld, absent_scenes, write_miniworld
from harvest.demo.page import Score, draw_curves, next_commands, percent, scores_of, short, write_page
from harvest.demo.pictures import fill_blanks, show_searches
from harvest.demo.scores import LEFT_OUT, Material, clips_seen, read_material, score, summary
from harvest.demo.seconds import Seconds, duration, whole_seconds
from harvest.files import new_folder, write_file
from harvest.interfaces import HarvestError
from harvest.machine import num_cores
from harvest.model.importing.pretrained import load_pretrained
from harvest.parallel import Precision
from harvest.progress import bar, say
from harvest.recipes.mini import mini_harvest
from harvest.search.index import Index
from harvest.training import loop

_ABSENT = 150  # sentences of the same world that no clip of the library shows, to calibrate its search


def run_demo(out: Path, *, seed: int = 0, config: RunConfig | None = None) -> Path:
    """Make the mini-world, score the image model, post-pretrain it, score the video model, write the report.

    `config` None is the recipe `mini-harvest`; its training set is replaced by the mini-world in `out`. An
    interrupted demo is resumed. Returns the path of report.html.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    config = mini_harvest() if config is None else config
    run, seconds = out / "run", Seconds(out / "seconds.json")
    seconds.add_unfinished("train", until=run / "metrics.jsonl")

    with seconds.measure("world", is_added=True):
        say("1/6  the mini-world: short clips of moving shapes, with captions")
        with bar("drawing clips", quiet=(out / "world" / "world.json").exists()) as progress:
            world = write_miniworld(out / "world", config.world, progress=progress, workers=num_cores())
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, train=str(world.train.resolve()), videos=None),
        loop=dataclasses.replace(config.loop, seed=seed),
        eval=EvalConfig((str(world.motion_choice.resolve()),), every=max(1, config.total_steps // 4)),
    )
    check_same(run, config)
    material = read_material(world)

    with seconds.measure("image_scores"):
        say("2/6  what the image model knows: every frame alone, embeddings averaged")
        image_model, tokenizer, _ = load_pretrained(config.start.model)
        with bar("scoring the image model") as progress:
            image = score(image_model, tokenizer, material, "image", config.loop.precision, progress)
        del image_model

    with seconds.measure("train", is_added=True):
        if (run / "model").is_dir():
            say("3/6  post-pretraining: finished before")
        else:
            seen = config.selection_at(0)
            say(
                f"3/6  post-pretraining on {clips_seen(config):,} clips, {seen.drop_ratio:.0%} of each left out"
                f"{LEFT_OUT[seen.selector]}"
            )
            loop.train(config, run)
        with new_folder(out / "model") as folder:
            shutil.copytree(run / "model", folder, dirs_exist_ok=True)

    with seconds.measure("video_scores"):
        say("4/6  what the video model knows")
        model, tokenizer, _ = load_pretrained(out / "model")
        with bar("scoring the video model") as progress:
            video = score(model, tokenizer, material, "video", config.loop.precision, progress)

    with seconds.measure("library"):
        say("5/6  a library of the clips, to search with words")
        build_library(out, world, material, config.loop.precision)

    with seconds.measure("report"):
        say("6/6  the report")
        searches = show_searches(material, image, video, image_size=model.config.video.image_size)
        blanks = fill_blanks(model, tokenizer, material.questions, config.loop.precision)
        curves = draw_curves(run / "metrics.jsonl", config)
        facts = summary(image, video, config, out=out, seed=seed)
        write_page(out, facts, curves, searches, blanks, config, material, seconds.parts)
    facts["seconds"] = whole_seconds(seconds.parts)
    write_file(out / "demo.json", json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    _say_end(out, scores_of(facts), facts)
    return out / "report.html"


def build_library(out: Path, world: MiniWorld, material: Material, precision: Precision) -> None:
    """Index the clips of the retrieval set and those whose combination of colour, shape and motion was never trained
    on. Search is calibrated with sentences of the same words about scenes that none of them shows."""
    shown = [*material.retrieval, *material.choices["motion_choice_held_out"]]
    present = {(row.about["motion"], row.about["colour"], row.about["shape"]) for row in shown}
    folders = [world.folder / "videos" / name for name in ("retrieval", "motion_choice_held_out")]
    with bar("indexing") as progress:
        Index.build(
            folders,
            out=out / "library",
            model=out / "model",
            background=absent_scenes(present, _ABSENT, seed=0),
            precision=precision,
            reindex=(out / "library").is_dir(),
            progress=progress,
        ).close()


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
        f"report  {short(out / 'report.html')}",
        f"model   {short(out / 'model')}",
        "",
        "next",
        *(f"  {what}:\n    {command}" for what, command in next_commands(out)),
    ]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def check_same(run: Path, config: RunConfig) -> None:
    """Raise HarvestError where `run` holds a run with other settings, before time is spent on scores."""
    path = run / "config.json"
    if path.exists() and (other := differences(read_config(path), config)):
        raise HarvestError(
            f"{run} holds another run; it differs in\n  " + "\n  ".join(other) + "\n"
            "Give another folder with --out, or remove this one to start afresh."
        )
