"""A model folder gives back the model to the bit, or says why not."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import toy_model

from harvest.interfaces import HarvestError
from harvest.model.folder import Unfilled, load_model, save_model
from harvest.model.importing.pretrained import load_any, load_pretrained
from harvest.model.video_text import VideoTextModel


@pytest.fixture
def saved(tmp_path):
    model, tokenizer = toy_model(fusion=True)
    save_model(tmp_path / "model", model, tokenizer, notes={"recipe": "toy"})
    return tmp_path / "model", model, tokenizer


def test_a_model_without_a_text_tower(tmp_path):
    """A student of UMT's first stage has no text tower: it keeps no tower and no tokenizer, and says so when asked."""
    model, tokenizer = toy_model()
    tower = VideoTextModel(dataclasses.replace(model.config, text=None))
    assert not any(name.startswith("text.") for name in tower.state_dict())
    save_model(tmp_path / "tower", tower, None)
    assert not (tmp_path / "tower" / "tokenizer.json").exists()
    again, words = load_model(tmp_path / "tower")
    assert words is None and again.config.text is None
    for asked in (
        lambda: load_pretrained(tmp_path / "tower"),
        lambda: again.encode_text(torch.zeros(1, 2).long()),
    ):
        with pytest.raises(HarvestError, match="no text tower"):
            asked()
    assert load_any(tmp_path / "tower")[1] is None
    with pytest.raises(ValueError, match="goes with a text tower"):
        save_model(tmp_path / "wrong", tower, tokenizer)


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@torch.no_grad()
def test_round_trip_to_the_bit(saved):
    folder, model, tokenizer = saved
    again, words = load_model(folder)
    assert not again.training and again.config == model.config and words.config == tokenizer.config
    assert model.state_dict().keys() == again.state_dict().keys()
    assert all(tensor.equal(again.state_dict()[name]) for name, tensor in model.state_dict().items())
    video = torch.randint(0, 256, (2, 4, 3, 16, 16), generator=torch.Generator().manual_seed(0)).byte()
    ids = tokenizer(["a red circle", "the left"])
    assert ids.equal(words(["a red circle", "the left"]))
    assert again.encode_video(video).pooled.equal(model.encode_video(video).pooled)
    assert again.encode_text(ids).pooled.equal(model.encode_text(ids).pooled)
    assert json.loads((folder / "config.json").read_text())["recipe"] == "toy"


def test_opening_draws_no_first_weights_and_gives_the_same_model(saved):
    folder, model, _ = saved
    before = torch.random.get_rng_state()
    with Unfilled():
        again, _ = load_model(folder)
    assert torch.random.get_rng_state().equal(before)
    assert all(tensor.equal(again.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert dict(again.named_buffers()).keys() == dict(model.named_buffers()).keys()
    assert all(buffer.equal(dict(again.named_buffers())[name]) for name, buffer in model.named_buffers())


@pytest.mark.parametrize("name", ["video.patches.weight", "text.blocks.1.mlp.up.weight"])
def test_changed_weights_are_found_by_the_fingerprint(saved, name):
    folder, _, _ = saved
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[name].flip(0)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(HarvestError, match="checksum differs"):
        load_model(folder)
    change_config(folder, format=1)  # whose folders have no checksums
    with pytest.raises(HarvestError, match="another embedding"):
        load_model(folder)
    load_model(folder, check=False)


def test_missing_and_extra_tensors_are_listed(saved):
    folder, _, _ = saved
    tensors = load_file(folder / "model.safetensors")
    tensors["stranger"] = tensors.pop("log_scale")
    save_file(tensors, folder / "model.safetensors")
    change_config(folder, format=1)
    with pytest.raises(HarvestError, match=r"(?s)missing \(1\): log_scale.*left over \(1\): stranger"):
        load_model(folder)


def test_damaged_weights(saved):
    folder, _, _ = saved
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(HarvestError, match="checksum differs"):
        load_model(folder)
    change_config(folder, format=1)
    with pytest.raises(HarvestError, match="not a readable safetensors"):
        load_model(folder)


def test_what_changed_since_it_was_written_is_named(saved):
    """A lowest bit that the fingerprint cannot see, another tokenizer, other sizes, a file too many."""
    folder, _, _ = saved

    def flip(name, place):
        content = bytearray((folder / name).read_bytes())
        content[place] ^= 1
        (folder / name).write_bytes(content)

    for name, place in (("model.safetensors", -4), ("tokenizer.json", -5)):
        flip(name, place)
        with pytest.raises(HarvestError, match=f"{name} has changed"):
            load_model(folder)
        flip(name, place)
    load_model(folder)
    (folder / "head.json").write_text("{}")
    with pytest.raises(HarvestError, match=r"added files: head.json"):
        load_model(folder)
    (folder / "head.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["model"]["video"]["pixel_mean"][0] += 1e-6
    change_config(folder, model=config["model"], recipe="another", licence="free to change")
    with pytest.raises(HarvestError, match="its sizes have changed"):
        load_model(folder)


@pytest.mark.parametrize("values", [[float("nan")] * 16, [0.1], "x", [None] * 16, [True] * 16])
def test_a_fingerprint_that_is_none(saved, values):
    folder, _, _ = saved
    fingerprint = json.loads((folder / "config.json").read_text())["fingerprint"]
    change_config(folder, fingerprint=fingerprint | {"clip": values})
    with pytest.raises(HarvestError, match="fingerprint"):
        load_model(folder)


def test_a_newer_format(saved):
    change_config(saved[0], format=99)
    with pytest.raises(HarvestError, match="newer Harvest"):
        load_model(saved[0])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file(saved, name):
    (saved[0] / name).unlink()
    with pytest.raises(HarvestError, match=name):
        load_model(saved[0])


def test_saving_again_replaces_the_folder(saved):
    folder, model, tokenizer = saved
    (folder / "head.json").touch()  # stale
    save_model(folder, model, tokenizer)
    assert not (folder / "head.json").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("what", ["thesis", "another library's model", "a file"])
def test_only_a_model_makes_room_for_a_model(saved, tmp_path, what):
    own, model, tokenizer = saved
    out = tmp_path / "out"
    if what == "a file":
        out.write_text("precious")
    else:
        out.mkdir()
        (out / ("thesis.txt" if what == "thesis" else "config.json")).write_text('{"model_type": "clip"}')
        save_model(own, model, tokenizer)  # its own kind is replaced
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(HarvestError, match=r"is a file|give another folder"):
        save_model(out, model, tokenizer)
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "empty").mkdir()
    save_model(tmp_path / "empty", model, tokenizer)
