"""Load or fail from any file: wrappers' names, pointers, options for what a file does not say, odd settings."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from harvest.cli import main
from harvest.interfaces import HarvestError
from harvest.model.folder import load_model, save_model
from harvest.model.importing.pretrained import load_pretrained
from harvest.model.importing.sources import _weight_patterns

sys.path.insert(0, str(Path(__file__).parents[1]))
from toys import (
    HEAD_WIDTH,
    SHARED,
    clip_folder,
    openai_state_dict,
    siglip_folder,
    toy_model,
    write_vocabulary,
)

CASES = SHARED / "cases" / "2026-12-01" / "models"
OPENAI: dict[str, Any] = {"preset": "openai", "head_width": HEAD_WIDTH}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    save_file(openai_state_dict(clip_folder(folder)), folder / "w.safetensors")
    return folder


def same(a: Any, b: Any) -> bool:
    return all(tensor.equal(b.state_dict()[name]) for name, tensor in a.state_dict().items())


@pytest.mark.parametrize(
    "name_of",
    [
        "_orig_mod.{}",
        "module.{}",
        "model.{}",
        "module._orig_mod.{}",
        "model.clip.{}",
        "clip.module.{}",
        "_fsdp_wrapped_module.{}",
        "inside",
    ],
)
def test_names_that_wrappers_give(whole: Path, tmp_path: Path, name_of: str) -> None:
    tensors = load_file(whole / "w.safetensors")
    if name_of == "inside":  # FSDP and torch.compile name every block that they wrap
        wrapped = {
            name.replace("resblocks.0.", "resblocks.0._fsdp_wrapped_module._orig_mod."): tensor
            for name, tensor in tensors.items()
        }
    else:
        wrapped = {name_of.format(name): tensor for name, tensor in tensors.items()}
    assert wrapped.keys() != tensors.keys()
    save_file(wrapped, tmp_path / "w.safetensors")
    write_vocabulary(tmp_path)
    expected = load_pretrained(whole / "w.safetensors", **OPENAI)[0]
    assert same(expected, load_pretrained(tmp_path / "w.safetensors", **OPENAI)[0])


def test_two_names_that_become_one(whole: Path, tmp_path: Path) -> None:
    tensors = load_file(whole / "w.safetensors")
    twice = tensors | {f"_orig_mod.{name}": tensor.clone() for name, tensor in tensors.items()}
    save_file(twice, tmp_path / "w.safetensors")
    with pytest.raises(HarvestError, match="same name"):
        load_pretrained(tmp_path / "w.safetensors", **OPENAI)


@pytest.mark.skipif(not CASES.is_dir(), reason="no shared cases")
def test_a_compiled_checkpoint(tmp_path: Path) -> None:
    vocabulary = write_vocabulary(tmp_path)
    model = load_pretrained(CASES / "compiled_orig_mod.pt", vocabulary=vocabulary, **OPENAI)[0]
    assert model.config.text_tower.vocab_size == 600


def test_numpy_numbers_beside_the_weights(whole: Path, tmp_path: Path) -> None:
    content = {"state_dict": load_file(whole / "w.safetensors"), "best": np.float64(0.5), "step": np.int64(3)}
    torch.save(content, tmp_path / "w.pt")
    write_vocabulary(tmp_path)
    report = load_pretrained(tmp_path / "w.pt", **OPENAI)[2]
    assert any("best, step" in note for note in report.notes)


def test_a_file_that_could_be_two_models_is_refused_until_told(whole: Path) -> None:
    file = whole / "w.safetensors"
    with pytest.raises(
        HarvestError, match=r"activation, head width, video pooling, text pooling, causal.*--preset"
    ):
        load_pretrained(file)
    with pytest.raises(HarvestError, match=r"its head width, causal;"):
        load_pretrained(file, activation="gelu", video_pooling="prefix", text_pooling="end")
    said = {
        "activation": "gelu",
        "head_width": 16,
        "video_pooling": "mean",
        "text_pooling": "end",
        "causal": True,
    }
    model, _, report = load_pretrained(file, **said)
    assert model.config.video.pooling == "mean" and model.config.text_tower.activation == "gelu"
    assert any("gelu" in note and "mean" in note for note in report.notes)
    other = load_pretrained(file, preset="open_clip", head_width=16, causal=False)[0]
    assert other.config.video.activation == "gelu" and not other.config.text_tower.causal
    with pytest.raises(HarvestError, match=r"preset, causal are for single files"):
        load_pretrained(whole, preset="openai", causal=True)


def test_convert_takes_the_same_options_and_keeps_the_report(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = [str(whole / "w.safetensors"), str(tmp_path / "out")]
    assert main(["convert", *source]) == 2
    assert "--preset openai" in capsys.readouterr().err
    options = ["--preset", "open_clip", "--head-width", "16", "--context-length", "9", "--fit", "pad"]
    assert main(["convert", *source, *options]) == 0
    model, tokenizer = load_model(tmp_path / "out")
    assert tokenizer is not None and tokenizer(["a"]).shape == (1, 9) and model.config.video.fit == "pad"
    written = json.loads((tmp_path / "out" / "config.json").read_text())["import_report"]
    assert written["used"] > 20 and any("open_clip" in n or "as was said" in n for n in written["notes"])


def test_the_length_of_texts(tmp_path: Path) -> None:
    siglip_folder(tmp_path)
    with pytest.raises(HarvestError, match="at most 12 ids and are read at the last"):
        load_pretrained(tmp_path, context_length=8)
    with pytest.raises(HarvestError, match="at most 12"):
        load_pretrained(tmp_path, context_length=13)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "tokenizer.json", "config.json"])
def test_a_git_lfs_pointer_is_named(tmp_path: Path, name: str) -> None:
    siglip_folder(tmp_path)
    if name == "pytorch_model.bin":
        (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(HarvestError, match=rf"{name} is a git-lfs pointer"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("content", ["{", "[1]", '{"model": {}}', "\x00"])
def test_a_tokenizer_that_cannot_be_parsed_is_named(tmp_path: Path, content: str) -> None:
    siglip_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(HarvestError, match=r"tokenizer.json"):
        load_pretrained(tmp_path)


def test_patterns_that_could_take_for_ever_are_refused(tmp_path: Path) -> None:
    siglip_folder(tmp_path)
    settings = json.loads((tmp_path / "tokenizer.json").read_text())
    for pattern in (r"(\w| |\w\w)*\1!!$", r"(([a-z ])+.)+[A-Z]", r"(a{1000}){1000}"):
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True}
        (tmp_path / "tokenizer.json").write_text(json.dumps(settings | {"pre_tokenizer": split}))
        with pytest.raises(HarvestError, match="could take for ever"):
            load_pretrained(tmp_path)
    grow = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 64}
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings | {"normalizer": grow}))
    with pytest.raises(HarvestError, match="grow"):
        load_pretrained(tmp_path)


def test_half_precision_variants_and_settings_before_weights(tmp_path: Path) -> None:
    clip_folder(tmp_path)
    half = {name: tensor.half() for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    (tmp_path / "model.safetensors").unlink()
    save_file(half, tmp_path / "model.fp16.safetensors")
    assert load_pretrained(tmp_path)[0].log_scale.dtype == torch.float32
    assert _weight_patterns(tmp_path)[0][0] == "model.safetensors"
    (tmp_path / "config.json").write_text(
        "{}"
    )  # a repository of OpenCLIP whose config.json says no model_type
    (tmp_path / "open_clip_config.json").write_text("{}")
    assert _weight_patterns(tmp_path)[0] == ("open_clip_model.safetensors",)


@pytest.mark.parametrize("place", ["../secret", "/etc/passwd", 3])
def test_an_index_names_files_of_its_folder(tmp_path: Path, place: Any) -> None:
    clip_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": place}}))
    with pytest.raises(HarvestError, match=r"not a file of this folder|no weight_map"):
        load_pretrained(tmp_path)


def test_one_mean_for_all_colours(tmp_path: Path) -> None:
    siglip_folder(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": 0.4, "image_std": 0.3, "resample": 2}')
    video = load_pretrained(tmp_path)[0].config.video
    assert video.pixel_mean == (0.4, 0.4, 0.4) and (video.fit, video.interpolation) == ("squash", "bilinear")
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": ["a"], "image_std": 0.3}')
    with pytest.raises(HarvestError, match="image_mean must be a number"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("family", "said", "fit"),
    [
        (clip_folder, {}, "crop"),
        (siglip_folder, {}, "squash"),
        (clip_folder, {"size": {"height": 32, "width": 32}}, "squash"),
        (siglip_folder, {"size": {"shortest_edge": 32}}, "crop"),
    ],
)
def test_how_pictures_become_squares(tmp_path: Path, family: Any, said: dict[str, Any], fit: str) -> None:
    family(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    assert load_pretrained(tmp_path)[0].config.video.fit == fit
    assert load_pretrained(tmp_path, fit="pad")[0].config.video.fit == "pad"


DAMAGES: list[tuple[str, Any, str]] = [
    ("model.video.width", 10**9, "expected at least 1 and at most"),
    ("model.video.width", "48", "must be int"),
    ("model.video.depth", 10**6, "expected at least"),
    ("model.video.num_heads", 0, "num_heads: expected"),
    ("model.video.patch_size", 0, "patch_size: expected"),
    ("model.video.activation", "x", "activation must be"),
    ("model.video.surprise", 1, "unknown setting model.video.surprise"),
    ("model.text.vocab_size", 10**9, "vocab_size: expected"),
    ("model.text.vocab_size", 10**6, "wrong shape"),
    ("model.video.norm_eps", None, "norm_eps must be float"),
    ("tokenizer.context_length", 10**9, "positions"),
    ("tokenizer.pad_id", 10**9, "ids up to"),
    ("tokenizer", None, "goes with a text tower"),
    ("fingerprint", {}, "fingerprint must hold"),
    ("fingerprint.clip", [0.1], "is not 16 numbers"),
    ("fingerprint.clip", [float("nan")] * 16, "must be a finite number"),
    ("format", "x", "no config.json of one|not a model folder"),
    ("model", [], "no config.json of one|not a model folder"),
]


@pytest.mark.parametrize(("key", "value", "message"), DAMAGES)
def test_a_damaged_model_folder_is_named(tmp_path: Path, key: str, value: Any, message: str) -> None:
    save_model(tmp_path / "m", *toy_model(num_frames=1))
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text()) | {"format": 1}  # of which no checksum tells before
    *parents, last = key.split(".")
    part = config
    for name in parents:
        part = part[name]
    part[last] = value
    path.write_text(json.dumps(config))
    with pytest.raises(HarvestError, match=message):
        load_model(tmp_path / "m")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    clip_folder(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["visual_projection.weight"][0, 0] = value
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(HarvestError, match=r"video\.projection\.weight holds values"):
        load_pretrained(tmp_path)
