"""The `harvest` command as a user types it: what it answers, its exit codes, and never a traceback."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch

from harvest import __version__
from harvest.cli import COMMANDS, completions, main
from harvest.data.manifest import read_manifest, write_manifest
from harvest.interfaces import Example
from harvest.progress import bar, say
from harvest.recipes import RECIPES
from harvest.tokens import Selector

WORDS = {"train": ["mini-harvest", "--out"], "search": ["--json"]}
COMMAND_HELP = [[name, "--help"] for name in COMMANDS if name not in ("recipes", "version")] + [
    ["bench", name, "--help"] for name in ("gpu", "step", "data", "tokens", "vectors")
]

SHORT_HELP = ["index", "convert", "evaluate", "benchmark", "probe"]


class Answer:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err
        assert "Traceback" not in out + err, err


@pytest.fixture
def harvest(capsys: pytest.CaptureFixture[str]):
    """`harvest("train mini-image --tiny")`: the words as typed, a list where they hold spaces."""

    def run(typed: str | list[str]) -> Answer:
        try:
            code = main(typed.split() if isinstance(typed, str) else typed)
        except SystemExit as end:  # tyro's way to end, as sys.exit's
            code = int(end.code or 0)
        return Answer(code, *capsys.readouterr())

    return run


def typed_in_a_shell(line: str, **settings) -> Answer:
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line.replace("harvest", f"{sys.executable} -m harvest", 1)],
        capture_output=True,
        text=True,
        timeout=120,
        **settings,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


# ---- help --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("typed", ["", "--help", "-h", "help"])
def test_about(typed: str, harvest) -> None:
    answer = harvest(typed)
    assert answer.code == 0 and all(f"\n  {name}" in answer.out for name in COMMANDS)


def test_version(harvest) -> None:
    assert harvest("--version").out == f"harvest {__version__}\n"
    lines = dict(line.split(maxsplit=1) for line in harvest("version").out.splitlines())
    assert lines["harvest"] == __version__ and lines["torch"] == torch.__version__


def test_the_overview_fits_a_terminal(harvest) -> None:
    assert all(len(line) <= 80 for line in harvest("--help").out.splitlines())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completions_know_commands_options_and_recipes(shell: str, harvest, monkeypatch) -> None:
    monkeypatch.setattr(completions, "words_of_commands", lambda: WORDS)
    said = harvest(f"completions {shell}").out
    assert all(word in said for word in ("train", "mini-harvest", "search", "json"))
    if shutil.which(shell) and shell != "zsh":  # zsh reads its configuration
        assert subprocess.run([shell, "-n"], input=said, text=True, timeout=60).returncode == 0
    assert "fish" in harvest("completions fsh").err


def test_words_of_commands_are_read_from_their_help(monkeypatch) -> None:
    monkeypatch.setattr("harvest.cli.COMMANDS", {"search": "", "train": "", "recipes": ""})
    words = completions.words_of_commands()
    assert {"--json", "--min-duration-s"} <= set(words["search"])
    assert {"--out", "--optim.lr"} <= set(words["train"]) and "--nproc-per-node" not in words["train"]
    assert list(RECIPES) == [word for word in words["train"] if not word.startswith("--")]
    assert words["recipes"] == []


def test_short_options(harvest, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "nowhere is not a library" in harvest("search nowhere x -k 3 -m y").err
    assert "--out needs a value" in harvest("train mini-image -o").err


def test_quiet_keeps_bars_and_notes_back(harvest, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("harvest.progress._quiet", False)
    assert harvest(["miniworld", str(tmp_path / "file" / "x"), "-q", "--train", "x"]).code == 2
    say("a note")
    with bar("work", delay_s=0) as progress:
        progress(1, 2)
    assert harvest("version").err == ""


@pytest.mark.parametrize("typed", COMMAND_HELP, ids=" ".join)
def test_help_of_every_command_has_an_example_and_fits_80_columns(
    typed: list[str], harvest, monkeypatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    answer = harvest(typed)
    assert [line for line in answer.out.splitlines() if len(line) > 80] == []
    assert answer.code == 0
    assert f"harvest {typed[0]}" in answer.out


@pytest.mark.parametrize("name", RECIPES)
def test_help_of_every_recipe_lists_its_settings(name: str, harvest) -> None:
    answer = harvest(f"train {name} --help")
    assert answer.code == 0
    for setting in ("--optim.lr", "--data.train", "--objective.drop-ratio", "--loop.global-batch", "--blend"):
        assert setting in answer.out


def test_recipes_are_listed_with_a_line_each(harvest) -> None:
    lines = harvest("recipes").out.splitlines()
    assert [line.split()[0] for line in lines if line[0] != " "] == list(RECIPES)
    assert all(len(line) <= 80 for line in lines)


def test_help_answers_at_once_as_it_imports_no_torch() -> None:
    program = """
import contextlib, sys
from harvest.cli import COMMANDS, main
for name in COMMANDS:
    with contextlib.suppress(SystemExit):
        assert main([name, "--help"]) == 0
    found = {"torch", "numpy", "av", "transformers"} & set(sys.modules)
    assert not found, f"{name} --help imports {found}"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("typed", SHORT_HELP)
def test_short_help_names_options_that_there_are(typed: str, harvest) -> None:
    short, every = harvest(f"{typed} --help").out, harvest(f"{typed} --help-all").out
    assert all(len(line) <= 80 for line in short.splitlines())
    named = set(re.findall(r"(?<![\w-])--[a-z-]*[a-z]", short.partition("\n  MODEL")[2] or short))
    assert named - {"--help-all", "--nproc-per-node"} <= set(re.findall(r"--[a-z-]*[a-z]", every))


@pytest.mark.parametrize("command", ["--help", "version"])
def test_a_reader_that_has_seen_enough(command: str) -> None:
    answer = typed_in_a_shell(f"harvest {command} | head -1")
    assert answer.err == "" and answer.code == 0 and len(answer.out.splitlines()) == 1
    closed = typed_in_a_shell(f"harvest {command} | true")
    assert closed.err == ""


# ---- what is not there -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("evalute m", "no command 'evalute'; did you mean 'evaluate'?"),
        ("zzz", "no command 'zzz'; known are index, search"),
        ("train mini-harvets", "no recipe 'mini-harvets'; did you mean 'mini-harvest'?"),
        ("train zzz", "no recipe 'zzz'; known are mini-image"),
        ("train --tiny", "no recipe '--tiny'"),
        ("train --out x", "train needs a recipe; known are mini-image"),
        ("train mini-image --out", "--out needs a value"),
        ("train mini-harvest --tiny --optim.lrr 1", "--optim.lr "),
        ("train mini-harvest --tiny --loop.stepz 1", "--loop.steps"),
        ("train mini-harvest --tiny --optim.lr fast", "fast"),
        ("train mini-harvest --tiny --loop.precision fp8", "fp8"),
        ("train mini-harvest --tiny --data.num-frames 7", "num_frames 7 is not a multiple"),
        ("train mini-harvest --tiny --objective.drop-ratio 1", "objective.drop_ratio: expected"),
        ("train mini-harvest --tiny --objective.text-tower trained", "cache_texts needs"),
        (
            "train mini-actions --tiny --start.model run --start.scratch.video.width 64",
            "sizes of run (start.model)",
        ),
        ("train mini-harvest --tiny --start.model scratch", "needs sizes: start.scratch"),
        ("train --config nowhere.json", "nowhere.json: no such file"),
        ("train --config=nowhere.json", "nowhere.json: no such file"),
        ("train harvest-b16", "nothing to train on: give a manifest with --data.train"),
        ("train harvest-b16 --data.train nowhere.csv", "nowhere.csv"),
        ("evaluate nowhere/model --data nowhere.jsonl", "nowhere.jsonl"),
        ("evaluate", "required"),
        ("evaluate m --data d.jsonl --task dance", "dance"),
        ("bench leap", "no benchmark 'leap'"),
        ("bench step --model mini --drop-ratios 1", "drop_ratios: expected"),
        ("miniworld", "required"),
    ],
)
def test_a_mistake_is_named(typed: str, said: str, harvest, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    answer = harvest(typed)
    assert answer.code == 2
    assert said in " ".join((answer.out + answer.err).split())


def test_weights_that_are_not_there(harvest, tmp_path: Path, world: Path) -> None:
    (tmp_path / "empty").mkdir()
    for typed in (
        f"convert {tmp_path / 'empty'} {tmp_path / 'out'}",
        f"evaluate {tmp_path / 'empty'} --data {world / 'retrieval.jsonl'}",
    ):
        answer = harvest(typed)
        assert answer.code == 2 and "empty" in answer.err
    assert not (tmp_path / "out").exists()


# ---- manifests ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(image_model: Path, runs: Path) -> Path:
    """The mini-world that the image model was trained on."""
    [folder] = runs.glob("mini-world-*")
    return folder


@pytest.fixture(scope="module")
def clips(world: Path) -> list[Example]:
    return read_manifest(world / "train.jsonl")[:20]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("empty.jsonl", "", "is empty"),
        ("empty.csv", "", "empty"),
        ("header.csv", "video,caption\n", "is empty"),
        ("columns.csv", "video,length,weather\na.mp4,3,sunny\n", "weather"),
        ("half.jsonl", '{"video": "a.mp4", "caption"', "half.jsonl"),
        ("list.jsonl", "[1, 2]\n", "list.jsonl"),
        ("clips.txt", "a.mp4", ".csv"),
    ],
)
def test_a_manifest_that_cannot_be_used(
    name: str, text: str, said: str, harvest, tmp_path: Path, image_model: Path
) -> None:
    (tmp_path / name).write_text(text)
    start = f"--start.model {image_model} --data.train {tmp_path / name} --out {tmp_path / 'run'}"
    answer = harvest(f"train mini-harvest --tiny {start}")
    assert answer.code == 2 and said in answer.err and name in answer.err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_no_video_can_be_read(harvest, tmp_path: Path, image_model: Path) -> None:
    (tmp_path / "clips.csv").write_text("video,caption\na.mp4,a cat\nb.mp4,a dog\n")
    options = f"--start.model {image_model} --data.train {tmp_path / 'clips.csv'} --out {tmp_path / 'run'}"
    for cache in ("none", "memory"):
        answer = harvest(f"train mini-harvest --tiny {options}-{cache} --data.cache {cache}")
        assert answer.code == 2 and "a.mp4" in answer.err and "data.videos" in answer.err


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_odd_clips_and_long_captions_are_told_and_survived(
    cache: str, harvest, clips: list[Example], tmp_path: Path, image_model: Path
) -> None:
    """A file without frames, one that is missing, and a caption longer than the text tower reads."""
    (tmp_path / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "nothing.mp4").write_bytes(b"")
    odd = [
        Example("noise", str(tmp_path / "noise.mp4"), ("noise",)),
        Example("nothing", str(tmp_path / "nothing.mp4"), ("nothing at all",)),
        Example("gone", str(tmp_path / "gone.mp4"), ("gone",)),
    ]
    long = dataclasses.replace(clips[0], texts=("red circle " * 200,))
    write_manifest(tmp_path / "clips.jsonl", [long, *clips[1:], *odd])
    run = tmp_path / "run"
    options = f"--start.model {image_model} --data.train {tmp_path / 'clips.jsonl'} --data.cache {cache}"
    answer = harvest(f"train mini-harvest --tiny {options} --out {run}")
    assert answer.code == 0 and f"model: {run / 'model'}" in " ".join(answer.out.split())
    broken = json.loads((run / "broken.json").read_text())
    assert broken.keys() == {"noise", "nothing", "gone"} and all(why["reason"] for why in broken.values())
    said = " ".join(answer.err.split())
    assert "3 of 23 videos could not be read" in said and "captions were longer than 32" in said
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["broken"] == 3 and last["truncated"] >= 1


# ---- the way of a user -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(runs: Path, image_model: Path) -> Path:
    """`harvest train mini-harvest --tiny` in a shell."""
    run = runs / "typed"
    line = f"harvest train mini-harvest --tiny --start.model {image_model} --out {run} --optim.lr 2e-3"
    answer = typed_in_a_shell(line)
    assert answer.code == 0 and answer.out.strip() == f"model: {run / 'model'}", answer.err
    assert json.loads((run / "config.json").read_text())["optim"]["lr"] == 2e-3
    return run


def test_a_run_goes_on_from_its_config_and_refuses_another(trained: Path, harvest) -> None:
    assert harvest(f"train --config {trained / 'config.json'} --out {trained}").code == 0
    answer = harvest(f"train --config={trained / 'config.json'} --out={trained} --optim.lr 1e-3")
    assert answer.code == 2 and "optim.lr: 0.002 there, 0.001 asked for" in answer.err
    answer = harvest(f"train mini-image --tiny --out {trained}")
    assert answer.code == 2 and "recipe: 'mini-harvest' there, 'mini-image' asked for" in answer.err


@pytest.mark.parametrize(
    ("task", "manifest", "options", "key"),
    [
        ("retrieval", "retrieval", "", "t2v_r1"),
        ("retrieval", "retrieval", "--image", "t2v_r1"),
        ("choice", "motion_choice", "--precision bf16", "choice"),
        ("recognition", "actions", "--classes {world}/labels.json", "top1"),
        ("qa", "questions", "", ""),
        ("masked_words", "retrieval", "", ""),
    ],
)
def test_evaluate(
    task: str, manifest: str, options: str, key: str, harvest, trained: Path, world: Path, tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "result.json"
    data = f"--data {world / manifest}.jsonl --task {task} --workers 0 --out {out}"
    answer = harvest(f"evaluate {trained / 'model'} {data} {options.format(world=world)}")
    assert answer.code == 0, answer.err
    result = json.loads(out.read_text())
    assert result["task"] == task and result["mode"] == ("image" if "--image" in options else "video")
    assert str(out) in "".join(answer.err.split())


def test_convert_copies_a_model_and_says_what_was_used(trained: Path, harvest, tmp_path: Path) -> None:
    answer = harvest(f"convert {trained / 'model'} {tmp_path / 'copy'}")
    assert answer.code == 0 and "tensors used" in answer.out
    name = "model.safetensors"
    assert (tmp_path / "copy" / name).read_bytes() == (trained / "model" / name).read_bytes()


def test_miniworld_writes_manifests(harvest, tmp_path: Path, monkeypatch) -> None:
    from harvest.data import miniworld

    small = miniworld.MiniWorldConfig(train=3, retrieval=2, questions=2)
    monkeypatch.setattr(
        miniworld, "MiniWorldConfig", lambda **given: dataclasses.replace(small, seed=given["seed"])
    )
    answer = harvest(f"miniworld {tmp_path / 'world'} --seed 5 --workers 1")
    assert answer.code == 0 and len(read_manifest(tmp_path / "world" / "train.jsonl")) == 3


def test_none_is_none_however_it_is_written() -> None:
    from harvest.cli.train import config_of

    typed = "mini-umt-stage2 --data.images none --data.videos none --loop.threads=None --tuning.selector NONE"
    config = config_of([*typed.split(), "--data.cache", "none"], command="train")
    found = (config.data.images, config.data.videos, config.loop.threads, config.tuning.selector)
    assert found == ("", None, None, None) and config.data.cache == "none"
    assert config_of(["harvest-b16", "--start.model", "none"], command="train").start.model == "none"


def test_a_folder_that_cannot_be_written(harvest, tmp_path: Path, image_model: Path) -> None:
    (tmp_path / "file").write_text("")
    run = tmp_path / "file" / "run"
    answer = harvest(f"train mini-harvest --tiny --start.model {image_model} --out {run}")
    assert answer.code in (1, 2) and "file" in answer.err


def test_evaluate_offers_every_way_of_choosing_tokens(capsys: pytest.CaptureFixture[str]) -> None:

    with pytest.raises(SystemExit):
        main(["evaluate", "--help-all"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in get_args(Selector))


def test_clips_are_packed_and_trained_on(
    harvest, clips: list[Example], tmp_path: Path, image_model: Path
) -> None:
    write_manifest(tmp_path / "clips.jsonl", clips)
    with (tmp_path / "clips.jsonl").open("a") as manifest:
        manifest.write('{"id": "gone", "video": "gone.mp4", "texts": ["gone"]}\n')
    packed = tmp_path / "packed"
    answer = harvest(f"prepare {tmp_path / 'clips.jsonl'} {packed} --clips-per-shard 8 --workers 1")
    assert answer.code == 0 and f"{len(clips)} of {len(clips) + 1} clips in 3 shards" in answer.out
    assert "1 could not be read; first: gone: no such file" in answer.out
    assert harvest(f"prepare {tmp_path / 'clips.jsonl'} {packed} --verify").code == 0
    options = f"--start.model {image_model} --data.cache none --loop.global-batch 8"
    shards = str(packed / "shard-{000000..000002}.tar")
    answer = harvest(f"train mini-harvest --tiny {options} --data.train {shards} --out {tmp_path / 'run'}")
    assert answer.code == 0 and "left out" in answer.err
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["broken"] == 0 and lines[-1]["loss"] > 0
    (packed / "shard-000001.tar").write_bytes(b"cut")
    answer = harvest(f"prepare {tmp_path / 'clips.jsonl'} {packed} --verify")
    assert answer.code == 2 and "1 shards of" in answer.err and "3 bytes" in answer.err
    answer = harvest(f"train mini-harvest --tiny {options} --data.train {packed} --out {tmp_path / 'new'}")
    assert answer.code == 2 and "copy it again" in answer.err


def test_a_data_set_is_checked(harvest, clips: list[Example], tmp_path: Path, image_model: Path) -> None:
    write_manifest(tmp_path / "clips.jsonl", [*clips[:6], Example("gone", "gone.mp4", ("gone for good",))])
    out = tmp_path / "out"
    answer = harvest(
        f"check {tmp_path / 'clips.jsonl'} --out {out} --caption-model {image_model} --min-similarity 1.0"
    )
    assert answer.code == 0 and "missing            1   first: gone: no such file" in answer.out
    assert "unlike             6" in answer.out and "no column tells the licence" in answer.out
    said = json.loads((out / "check.json").read_text())
    assert (
        said["missing"].keys() == {"gone"} and said["values"]["similarity of clip and caption"]["largest"] < 1
    )
    assert (out / "check.html").exists() and "0 rows with nothing wrong" in answer.out
    assert harvest(f"check {tmp_path / 'clips.jsonl'} --min-similarity 0.2").code == 2
