"""Comparisons at equal seconds: whole, at the size of a test."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from experiments import selectors, umt_stages
from harvest.config import RunConfig
from harvest.data.miniworld import MiniWorldConfig
from harvest.interfaces import HarvestError
from harvest.objectives.post_pretraining import PostPretrainingConfig
from harvest.objectives.text_tuning import TextTuningConfig

SMALL = MiniWorldConfig(seed=7, train=48, retrieval=20, questions=8)


def small(config: RunConfig) -> RunConfig:
    loop = dataclasses.replace(config.loop, global_batch=8)
    optim = dataclasses.replace(config.optim, warmup_steps=1)
    config = dataclasses.replace(config, world=SMALL, loop=loop, optim=optim)
    if isinstance(config.objective, PostPretrainingConfig):
        tuning = TextTuningConfig(steps=2, captions=4)
        config = dataclasses.replace(
            config, objective=dataclasses.replace(config.objective, text_tuning=tuning)
        )
    return config


def test_ways_of_choosing_get_equal_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(selectors.mini_harvest())
    monkeypatch.setattr(selectors, "mini_harvest", lambda: config)
    monkeypatch.setattr(selectors, "_TIMED", 1)
    settings: dict = {"selectors": ("motion",), "budgets": (0.1, 0.5), "seeds": (0,), "seconds": 0.2}
    selectors.selectors(**settings, out=tmp_path, any_budget=True, dims=(64,))
    found = json.loads((tmp_path / "results.json").read_text())
    outcomes = {outcome["arm"]: outcome for outcome in found["outcomes"]}
    assert set(outcomes) == {f"motion-{b}" for b in ("10", "50", "any-d64")}
    assert all(
        0 <= value <= 1 for outcome in outcomes.values() for value in outcome["scores"]["all"].values()
    )
    assert set(outcomes["motion-any-d64"]["scores"]) == {"all", "0.1", "0.5", "all, first 64"}
    # who has a dearer step takes fewer of them
    for outcome in outcomes.values():
        assert outcome["steps"] == max(1, round(0.2 * 0.9 / outcome["step_s"]))
    assert (tmp_path / "tokens.svg").read_text().startswith("<svg")
    monkeypatch.setattr(selectors.Experiment, "train", None)  # everything is there already
    selectors.selectors(**settings, out=tmp_path, any_budget=True, dims=(64,))
    with pytest.raises(HarvestError, match="another folder"):
        selectors.selectors(**settings | {"seconds": 1.0}, out=tmp_path)


def test_umt_is_compared_with_what_it_is_measured_against(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("stage1", "stage2", "qa"):
        config = small(getattr(umt_stages, f"mini_umt_{name}")())
        monkeypatch.setattr(umt_stages, f"mini_umt_{name}", lambda config=config: config)
    for name in ("videomae", "actions", "harvest"):
        config = small(getattr(umt_stages, f"mini_{name}")())
        monkeypatch.setattr(umt_stages, f"mini_{name}", lambda config=config: config)
    monkeypatch.setattr(umt_stages, "_TEST_WORLD", SMALL)
    monkeypatch.setattr(umt_stages, "_CURVE", 1)
    monkeypatch.setattr(umt_stages, "_RERANKED", 4)
    timed = dict.fromkeys(("stage1", "videomae", "stage2", "harvest", "qa"), 0.1)  # all but one, to be quick
    (tmp_path / "results.json").write_text(json.dumps({"runs": {}, "step_s": timed}))
    settings: dict = {"pretrain_s": 0.3, "finetune_s": 0.2, "stage2_s": 0.3, "out": tmp_path}
    umt_stages.umt_stages(("appearance", "stage2"), **settings)
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    starts = ("stage1", "videomae", "scratch", "stage1-int8")
    tuned = {f"{start}-appearance" for start in starts}
    assert runs["stage1"]["steps"] == 3 and runs["stage1"]["spent_s"] == pytest.approx(0.3)
    assert set(runs) == tuned | {"stage1", "stage1-int8", "videomae", "stage2", "stage2-qa", "harvest"}
    assert {"t2v_r1", "t2v_r1, re-ranked", "motion", "motion, matching"} <= runs["stage2"]["scores"].keys()
    assert "questions" in runs["stage2-qa"]["scores"]
    assert runs["stage1-appearance"]["curve"][-1][1] == runs["stage1-appearance"]["scores"]["appearance"]
    assert runs["stage1-appearance"]["curve"][0][0] > runs["stage1"]["spent_s"]
    assert set(runs["scratch-appearance"]["scores"]) == {"appearance"}
    assert (tmp_path / "appearance.svg").read_text().count("<polyline") == 3
