"""One resolver of model names: what each kind of name stands for, and that every door asks it."""

from __future__ import annotations

from pathlib import Path

import pytest

import harvest
from harvest.cli import main
from harvest.interfaces import HarvestError
from harvest.model.importing import pretrained, sources
from harvest.model.importing.sources import MINI_IMAGE, find_model

NAMES = ("mini-image", "runs/x")
CSV = "video,caption\na.mp4,a red ball\n"


def test_what_a_name_stands_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "runs" / "x"
    (run / "model").mkdir(parents=True)
    (run / "checkpoints").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HarvestError, match="no model yet"):
        find_model("runs/x")
    (run / "model" / "config.json").write_text("{}")
    (tmp_path / "w.pt").write_bytes(b"")
    assert find_model("mini-image") == MINI_IMAGE and (MINI_IMAGE / "model.safetensors").is_file()
    assert find_model("runs/x") == find_model(run / "model") or find_model("runs/x") == Path("runs/x/model")
    assert find_model("w.pt") == Path("w.pt")
    for wrong in ("missing.safetensors", "a/b/c", "../nothing here"):
        with pytest.raises(HarvestError, match="no such file or folder"):
            find_model(wrong)


def test_a_shipped_model_opens_by_name() -> None:
    assert harvest.load("mini-image").model.config.video.num_frames == 1


DOORS = {
    "evaluate": ["evaluate", "{}", "--data", "clips.csv"],
    "probe": ["probe", "{}", "--train", "clips.csv", "--test", "clips.csv", "--classes", "names.txt"],
    "index": ["index", "clips", "--model", "{}", "--out", "lib"],
    "moments": ["moments", "a.png", "a red ball", "--model", "{}"],
    "check": ["check", "clips.csv", "--caption-model", "{}"],
    "convert": ["convert", "{}", "out"],
    "blend": ["blend", "{}", "mini-image", "--evaluate", "clips.csv", "--image-evaluate", "clips.csv"],
    "train": ["train", "harvest-b16", "--data.train", "clips.csv", "--start.model", "{}", "--out", "run"],
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("door", DOORS)
def test_every_door_asks_the_resolver(
    door: str,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def asked(source: str | Path, **_: object) -> Path:
        raise HarvestError(f"the resolver was asked for {source}")

    monkeypatch.setattr(pretrained, "find_model", asked)
    monkeypatch.setattr(sources, "find_model", asked)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips.csv").write_text(CSV.replace("caption", "caption,label").replace("ball\n", "ball,0\n"))
    (tmp_path / "names.txt").write_text("running\nstanding\n")
    (tmp_path / "clips" / "a.mp4").write_bytes(b"")
    (tmp_path / "a.png").write_bytes(b"")
    assert main([part.format(name) for part in DOORS[door]]) == 2
    assert f"the resolver was asked for {name}" in capsys.readouterr().err
