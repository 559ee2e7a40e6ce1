"""CLIP against `transformers`, in its own layout and in OpenAI's; its tokenizer against CLIPTokenizer."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import END, HEAD_WIDTH, SHARED, START, clip_folder, openai_state_dict, write_words
from transformers import CLIPTokenizer

from harvest.interfaces import HarvestError
from harvest.model.importing.pretrained import load_pretrained
from harvest.model.importing.vocabularies import clip_bpe, read_bpe_vocabulary
from harvest.model.layers import resize_positions
from harvest.model.tokenizer import Tokenizer, TokenizerConfig


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, 3, 32, 32, generator=generator)
    ids = torch.randint(0, START, (4, 16), generator=generator)
    ids[:, 0] = START
    for row, length in enumerate((3, 9, 16, 2)):
        ids[row, length - 1 :] = END
    return images, ids


def assert_parity(reference, model, images, ids):
    """Both towers' tokens and embeddings to 1e-5, and the scores."""
    with torch.no_grad():
        theirs = reference(pixel_values=images, input_ids=ids)
        tokens = reference.vision_model.post_layernorm(theirs.vision_model_output.last_hidden_state[:, 1:])
        video, text = model.encode_video(images[:, None]), model.encode_text(ids)
        scores = model.scores(video.pooled, text.pooled)
    torch.testing.assert_close(video.tokens, tokens, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(video.pooled, theirs.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(text.tokens, theirs.text_model_output.last_hidden_state, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(text.pooled, theirs.text_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(scores, theirs.logits_per_text, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_transformers_layout(tmp_path, inputs, activation):
    reference = clip_folder(tmp_path, activation=activation)
    model, tokenizer, report = load_pretrained(tmp_path)
    assert not model.training
    assert report.used == len(reference.state_dict())
    assert report.ignored == ()
    assert report.new == ("text.mask_embedding", "video.time_positions.table")
    assert model.config.video.num_frames == 1 and model.config.video.prefix == "frame"
    assert_parity(reference, model, *inputs)
    ids = tokenizer(["a cat", "ab " * 40])
    assert ids[0, 0] == START and ids[1, -1] == END and tokenizer.truncated == 1
    assert "used" in str(report)


def test_openai_layout_in_wrappers(tmp_path, inputs):
    reference = clip_folder(tmp_path)
    tensors = openai_state_dict(reference)
    sizes = {
        name: torch.tensor(n)
        for name, n in (("input_resolution", 32), ("context_length", 16), ("vocab_size", 600))
    }
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in (tensors | sizes).items()}, "epoch": 3},
        tmp_path / "w.pt",
    )
    model, _, report = load_pretrained(tmp_path / "w.pt", head_width=HEAD_WIDTH)
    assert report.ignored == ("context_length", "input_resolution", "vocab_size")
    assert any("activation quick_gelu" in note and "OpenAI's sizes" in note for note in report.notes)
    assert any("epoch" in note for note in report.notes)
    assert_parity(reference, model, *inputs)


def test_open_clip_folder_says_its_activation(tmp_path, inputs):
    (tmp_path / "hf").mkdir()
    (tmp_path / "oc").mkdir()
    reference = clip_folder(tmp_path / "hf", activation="gelu")
    folder = tmp_path / "oc"
    (tmp_path / "hf" / "bpe_simple_vocab_16e6.txt.gz").rename(folder / "bpe_simple_vocab_16e6.txt.gz")
    save_file(openai_state_dict(reference), folder / "open_clip_model.safetensors")
    config = {
        "model_cfg": {
            "embed_dim": 24,
            "vision_cfg": {
                "image_size": 32,
                "layers": 2,
                "width": 48,
                "patch_size": 8,
                "head_width": HEAD_WIDTH,
            },
            "text_cfg": {"context_length": 16, "vocab_size": 600, "width": 32, "heads": 2, "layers": 2},
        },
        "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    model, _, report = load_pretrained(folder)
    assert model.config.video.pixel_mean == (0.1, 0.2, 0.3)
    assert any("activation gelu" in note for note in report.notes)
    assert_parity(reference, model, *inputs)
    with pytest.raises(HarvestError, match="says its own"):
        load_pretrained(folder, activation="quick_gelu")
    config["model_cfg"]["vision_cfg"]["attentional_pool"] = True
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(HarvestError, match="attentional_pool"):
        load_pretrained(folder)


def test_another_image_size(tmp_path):
    reference = clip_folder(tmp_path)
    model, _, report = load_pretrained(tmp_path, image_size=48)
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        theirs = reference.vision_model(images, interpolate_pos_encoding=True).pooler_output
        theirs = torch.nn.functional.normalize(reference.visual_projection(theirs), dim=-1)
        ours = model.encode_video(images[:, None]).pooled
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert any("48 pixels" in note for note in report.notes)
    with pytest.raises(HarvestError, match="multiple"):
        load_pretrained(tmp_path, image_size=50)


def test_resize_positions_as_the_reference():
    path = SHARED / "fixtures" / "clip_teacher.safetensors"
    if not path.is_file():
        pytest.skip("no shared fixtures")
    tensors = load_file(path)
    resized = resize_positions(tensors["inflate.pos_embed_4x4"][1:], 64)
    torch.testing.assert_close(resized, tensors["inflate.pos_embed_8x8"][1:], atol=1e-6, rtol=0)


STRINGS = [
    "A man is playing the guitar.",
    "two dogs running on the beach, chasing a red ball!",
    "  Multiple   spaces\tand\nnewlines ",
    "naïve café 日本語 😀",
    "",
    "it's 12:30pm & raining; they'll've 100% gone",
    "word " * 100,
    "x_y-z/w @home #tag 3.14159",
]


@pytest.fixture(scope="module")
def real_vocabulary():
    path = SHARED / "tokenizers" / "bpe_simple_vocab_16e6.txt.gz"
    if not path.is_file():
        pytest.skip("no shared tokenizers")
    return read_bpe_vocabulary(path)


def test_ids_as_transformers(real_vocabulary):
    state = json.loads(real_vocabulary.to_str())["model"]
    theirs = CLIPTokenizer(vocab=state["vocab"], merges=[tuple(pair) for pair in state["merges"]])
    ours = Tokenizer(real_vocabulary, TokenizerConfig(clean="clip"))
    expected = theirs(STRINGS, padding="max_length", truncation=True, max_length=77)["input_ids"]
    assert ours(STRINGS).tolist() == expected
    assert ours.truncated == 1


def test_ids_as_the_reference(real_vocabulary):
    meta = json.loads((SHARED / "fixtures" / "viclip_meta.json").read_text())["tokenizer"]
    for length in (32, 77):
        tokenizer = Tokenizer(real_vocabulary, TokenizerConfig(context_length=length, pad_id=0, clean="clip"))
        for text, expected in zip(meta["sentences"], meta[f"ids{length}"], strict=True):
            # There, a text can say "the end" itself and move the place where it is read.
            if "<|endoftext|>" in text:
                assert tokenizer([text])[0].tolist().count(49407) == 1
            else:
                assert tokenizer([text])[0].tolist() == expected, text


def test_vocabulary_files_agree(tmp_path):
    """tokenizer.json, vocab.json with merges.txt and OpenAI's list are one vocabulary; ids turn back to words."""
    clip_folder(tmp_path)
    _, first, _ = load_pretrained(tmp_path)
    state = json.loads(first.core.to_str())["model"]
    (tmp_path / "bpe_simple_vocab_16e6.txt.gz").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(state["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in state["merges"]))
    _, second, _ = load_pretrained(tmp_path)
    CLIPTokenizer(vocab=state["vocab"], merges=[tuple(m) for m in state["merges"]]).save_pretrained(tmp_path)
    _, third, _ = load_pretrained(tmp_path)
    texts = ["a black cat's hat", "Über <|endoftext|> 12"]
    assert first(texts).equal(second(texts)) and first(texts).equal(third(texts))
    for tokenizer in (first, second, third):
        assert tokenizer.decode(tokenizer(["a black cat"])[0].tolist()) == "a black cat"
    (tmp_path / "vocab.json").unlink()
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(HarvestError, match="bpe_simple_vocab"):
        load_pretrained(tmp_path)


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    clip_folder(tmp_path)
    core = clip_bpe({"<|startoftext|>": 700, "<|endoftext|>": 701, "a": 0}, [])
    core.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(HarvestError, match=r"ids up to 701|ends texts"):
        load_pretrained(tmp_path)


def test_metaclip_2_has_a_tokenizer_of_its_own(tmp_path, inputs):
    """Its towers are CLIP's; a text is read at the first end token, which is not the highest id."""
    from transformers import MetaClip2Config, MetaClip2Model

    reference = clip_folder(tmp_path)
    config = reference.config.to_dict()
    for part in ("text_config", "vision_config"):
        config[part].pop("model_type", None)
    config["text_config"] |= {"eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1}
    theirs = MetaClip2Model(
        MetaClip2Config(
            text_config=config["text_config"], vision_config=config["vision_config"], projection_dim=24
        )
    ).eval()
    theirs.load_state_dict(reference.state_dict())
    theirs.save_pretrained(tmp_path)
    write_words(tmp_path, ["<s>", "<pad>", "</s>", "<unk>"], ["red", "circle", "left"], "<s> $A </s>")
    model, tokenizer, report = load_pretrained(tmp_path)
    assert report.used == len(reference.state_dict())
    ids = tokenizer(["red circle", "left", "circle red left left"])
    assert ids[1].tolist() == [0, 6, 2, *[1] * 13]
    with torch.no_grad():
        found = theirs(pixel_values=inputs[0], input_ids=ids)
    torch.testing.assert_close(model.encode_text(ids).pooled, found.text_embeds, atol=2e-6, rtol=0)
    video = model.encode_video(inputs[0][:, None]).pooled
    torch.testing.assert_close(video, found.image_embeds, atol=2e-6, rtol=0)
