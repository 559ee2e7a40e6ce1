"""Load or fail: nothing of a source is silently missing, left over, misshapen or run."""

import json
import os
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import HEAD_WIDTH, clip_folder, openai_state_dict, siglip_folder, toy_model, write_vocabulary

from harvest.interfaces import HarvestError
from harvest.model.folder import save_model
from harvest.model.importing.pretrained import load_pretrained
from harvest.model.inflation import as_video_model


def change_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


OPENAI = {"preset": "openai", "head_width": HEAD_WIDTH}
VISION, TEXT = "vision_model.post_layernorm.bias", "text_model.encoder.layers.1.mlp.fc1.weight"


@pytest.mark.parametrize("family", [clip_folder, siglip_folder])
def test_a_renamed_tensor_is_missing_and_left_over(tmp_path, family):
    family(tmp_path)
    change_weights(tmp_path, lambda tensors: tensors.update({"stranger": tensors.pop(VISION)}))
    with pytest.raises(HarvestError) as error:
        load_pretrained(tmp_path)
    assert f"missing (1): {VISION}" in str(error.value)
    assert "not used (1): stranger" in str(error.value)


@pytest.mark.parametrize("family", [clip_folder, siglip_folder])
def test_every_single_tensor_is_needed(tmp_path, family):
    names = list(family(tmp_path).state_dict())
    tensors = load_file(tmp_path / "model.safetensors")
    for name in names:
        save_file({k: v for k, v in tensors.items() if k != name}, tmp_path / "model.safetensors")
        with pytest.raises(HarvestError, match=r"missing \(1\)") as error:
            load_pretrained(tmp_path)
        assert name in str(error.value)


def test_one_more_layer_than_the_config_says(tmp_path):
    clip_folder(tmp_path)
    more = {TEXT.replace("layers.1", "layers.2"): torch.zeros(72, 32)}
    change_weights(tmp_path, lambda tensors: tensors.update(more))
    with pytest.raises(HarvestError, match=r"layers\.2"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("name", [VISION, TEXT, "vision_model.encoder.layers.0.self_attn.k_proj.weight"])
def test_a_wrong_shape(tmp_path, name):
    clip_folder(tmp_path)
    change_weights(tmp_path, lambda tensors: tensors.update({name: torch.zeros(7, 5)}))
    with pytest.raises(HarvestError, match="wrong shape"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("shape", [(3,), (5, 7)])
def test_any_wrong_shape_in_a_state_dict(tmp_path, shape):
    tensors = openai_state_dict(clip_folder(tmp_path))
    for name in tensors:
        save_file({**tensors, name: torch.zeros(shape)}, tmp_path / "weights.safetensors")
        with pytest.raises(HarvestError):
            load_pretrained(tmp_path / "weights.safetensors", **OPENAI)


def test_buffers_are_listed_as_ignored(tmp_path):
    clip_folder(tmp_path)
    name = "text_model.embeddings.position_ids"
    change_weights(tmp_path, lambda tensors: tensors.update({name: torch.arange(16)[None]}))
    assert load_pretrained(tmp_path)[2].ignored == (name,)


def test_a_hole_among_the_blocks_of_a_state_dict(tmp_path):
    tensors = openai_state_dict(clip_folder(tmp_path))
    kept = {name: tensor for name, tensor in tensors.items() if "visual.transformer.resblocks.0" not in name}
    save_file(kept, tmp_path / "weights.safetensors")
    with pytest.raises(HarvestError, match=r"missing \(12\): visual.transformer.resblocks.0"):
        load_pretrained(tmp_path / "weights.safetensors", **OPENAI)


def test_heads_that_do_not_divide_the_width(tmp_path):
    save_file(openai_state_dict(clip_folder(tmp_path)), tmp_path / "weights.safetensors")
    with pytest.raises(HarvestError, match="head_width"):
        load_pretrained(tmp_path / "weights.safetensors", preset="openai")


def test_shards(tmp_path):
    clip_folder(tmp_path)
    whole = load_pretrained(tmp_path)[0].state_dict()
    tensors = load_file(tmp_path / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[:20], "model-2.safetensors": names[20:]}
    for shard, held in parts.items():
        save_file({name: tensors[name] for name in held}, tmp_path / shard)
    index = {"weight_map": {name: shard for shard, held in parts.items() for name in held}}
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    sharded = load_pretrained(tmp_path)[0].state_dict()
    for name, tensor in whole.items():
        assert tensor.equal(sharded[name]), name
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(HarvestError, match="model-2"):
        load_pretrained(tmp_path)


def test_half_precision_and_bin_files(tmp_path):
    clip_folder(tmp_path)
    tensors = {name: tensor.half() for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    model = load_pretrained(tmp_path)[0]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


class Command:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_file_is_not_run(tmp_path):
    write_vocabulary(tmp_path)
    torch.save({"model": {}, "args": Command(tmp_path / "ran")}, tmp_path / "evil.pt")
    with pytest.raises(HarvestError, match="more than tensors"):
        load_pretrained(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_torchscript_is_refused_with_the_remedy(tmp_path):
    with zipfile.ZipFile(tmp_path / "ViT-B-16.pt", "w") as archive:
        archive.writestr("ViT-B-16/code/__torch__.py", "print('ran')")
    with pytest.raises(HarvestError, match=r"state_dict\(\)"):
        load_pretrained(tmp_path / "ViT-B-16.pt")


@pytest.mark.parametrize("content", [b"", b"not weights at all"])
@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_files_that_are_not_weights(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(HarvestError, match="weights"):
        load_pretrained(tmp_path / name)


def test_state_dicts_of_other_models(tmp_path):
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pt")
    with pytest.raises(HarvestError, match=r"no known layout.*fc\.weight"):
        load_pretrained(tmp_path / "other.pt")
    torch.save({"state_dict": {"fc.weight": torch.zeros(2, 2), "step": 3}}, tmp_path / "mixed.pt")
    with pytest.raises(HarvestError, match="not tensors: step"):
        load_pretrained(tmp_path / "mixed.pt")


def test_other_families_and_empty_folders(tmp_path):
    with pytest.raises(HarvestError, match="not a model folder"):
        load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(HarvestError, match="'bert' is not supported"):
        load_pretrained(tmp_path)


def test_the_hub_out_of_reach_names_a_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(HarvestError, match="path of its folder"):
        load_pretrained("someone/some-model", offline=True)
    with pytest.raises(HarvestError, match="no such file or folder"):
        load_pretrained(tmp_path / "missing")


def test_a_harvest_folder(tmp_path):
    model, tokenizer = toy_model(num_frames=1)
    save_model(tmp_path / "model", model, tokenizer)
    again, _, report = load_pretrained(tmp_path / "model")
    for name, tensor in model.state_dict().items():
        assert tensor.equal(again.state_dict()[name]), name
    assert report.used == len(model.state_dict()) and report.new == ()
    larger, _, report = load_pretrained(tmp_path / "model", image_size=32)
    assert larger.config.video.image_size == 32 and "resized" in report.notes[0]


FAMILIES = ["clip", "openai", "siglip"]


@pytest.fixture(scope="module")
def image_models(tmp_path_factory):
    folders = {family: tmp_path_factory.mktemp(family) for family in FAMILIES}
    clip_folder(folders["clip"])
    siglip_folder(folders["siglip"])
    weights = folders["openai"] / "weights.safetensors"
    save_file(openai_state_dict(clip_folder(folders["openai"])), weights)
    (folders["openai"] / "model.safetensors").unlink()
    sources = {**folders, "openai": weights}
    return {
        family: load_pretrained(source, **(OPENAI if family == "openai" else {}))[0]
        for family, source in sources.items()
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tubelet_size", [1, 2])
@pytest.mark.parametrize("time_positions", ["table", "gated"])
def test_a_still_clip_is_an_image(image_models, family, tubelet_size, time_positions):
    image_model = image_models[family]
    model, new = as_video_model(
        image_model, num_frames=4, tubelet_size=tubelet_size, time_positions=time_positions
    )
    assert all(name.startswith("video.time_positions") for name in new)
    images = torch.randint(0, 256, (3, 1, 3, 32, 32), generator=torch.Generator().manual_seed(4)).byte()
    with torch.no_grad():
        expected = image_model.encode_video(images).pooled
        for num_frames in (1, 4, 6):
            video = images.expand(-1, num_frames, -1, -1, -1)
            off = (model.eval().encode_video(video).pooled - expected).norm(dim=1)
            assert off.max() <= 1e-4, num_frames
