"""BERT folders of `transformers` as text towers: states, the word head, the tokenizer, and what is said about wrong ones."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import SHARED, randomize
from transformers import BertConfig, BertForMaskedLM, BertModel, BertTokenizerFast

from harvest.interfaces import HarvestError
from harvest.model.fusion import FusionConfig
from harvest.model.importing.bert import load_bert
from harvest.model.importing.vocabularies import bert_tokenizer
from harvest.model.joining import join, with_frames
from harvest.model.video_encoder import VideoEncoder, VideoEncoderConfig

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "red",
    "circle",
    "moves",
    "##s",
    "to",
    "the",
    "left",
]
TOWER = VideoEncoderConfig(
    image_size=16,
    patch_size=4,
    num_frames=8,
    width=24,
    depth=2,
    num_heads=2,
    mlp_width=48,
    embed_dim=24,
    prefix="none",
    pooling="mean",
    pre_norm=False,
    projection=False,
    key_bias=False,
    positions="sinusoid",
)


def bert_folder(folder, kind=BertForMaskedLM, **settings):
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=20,
        **settings,
    )
    theirs = kind(config).eval()
    randomize(theirs)
    theirs.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    return theirs


def words_of(folder):
    return load_bert(folder, fusion_depth=2, embed_dim=16, context_length=12)


def joined(folder, **settings):
    words = words_of(folder)
    return join(VideoEncoder(TOWER), words, fusion=FusionConfig(matches=True), num_frames=4), words


def test_states_of_the_text_layers_and_the_word_head(tmp_path):
    theirs = bert_folder(tmp_path)
    (model, new), words = joined(tmp_path)
    model.eval()
    assert model.config.text.depth == 2 and model.config.fusion.depth == 2
    assert model.config.fusion.tied_words and words.report.ignored == ()
    ids = words.tokenizer(["a red circle moves", "the red circles moves to the left"])
    mask = (ids != 0).long()
    with torch.no_grad():
        wanted = theirs(ids, attention_mask=mask, output_hidden_states=True)
        text = model.encode_text(ids)
        states = wanted.hidden_states[2][:, : text.tokens.shape[1]]
        torch.testing.assert_close(text.tokens, states, atol=1e-5, rtol=1e-5)
        last = wanted.hidden_states[4]
        torch.testing.assert_close(model.predict_words(last), wanted.logits, atol=1e-5, rtol=1e-5)
    assert text.mask.tolist() == (ids != 0)[:, : text.mask.shape[1]].tolist()
    assert all(name.startswith(("video.", "text.projection", "fusion.", "log_scale")) for name in new)
    crossing = {name for name in new if name.startswith("fusion.blocks")}
    assert len(crossing) == 2 * 8  # query, key and value, output, norm: weight and bias, in two layers
    assert all(".video." in name or ".norm_video." in name for name in crossing)


def test_an_untied_head_and_none(tmp_path):
    for name in ("tied", "plain"):
        (tmp_path / name).mkdir()
    bert_folder(tmp_path / "tied")
    path = tmp_path / "tied" / "model.safetensors"
    tensors = load_file(path)
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"] + 1
    save_file(tensors, path)
    (model, _), words = joined(tmp_path / "tied")
    assert not words.fusion.tied_words
    torch.testing.assert_close(model.fusion.head_words.weight, tensors["cls.predictions.decoder.weight"])
    bert_folder(tmp_path / "plain", BertModel)
    (model, new), words = joined(tmp_path / "plain")
    assert "fusion.head_dense.weight" in new and model.config.fusion.tied_words
    assert set(words.report.ignored) == {"pooler.dense.weight", "pooler.dense.bias"}


def test_norms_with_names_of_2018(tmp_path):
    bert_folder(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    expected = words_of(tmp_path).tensors
    old = {
        (n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")): t
        for n, t in tensors.items()
    }
    assert old.keys() != tensors.keys()
    save_file(old, path)
    found = words_of(tmp_path).tensors
    assert found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in found)


@pytest.mark.skipif(not (SHARED / "tokenizers").is_dir(), reason="no shared tokenizers")
def test_the_tokenizer_is_bert_s_without_its_end():
    vocabulary = SHARED / "tokenizers" / "bert-base-uncased_vocab.txt"
    theirs = BertTokenizerFast(vocab=str(vocabulary))
    ours = bert_tokenizer(vocabulary, 32)
    texts = [
        "A man is playing the guitar.",
        "Zoë’s café — naïve?!",
        "",
        "unaffable 12:30 日本",
        "x" * 120,
        "a " * 60,
    ]
    for text in texts:
        wanted = theirs(text)["input_ids"][:-1][:32]  # their last is [SEP]
        assert [i for i in ours([text])[0].tolist() if i] == wanted
    assert ours.truncated == 1
    assert ours.words("[SEP] [CLS] guitar") == ours.words("guitar")


def test_wrong_folders_are_named(tmp_path):
    bert_folder(tmp_path)
    with pytest.raises(HarvestError, match="4 layers: 4 of them cannot fuse"):
        load_bert(tmp_path, fusion_depth=4, embed_dim=16)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    missing = tensors.pop("bert.encoder.layer.3.output.dense.bias")
    save_file(tensors, path)
    with pytest.raises(HarvestError, match=r"missing \(1\): bert\.encoder\.layer\.3\.output\.dense\.bias"):
        words_of(tmp_path)
    save_file(tensors | {"bert.encoder.layer.3.output.dense.bias": missing, "extra": missing.clone()}, path)
    with pytest.raises(HarvestError, match=r"not used \(1\): extra"):
        words_of(tmp_path)
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    save_file(tensors | {"bert.encoder.layer.3.output.dense.bias": missing}, path)
    with pytest.raises(HarvestError, match="lacks"):
        words_of(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(HarvestError, match=r"vocab\.txt"):
        words_of(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    with pytest.raises(HarvestError, match="gpt2"):
        words_of(tmp_path)


def test_towers_that_cannot_be_joined(tmp_path):
    bert_folder(tmp_path)
    words = words_of(tmp_path)
    with_prefix = VideoEncoder(
        VideoEncoderConfig(image_size=16, patch_size=4, width=24, depth=1, num_heads=2)
    )
    with pytest.raises(HarvestError, match="pools by 'prefix'"):
        join(with_prefix, words, fusion=FusionConfig(), num_frames=4)
    learned = VideoEncoder(VideoEncoderConfig(**TOWER.__dict__ | {"positions": "joint"}))
    with pytest.raises(HarvestError, match="learned positions for 8 frames"):
        join(learned, words, fusion=FusionConfig(), num_frames=4)
    model, _ = join(VideoEncoder(TOWER), words, fusion=FusionConfig(), num_frames=4)
    assert with_frames(model, 12).config.video.num_frames == 12
