"""Importers of UMT's files: released layouts at their real sizes, wrappers, and what is said about wrong ones."""

from __future__ import annotations

import argparse
import json
import pickle
import sys
import types

import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import SHARED, siglip_folder

from harvest.interfaces import HarvestError
from harvest.model.folder import load_head, load_model, save_model
from harvest.model.importing import pretrained
from harvest.model.importing.files import read_tensors
from harvest.model.importing.pretrained import load_any, load_pretrained
from harvest.model.importing.umt import load_classifier, load_stage1, load_stage2, load_teacher, read_heads
from harvest.model.importing.vocabularies import bert_tokenizer
from harvest.model.inflation import as_teacher
from harvest.model.layers import sinusoid
from harvest.model.video_encoder import VideoEncoder, VideoEncoderConfig
from harvest.training.optim import OptimConfig, build_optimizer

KEYS = SHARED / "method" / "keys"
VOCABULARY = SHARED / "tokenizers" / "bert-base-uncased_vocab.txt"
CLIP_VOCABULARY = SHARED / "tokenizers" / "bpe_simple_vocab_16e6.txt.gz"
needs_keys = pytest.mark.skipif(not KEYS.is_dir(), reason="no lists of released keys")


def load_viclip(tensors):
    """`load_pretrained` of a file that holds these tensors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained, "read_tensors", lambda path: (tensors, []))
        model, _, report = load_pretrained(VOCABULARY, vocabulary=CLIP_VOCABULARY)
    return model, report


RELEASED = {
    "viclip_b": (load_viclip, {}),
    "viclip_l": (load_viclip, {}),
    "stage1_b16": (load_stage1, {}),
    "stage1_l16": (load_stage1, {}),
    "finetune_b16_k400_f8": (load_classifier, {}),
    "finetune_b16_k400_f16": (load_classifier, {}),
    "stage2_b16": (load_stage2, {}),
    "stage2_l16": (load_stage2, {}),
    "clip_b16_visual": (load_teacher, {}),
    "clip_l14_196_visual": (load_teacher, {}),
}


def released(name):
    """Tensors with the keys and shapes of a released file and no memory."""
    shapes = json.loads((KEYS / f"{name}.json").read_text())
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def load(name, tensors):
    loader, settings = RELEASED[name]
    if loader is load_stage2:
        settings = settings | {"vocabulary": bert_tokenizer(VOCABULARY, 32)}
        with torch.device("meta"):
            model, _, report = loader(tensors, **settings)
        return model, report
    with torch.device("meta"):
        return loader(tensors, **settings)


@needs_keys
@pytest.mark.parametrize("name", RELEASED)
def test_a_released_layout(name):
    tensors = released(name)
    *models, report = load(name, tensors)
    if name.startswith("stage2"):
        check_stage2(tensors, models[0], report)
        return
    if name.startswith("viclip"):
        check_viclip(tensors, models[0], report)
        return
    assert report.used == len(tensors) and report.ignored == ()
    assert report.new == (("video.time_positions.table",) if "clip" in name else ())
    own = sum(p.numel() for model in models for p in model.parameters())
    theirs = sum(tensor.numel() for tensor in tensors.values())
    assert (
        own == theirs
    )  # of CLIP: class token and its position are one vector, a zero position in time is new
    video = getattr(models[0], "video", models[0])
    frames, size = (
        (16 if name.endswith("f16") else 1 if "clip" in name else 8),
        (196 if "196" in name else 224),
    )
    assert (video.config.num_frames, video.config.image_size) == (frames, size)


def check_viclip(tensors, model, report):
    assert report.used == len(tensors) and report.ignored == () and report.new == ("text.mask_embedding",)
    video, text = model.config.video, model.config.text_tower
    # The class token and its position are one vector; the vector that stands for hidden words is new.
    theirs = sum(tensor.numel() for tensor in tensors.values())
    assert sum(p.numel() for p in model.parameters()) == theirs - video.width + text.width
    assert (video.num_frames, video.image_size, video.prefix) == (8, 224, "clip")
    assert (video.patch_size, video.depth) == {768: (16, 12), 1024: (14, 24)}[video.width]


def check_stage2(tensors, model, report):
    apart = {k for k in tensors if k.startswith(("clip_teacher.", "vision_encoder.clip_decoder."))}
    buffers = {k for k in tensors if k.endswith("position_ids")}
    assert set(report.ignored) == apart | buffers and report.new == ()
    assert report.used == len(tensors) - len(report.ignored)
    # Tied: the words' matrix and the bias of the head that reads them. The vectors of token types are in the positions.
    twice = {
        k for k in tensors if k.endswith(("decoder.weight", "decoder.bias", "token_type_embeddings.weight"))
    }
    assert len(twice) == 3
    once = sum(t.numel() for k, t in tensors.items() if k not in apart | buffers | twice)
    assert sum(p.numel() for p in model.parameters()) == once
    assert (
        model.config.video.num_frames == 4 and model.config.fusion.matches and model.config.fusion.tied_words
    )
    assert model.config.fusion.depth == {12: 3, 24: 5}[model.config.video.depth]


@needs_keys
@pytest.mark.parametrize(
    "key", ["clip_teacher.ln_post.bias", "vision_encoder.clip_decoder.2.norm.weight", "temp"]
)
def test_parts_of_stage_2_that_are_left_out_are_checked_too(key):
    tensors = released("stage2_b16")
    tensors[key + "_"] = tensors.pop(key)
    with pytest.raises(HarvestError, match=key.replace(".", r"\.") + "_"):
        load("stage2_b16", tensors)


@needs_keys
@pytest.mark.parametrize("name", RELEASED)
@pytest.mark.parametrize("change", ["renamed", "missing", "extra", "misshapen"])
def test_one_wrong_key_is_named(name, change):
    tensors = released(name)
    parts = [key for key in tensors if "clip_teacher" not in key]
    key = next(key for key in parts if "blocks.3." in key and "mlp" in key and key.endswith("weight"))
    if change == "extra":
        key = "something.else"
        tensors[key] = torch.empty(3, device="meta")
    else:
        value = tensors.pop(key)
        if change == "renamed":
            tensors[key + "_"] = value
        elif change == "misshapen":
            tensors[key] = value[1:]
            key = "mlp"
    with pytest.raises(HarvestError, match=key.replace(".", r"\.")):
        load(name, tensors)


@needs_keys
@pytest.mark.parametrize("name", RELEASED)
def test_another_layout_is_refused(name):
    if "viclip" in name:
        pytest.skip("its loader takes UMT's files too")
    others = [other for other in RELEASED if RELEASED[other][0] is not RELEASED[name][0]]
    if "clip" in name:  # a checkpoint of stage 2 holds its teacher
        others = [other for other in others if not other.startswith("stage2")]
    for other in others:
        with pytest.raises(HarvestError, match="it lacks"):
            load(name, released(other))


# ---- toys --------------------------------------------------------------------------------------------------------


def toy(depth=2, width=16, heads=2, teacher=12, patch=4, *, stored=0):
    """A stage-1 state dict with random values."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator) * 0.2

    made = {
        "encoder.patch_embed.proj.weight": draw(width, 3, 1, patch, patch),
        "encoder.patch_embed.proj.bias": draw(width),
        "encoder.norm.weight": draw(width),
        "encoder.norm.bias": draw(width),
    }
    if stored:
        made["encoder.pos_embed"] = draw(1, stored, width)
    for i in range(depth):
        block = f"encoder.blocks.{i}"
        for norm in ("norm1", "norm2"):
            made |= {f"{block}.{norm}.weight": draw(width), f"{block}.{norm}.bias": draw(width)}
        made |= {f"{block}.attn.q_bias": draw(width), f"{block}.attn.v_bias": draw(width)}
        made[f"{block}.attn.qkv.weight"] = draw(3 * width, width)
        for name, a, b in (
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ):
            made |= {f"{block}.{name}.weight": draw(a, b), f"{block}.{name}.bias": draw(a)}
    for k in range(heads):
        head = f"clip_decoder.{k}"
        made |= {f"{head}.head.weight": draw(teacher, width), f"{head}.head.bias": draw(teacher)}
        made |= {f"{head}.norm.weight": draw(teacher), f"{head}.norm.bias": draw(teacher)}
    return made


SIZES = {"num_frames": 2, "image_size": 16, "head_width": 8}


def toy_classifier(positions=None, classes=5):
    made = {k.removeprefix("encoder."): t for k, t in toy().items() if k.startswith("encoder.")}
    made["fc_norm.weight"], made["fc_norm.bias"] = made.pop("norm.weight"), made.pop("norm.bias")
    if positions is not None:
        made["pos_embed"] = positions[None]
    return made | {"head.weight": torch.randn(classes, 16), "head.bias": torch.zeros(classes)}


class EasyDict(dict):
    """As the package of that name pickles itself."""


@pytest.mark.parametrize("wrapper", [None, "model", "module", "state_dict"])
def test_defect_16_a_training_checkpoint_loads_its_weights(wrapper, tmp_path, monkeypatch):
    """The reference loads nothing from `{"model": ...}`, silently. Settings beside the weights do not stop a load."""
    package = types.ModuleType("easydict")
    package.EasyDict = EasyDict
    EasyDict.__module__ = "easydict"
    monkeypatch.setitem(sys.modules, "easydict", package)
    settings = EasyDict(lr=1.0)
    settings.lr = 1.0
    tensors = toy()
    content = (
        {wrapper: tensors, "args": argparse.Namespace(lr=1.0), "config": settings} if wrapper else tensors
    )
    torch.save(content, tmp_path / "b16.pth")
    monkeypatch.delitem(sys.modules, "easydict")
    encoder, heads, report = load_stage1(tmp_path / "b16.pth", **SIZES)
    assert report.used == len(tensors)
    assert torch.equal(encoder.blocks[1].mlp.up.weight, tensors["encoder.blocks.1.mlp.fc1.weight"])
    assert torch.equal(heads.heads[1].linear.weight, tensors["clip_decoder.1.head.weight"])


class Evil:
    def __reduce__(self):
        return (print, ("ran",))


def test_a_pickle_with_code_is_refused(tmp_path, capsys):
    torch.save({"model": toy(), "args": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(HarvestError, match="holds more than tensors"):
        read_tensors(tmp_path / "evil.pth")
    with pytest.raises(HarvestError, match="holds more than tensors"):
        load_stage1(tmp_path / "evil.pth", **SIZES)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(HarvestError):
        read_tensors(tmp_path / "plain.pth")
    assert "ran" not in capsys.readouterr().out


def test_heads_that_do_not_fit_are_said():
    with pytest.raises(HarvestError, match="a tower 16 wide has no heads 64 wide: give head_width"):
        load_stage1(toy(), num_frames=2, image_size=16)
    with pytest.raises(HarvestError, match="its heads are missing"):
        load_stage1({k: t for k, t in toy().items() if "decoder" not in k}, **SIZES)
    with pytest.raises(HarvestError, match="no multiple of patches of 4"):
        load_stage1(toy(), num_frames=2, image_size=18, head_width=8)


def test_defect_25_learned_positions_are_not_decayed():
    encoder, _, _ = load_stage1(toy(stored=32), **SIZES)
    optimizer = build_optimizer(encoder, OptimConfig(weight_decay=0.05))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays[id(encoder.joint_positions)] == 0
    assert decays[id(encoder.blocks[0].attention.query_value_bias)] == 0
    assert decays[id(encoder.blocks[0].attention.qkv.weight)] == 0.05


def test_learned_positions_must_fit():
    with pytest.raises(HarvestError, match="joint_positions"):
        load_stage1(toy(stored=32), num_frames=4, image_size=16, head_width=8)


def test_a_classifier_of_more_frames_learns_its_positions():
    """The reference saves resized positions as a parameter and never gives it a gradient."""
    stored = sinusoid(2 * 16, 16)
    model, report = load_classifier(toy_classifier(stored), num_frames=4, stored=(2, 16), head_width=8)
    assert "positions resized from 2 times of 4 x 4 places to 4 of 4 x 4" in str(report)
    model(torch.randn(2, 4, 3, 16, 16)).square().mean().backward()
    assert model.video.joint_positions.grad.abs().sum() > 0
    wider, _ = load_classifier(toy_classifier(stored), image_size=32, stored=(2, 16), head_width=8)
    assert wider.video.joint_positions.shape == (2 * 64, 16)


def test_a_classifier_without_positions_gets_the_table_of_8_by_14_by_14():
    model, _ = load_classifier(toy_classifier(), head_width=8)
    assert (model.video.config.num_frames, model.video.config.image_size) == (8, 56)
    assert torch.equal(model.video.sinusoid(1568), sinusoid(1568, 16))
    assert "sinusoid" not in str(list(model.state_dict()))
    other, report = load_classifier(toy_classifier(), num_frames=16, head_width=8)
    assert other.video.joint_positions.shape == (16 * 196, 16) and "resized" in str(report)


def test_the_key_s_bias_is_not_there():
    """A gradient of rounding noise would make AdamW move it by whole steps."""
    encoder, _, _ = load_stage1(toy(), **SIZES)
    names = [name for name, _ in encoder.named_parameters() if ".attention." in name and "bias" in name]
    assert names == [
        f"blocks.{i}.attention.{name}" for i in range(2) for name in ("query_value_bias", "out.bias")
    ]


# ---- the tower's settings ----------------------------------------------------------------------------------------


def tower(**settings):
    sizes = {"width": 16, "depth": 2, "num_heads": 2, "mlp_width": 32, "embed_dim": 12, "num_frames": 4}
    config = VideoEncoderConfig(image_size=16, patch_size=4, **sizes | settings)
    torch.manual_seed(0)
    return VideoEncoder(config).eval()


UMT = {"prefix": "none", "pooling": "mean", "positions": "sinusoid", "key_bias": False, "pre_norm": False}


def test_fixed_positions_go_on_for_any_length():
    encoder = tower(**UMT)
    assert torch.equal(sinusoid(200, 16)[:64], encoder.sinusoid.table)
    video = torch.randn(2, 12, 3, 16, 16)
    with torch.no_grad():
        keep = torch.arange(64).expand(2, -1)
        assert torch.equal(encoder(video, keep).tokens, encoder(video[:, :4]).tokens)
        assert encoder(video).tokens.shape == (2, 192, 16)


@pytest.mark.parametrize("positions", ["factored", "joint", "sinusoid"])
def test_keep_of_all_is_all(positions):
    encoder = tower(**UMT | {"positions": positions, "pooled_norm": True})
    video = torch.randn(2, 4, 3, 16, 16)
    with torch.no_grad():
        every, named = encoder(video), encoder(video, torch.arange(64).expand(2, -1))
        longer = encoder(torch.randn(2, 6, 3, 16, 16))
    torch.testing.assert_close(every.tokens, named.tokens)
    torch.testing.assert_close(every.pooled, named.pooled)
    assert longer.tokens.shape == (2, 96, 16)


def test_frames_apart_are_images():
    encoder = tower(attention="frame", num_frames=1)
    image = tower(num_frames=1)
    image.load_state_dict(encoder.state_dict())
    video = torch.randint(256, (2, 3, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        clip = encoder(video, layers=(0, -1), attention=True)
        frames = image(video.flatten(0, 1)[:, None], layers=(0, 1), attention=True)
        pooled = image.features(video.flatten(0, 1)[:, None]).pooled.view(2, 3, -1).mean(dim=1)
        torch.testing.assert_close(encoder.features(video).pooled, pooled)
    torch.testing.assert_close(clip.tokens, frames.tokens.reshape(2, 48, 16))
    for a, b in zip(clip.layers, frames.layers, strict=True):
        torch.testing.assert_close(a, b.reshape(2, 48, 16))
    torch.testing.assert_close(clip.attention, frames.attention.view(2, 48))
    assert torch.equal(clip.layers[1], clip.tokens)


def test_frames_apart_want_equal_counts():
    encoder = tower(attention="frame", num_frames=1)
    video = torch.randn(1, 2, 3, 16, 16)
    with pytest.raises(ValueError, match="equally many kept tubelets of each time"):
        encoder(video, torch.tensor([[0, 1, 2, 17]]))


def test_attention_is_fp32_under_autocast_and_its_rows_are_shares():
    for settings in (
        {"attention": "frame", "num_frames": 1},
        {"prefix": "clip"},
        {"prefix": "none", "pooling": "attention", "attention": "frame"},
    ):
        encoder = tower(**settings)
        video = torch.randn(2, 4, 3, 16, 16)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            attention = encoder(video, attention=True).attention
        assert attention.dtype == torch.float32 and attention.shape == (2, 64)
        shares = attention.view(2, 4, 16).sum(dim=-1)
        if settings.get("attention") == "frame":
            assert ((shares > 0.5) & (shares <= 1.0001)).all()
    with pytest.raises(ValueError, match="neither a prefix nor a pooling query"):
        tower(**UMT)(torch.randn(1, 4, 3, 16, 16), attention=True)


def test_siglip_s_pooling_query_guides(tmp_path):
    """Its attention is that of `transformers`, frame by frame."""
    theirs = siglip_folder(tmp_path)
    teacher = as_teacher(load_pretrained(tmp_path)[0])
    video = torch.randn(2, 3, 3, 32, 32)
    with torch.no_grad():
        found = teacher(video, attention=True)
        hidden = theirs.vision_model(video.flatten(0, 1)).last_hidden_state
        probe = theirs.vision_model.head.probe.repeat(6, 1, 1)
        wanted = theirs.vision_model.head.attention(probe, hidden, hidden)[1][:, 0]
    torch.testing.assert_close(found.tokens.reshape(6, 16, -1), hidden, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(found.attention.view(6, 16), wanted, atol=2e-5, rtol=1e-5)


def test_shares_scale_the_branches():
    encoder = tower(**UMT)
    video = torch.randn(2, 4, 3, 16, 16)
    with torch.no_grad():
        same = encoder(video, drop_path_scale=torch.ones(2, 2, 2))
        torch.testing.assert_close(same.tokens, encoder(video).tokens)
        nothing = encoder(video, drop_path_scale=torch.zeros(2, 2, 2), layers=(0, 1))
        assert torch.equal(nothing.layers[0], nothing.layers[1])
        encoder.checkpointing = True
        torch.testing.assert_close(encoder(video, drop_path_scale=torch.ones(2, 2, 2)).tokens, same.tokens)


@pytest.mark.parametrize(
    "wrong",
    [
        {"prefix": "none", "pooling": "prefix"},
        {"prefix": "clip", "attention": "frame"},
        {"pool_times": True},
    ],
)
def test_settings_that_do_not_go_together(wrong):
    with pytest.raises(HarvestError):
        tower(**wrong)


# ---- model folders from UMT's files ------------------------------------------------------------------------------


def test_convert_stage_1(tmp_path):
    torch.save({"model": toy()}, tmp_path / "b16.pth")
    model, tokenizer, report = load_any(tmp_path / "b16.pth", num_frames=4, image_size=16, head_width=8)
    assert tokenizer is None and model.config.text is None
    assert set(report.ignored) == {key for key in toy() if key.startswith("clip_decoder.")}
    save_model(tmp_path / "out", model, tokenizer)
    again, _ = load_model(tmp_path / "out")
    video = torch.randint(256, (2, 4, 3, 16, 16), dtype=torch.uint8)
    encoder = load_stage1(toy(), num_frames=4, image_size=16, head_width=8)[0]
    with torch.no_grad():
        assert torch.equal(again.encode_video(video).tokens, encoder(video).tokens)
    heads = read_heads(tmp_path / "b16.pth")
    assert torch.equal(heads["heads.1.linear.weight"], toy()["clip_decoder.1.head.weight"])


@pytest.mark.skipif(
    not (SHARED / "fixtures" / "umt_stage2.safetensors").is_file(), reason="no shared fixtures"
)
@pytest.mark.parametrize("frames", [4, 12])
def test_convert_stage_2(tmp_path, frames, capsys):
    """More frames: positions go on, so that the first four see what they saw (the prefix property)."""
    from harvest.cli import main

    tensors = load_file(SHARED / "fixtures" / "umt_stage2.safetensors")
    source = {k.removeprefix("sd."): t for k, t in tensors.items() if k.startswith("sd.")}
    save_file(source, tmp_path / "b16_5m.safetensors")
    words = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
    (tmp_path / "vocab.txt").write_text("\n".join(words.get(i, f"w{i}") for i in range(120)))
    out = tmp_path / "out"
    asked = (
        f"convert {tmp_path}/b16_5m.safetensors {out} --image-size 32 --head-width 16 --num-frames {frames}"
    )
    assert main(asked.split()) == 0
    said = capsys.readouterr().out
    assert "clip_teacher.proj" in said and f"read for {frames} frames of 32 pixels" in said
    model, tokenizer = load_model(out)
    assert model.config.video.num_frames == frames and tokenizer(["w4 w7"])[0, :4].tolist() == [101, 4, 7, 0]
    video = torch.rand(1, frames, 3, 32, 32)
    keep = torch.arange(64)[None]
    with torch.no_grad():
        found = model.encode_video(video, keep).tokens
        short = load_any(tmp_path / "b16_5m.safetensors", num_frames=4, image_size=32, head_width=16)[0]
        torch.testing.assert_close(found, short.encode_video(video[:, :4]).tokens)


def test_convert_a_classifier(tmp_path, capsys):
    from harvest.cli import main

    source = toy_classifier()
    torch.save(source, tmp_path / "k400.pth")
    (tmp_path / "names.txt").write_text("\n".join("abcde"))
    asked = f"convert {tmp_path}/k400.pth {tmp_path}/out --head-width 8 --classes {tmp_path}/names.txt"
    assert main(asked.split()) == 0
    model, _ = load_model(tmp_path / "out")
    head = load_head(tmp_path / "out")
    video = torch.rand(1, 8, 3, 56, 56)
    with torch.no_grad():
        wanted = load_classifier(source, head_width=8)[0](video)
        torch.testing.assert_close(head(model.video.features(video)), wanted)
    assert head.config.names == tuple("abcde")
    (tmp_path / "names.txt").write_text("a\nb")
    assert main(asked.split()) == 2
    assert "tells 5 classes apart, the list of names has 2" in capsys.readouterr().err
