import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from harvest.adapting import adapting_run, agreement, write_stretches
from harvest.cli import main
from harvest.data.manifest import read_manifest
from harvest.data.miniworld import MiniWorldConfig, write_miniworld
from harvest.evaluation.embed import embed_videos
from harvest.interfaces import HarvestError
from harvest.model.importing.pretrained import load_pretrained
from harvest.objectives.embedding_alignment import check_run
from harvest.recipes import RECIPES
from harvest.training.loop import train


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = write_miniworld(
        tmp_path_factory.mktemp("world"), MiniWorldConfig(seed=3, train=12, retrieval=1, questions=1)
    )
    folder = world.folder / "videos" / "train"
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def targets_beside(folder: Path) -> torch.Tensor:
    """The embeddings in a folder of runs."""
    [store] = folder.glob("targets-*")
    rows = bytearray((store / "block-00000.bin").read_bytes())
    return torch.frombuffer(rows, dtype=torch.float16).view(12, -1)


def test_stretches_cover_every_video_and_broken_ones_are_named(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    num = write_stretches(
        [videos], tmp_path / "clips.jsonl", window_s=0.75
    )  # of 2 s: 0.75, 0.75 and what is left
    rows = read_manifest(tmp_path / "clips.jsonl", captions_required=False)
    assert num == len(rows) == 12 * 3
    assert [(row.start_s, row.end_s) for row in rows[:3]] == [(0, 0.75), (0.75, 1.5), (1.5, None)]
    assert "1 of 13 videos cannot be opened" in capsys.readouterr().err
    with pytest.raises(HarvestError, match="nothing to adapt to"):
        write_stretches([videos / "broken.mp4"], tmp_path / "none.jsonl", window_s=1)


def test_a_folder_of_videos_becomes_a_model_nearer_to_its_teacher(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = [
        "adapt",
        str(videos),
        "--model",
        "mini-image",
        "--out",
        str(out),
        "--steps",
        "30",
        "--batch",
        "12",
    ]
    main([*command, "--compared", "12", "--window-s", "2"])
    assert "cosine with mini-image that sees all frames" in capsys.readouterr().out
    manifest = tmp_path / "run.clips.jsonl"
    [few, _, _] = found = agreement("mini-image", out / "model", manifest, (26, 51, 102), 12)
    assert all(one.after > one.before for one in found) and few.after > few.before + 0.02
    adapted, image = load_pretrained(out / "model")[0], load_pretrained("mini-image")[0]
    same = dict(image.named_parameters())
    assert all(p.equal(same[name]) for name, p in adapted.named_parameters() if name.startswith("text."))
    config = json.loads((out / "config.json").read_text())
    assert config["vary"]["budgets"] == [26, 51, 102]
    main(["index", str(videos), "--model", str(out), "--out", str(tmp_path / "library")])
    assert "index with --budget 26" in capsys.readouterr().err


def test_targets_are_what_the_image_model_says_of_all_frames(tmp_path: Path, videos: Path) -> None:
    manifest = tmp_path / "clips.jsonl"
    write_stretches([videos], manifest, window_s=2)
    train(adapting_run("mini-image", manifest, steps=1, batch=4), tmp_path / "run")
    targets = targets_beside(tmp_path).float()
    image, _, _ = load_pretrained("mini-image")
    rows = read_manifest(manifest, captions_required=False)
    whole = embed_videos(image, rows, mode="image").pooled
    torch.testing.assert_close(targets, whole, atol=2e-2, rtol=0)  # bf16 and fp16 against fp32
    assert float((targets * whole).sum(dim=1).min()) > 0.999


def test_other_videos_are_neither_taken_for_the_first_nor_trained_on_in_their_run(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Embeddings are of some clips: the same number of others gets its own."""
    manifest = tmp_path / "clips.jsonl"
    write_stretches([videos], manifest, window_s=2)
    train(adapting_run("mini-image", manifest, steps=1, batch=4), tmp_path / "first" / "run")
    manifest.write_text("".join(reversed(manifest.read_text().splitlines(keepends=True))))
    [store] = (tmp_path / "first").glob("targets-*")
    shutil.copytree(store, tmp_path / "second" / store.name)
    train(adapting_run("mini-image", manifest, steps=1, batch=4), tmp_path / "second" / "run")
    shutil.rmtree(tmp_path / "second" / store.name)
    first, second = (targets_beside(tmp_path / name) for name in ("first", "second"))
    torch.testing.assert_close(second, first.flip(0), atol=1e-3, rtol=0)
    assert not torch.allclose(second, first, atol=1e-2)

    command = ["--model", "mini-image", "--out", str(tmp_path / "adapted"), "--steps", "1", "--batch", "2"]
    assert main(["adapt", str(videos), *command, "--window-s", "2"]) == 0
    assert main(["adapt", str(videos), *command, "--window-s", "1"]) == 2
    assert "adapted" in capsys.readouterr().err


def test_clips_that_change_from_step_to_step_are_refused() -> None:
    config = RECIPES["adapt-b16"]()
    with pytest.raises(HarvestError, match=r"--data\.times middle"):
        check_run(dataclasses.replace(config, data=dataclasses.replace(config.data, times="random")))
