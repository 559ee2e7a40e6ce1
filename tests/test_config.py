"""config.json and back, and what is said about a wrong one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from harvest.config import RunConfig, differences, from_dict, read_config, to_json
from harvest.interfaces import HarvestError
from harvest.objectives.image_text import ImageTextConfig
from harvest.recipes import RECIPES, tiny

ALL = [*(pytest.param(recipe(), id=name) for name, recipe in RECIPES.items())]
ALL += [pytest.param(tiny(name), id=f"tiny {name}") for name in RECIPES]


def written(folder: Path, values: object) -> Path:
    path = folder / "config.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return path


def changed(config: RunConfig, **leaves: object) -> dict:
    """The JSON of a config with leaves such as `loop__steps` set."""
    values = json.loads(to_json(config))
    for name, value in leaves.items():
        *parts, last = name.split("__")
        part = values
        for key in parts:
            part = part[key]
        part[last] = value
    return values


@pytest.mark.parametrize("config", ALL)
def test_round_trip(config: RunConfig, tmp_path: Path) -> None:
    again = read_config(written(tmp_path, to_json(config)))
    assert again == config and differences(again, config) == []
    assert type(again.objective) is type(config.objective)


@pytest.mark.parametrize(
    ("leaves", "message"),
    [
        ({"optim__lrr": 1.0}, "unknown setting optim.lrr; did you mean 'lr'?"),
        (
            {"objective__drop_ration": 0.5},
            "unknown setting objective.drop_ration; did you mean 'drop_ratio'?",
        ),
        ({"start__fusion__dept": 1}, "unknown setting start.fusion.dept; did you mean 'depth'?"),
        ({"lop": {}}, "unknown setting lop; did you mean 'loop'?"),
        ({"loop__zzz": 1}, "unknown setting loop.zzz; known are steps, "),
        ({"loop__steps": "many"}, "loop.steps must be int, got 'many'"),
        ({"loop__steps": 1.5}, "loop.steps must be int, got 1.5"),
        ({"loop__steps": True}, "loop.steps must be int, got True"),
        ({"loop__steps": None}, "loop.steps must be int, got None"),
        ({"loop__threads": "2"}, "loop.threads must be int, got '2'"),
        ({"optim__lr": "1e-3"}, "optim.lr must be float, got '1e-3'"),
        ({"optim__lr": True}, "optim.lr must be float, got True"),
        ({"optim__betas": [0.9]}, r"optim.betas must be a list of 2 values, got \[0.9\]"),
        ({"optim__betas": 0.9}, "optim.betas must be a list of 2 values, got 0.9"),
        ({"optim__betas": [0.9, "a"]}, "optim.betas must be float, got 'a'"),
        ({"optim__lr_factors": [1]}, "optim.lr_factors must be an object"),
        ({"optim__lr_factors": {"fusion": "x"}}, "optim.lr_factors.fusion must be float, got 'x'"),
        ({"data__flip": 1}, "data.flip must be bool, got 1"),
        ({"data__cache": "disk"}, "data.cache must be one of 'none', 'memory', got 'disk'"),
        ({"loop__precision": "fp8"}, "loop.precision must be one of 'bf16', 'fp16', 'fp32', got 'fp8'"),
        ({"loop": 3}, "loop must be an object with settings, got 3"),
        ({"data__num_frames": 7}, "data.num_frames 7 is not a multiple of start.tubelet_size 2"),
        ({"blend": 1.5}, "blend: expected at least 0 and at most 1, got 1.5"),
        ({"loop__steps": 0}, "loop.steps: expected at least 1, got 0"),
        ({"loop__log_every": 0}, "loop.log_every: expected at least 1, got 0"),
        ({"loop__keep_last": 0}, "loop.keep_last: expected at least 1, got 0"),
        ({"tuning__drop_ratio": 1.0}, "tuning.drop_ratio: expected at least 0 and less than 1"),
        ({"start__tubelet_size": 0}, "start.tubelet_size: expected at least 1, got 0"),
        ({"optim__lr": -1.0}, "optim.lr: expected at least 0, got -1.0"),
        ({"optim__eps": -1.0}, "optim.eps: expected at least 0, got -1.0"),
        ({"optim__weight_decay": -1.0}, "optim.weight_decay: expected at least 0, got -1.0"),
        ({"optim__betas": [0.9, 1.0]}, r"optim.betas: expected at least 0 and less than 1, got \(0.9, 1.0\)"),
    ],
)
def test_a_wrong_setting_is_named(leaves: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(HarvestError, match=message.replace("?", r"\?")):
        read_config(written(tmp_path, changed(tiny("mini-harvest"), **leaves)))


def test_whole_numbers_are_floats_too(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, changed(tiny("mini-harvest"), optim__lr=1)))
    assert config.optim.lr == 1.0 and type(config.optim.lr) is float


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "the file must be an object with settings"),
        ("{}", "the file lacks objective, recipe"),
    ],
)
def test_a_file_that_is_no_config(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(HarvestError, match=message):
        read_config(written(tmp_path, text))


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(HarvestError, match="not JSON"):
        read_config(tmp_path / "config.json")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(HarvestError, match="no such file"):
        read_config(tmp_path / "config.json")


def test_settings_left_out_take_their_defaults() -> None:
    config = from_dict(RunConfig, {"recipe": "mine", "objective": {"paraphrase_weight": 1.0}}, where="here")
    assert config == RunConfig("mine", ImageTextConfig(paraphrase_weight=1.0))


def test_differences_name_what_computes_something_else() -> None:
    a = tiny("mini-harvest")
    b = dataclasses.replace(
        a,
        optim=dataclasses.replace(a.optim, lr=0.5, lr_factors={"log_scale": 3.0}),
        loop=dataclasses.replace(a.loop, save_every=99, keep_last=9, log_every=7, threads=None),
        data=dataclasses.replace(a.data, workers=3),
    )
    others = sorted(a.optim.lr_factors.keys() - {"log_scale"})
    assert others
    assert differences(a, b) == [
        f"optim.lr: {a.optim.lr} there, 0.5 asked for",
        *(
            f"optim.lr_factors.{name}: {a.optim.lr_factors[name]} there, {asked} asked for"
            for name, asked in sorted([("log_scale", 3.0), *((name, None) for name in others)])
        ),
    ]


def test_frames_of_a_student(tmp_path: Path) -> None:
    values = changed(tiny("umt-stage1-b16"), start__scratch__video__tubelet_size=2, data__num_frames=7)
    with pytest.raises(HarvestError, match=r"not a multiple of start.scratch.video.tubelet_size 2"):
        read_config(written(tmp_path, values))
    values = changed(tiny("umt-stage1-b16"), start__scratch__video__tubelet_size=0)
    with pytest.raises(HarvestError, match=r"video.tubelet_size: expected at least 1"):
        read_config(written(tmp_path, values))


def test_a_recipe_from_scratch_that_starts_from_a_model_has_no_sizes(tmp_path: Path) -> None:
    recipe = tiny("mini-actions")
    assert recipe.start.scratch is not None
    config = read_config(written(tmp_path, changed(recipe, start__model="runs/mini-umt-stage1")))
    assert config == dataclasses.replace(
        recipe, start=dataclasses.replace(recipe.start, model="runs/mini-umt-stage1")
    )
    assert config.start.scratch is None
    with pytest.raises(HarvestError, match=r"start\.model scratch needs sizes"):
        dataclasses.replace(config.start, model="scratch")


def test_stages() -> None:
    config = RECIPES["harvest-b16"]()
    assert config.total_steps == 104_000 + 20_900
    assert config.global_batches == ((0, 1024), (104_000, 256))
    assert [config.selection_at(step).drop_ratio for step in (0, 103_999, 104_000)] == [0.9, 0.9, 0.0]
    assert {config.selection_at(step).selector for step in (0, 104_000)} == {"random"}
    mini = RECIPES["mini-harvest"]()
    kept = [mini.selection_at(step).selector for step in (0, mini.loop.steps)]
    assert kept == ["motion", "random"], "what moves first; chance, which is nearer to a whole clip, last"
    alone = dataclasses.replace(config, tuning=dataclasses.replace(config.tuning, steps=0))
    assert alone.global_batches == ((0, 1024),)


def test_pictures_do_not_go_with_a_cache_of_captions() -> None:
    config = RECIPES["mini-harvest"]()
    with pytest.raises(HarvestError, match="cache_texts False"):
        dataclasses.replace(config, data=dataclasses.replace(config.data, images="mini-world/stills"))
