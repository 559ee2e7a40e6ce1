"""SigLIP against `transformers`."""

import pytest
import tokenizers
import torch
from toys import siglip_folder

from harvest.interfaces import HarvestError
from harvest.model.importing.pretrained import load_pretrained


def test_both_towers_and_scores(tmp_path):
    reference = siglip_folder(tmp_path)
    model, tokenizer, report = load_pretrained(tmp_path)
    assert report.used == len(reference.state_dict()) and report.ignored == ()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, 3, 32, 32, generator=generator)
    ids = torch.cat([tokenizer(["A red circle, moves!"]), torch.randint(0, 60, (3, 12), generator=generator)])
    with torch.no_grad():
        theirs = reference(pixel_values=images, input_ids=ids)
        video, text = model.encode_video(images[:, None]), model.encode_text(ids)
        scores = model.scores(video.pooled, text.pooled)
    last = theirs.vision_model_output.last_hidden_state
    torch.testing.assert_close(video.tokens, last, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(video.pooled, theirs.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(text.tokens, theirs.text_model_output.last_hidden_state, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(text.pooled, theirs.text_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(scores, theirs.logits_per_text, atol=2e-4, rtol=1e-5)


def test_texts_are_cleaned_and_padded_as_trained(tmp_path):
    siglip_folder(tmp_path)
    model, tokenizer, _ = load_pretrained(tmp_path)
    assert tokenizer.config.clean == "siglip" and tokenizer.config.pad_id == 1
    assert tokenizer(["A Red circle."])[0].tolist() == [2, 28, 29, *[1] * 9]
    assert model.config.video.pixel_mean == (0.5, 0.5, 0.5)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]}'
    )
    model, _, report = load_pretrained(tmp_path)
    assert model.config.video.pixel_mean == (0.1, 0.2, 0.3)
    assert not any("pixel" in note for note in report.notes)


def test_siglip2_texts_are_lower_case(tmp_path):
    siglip_folder(tmp_path)
    core = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    core.add_special_tokens(["<pad>", "<eos>"])
    core.post_processor = tokenizers.processors.TemplateProcessing(single="$A")  # as not every release has it
    core.save(str(tmp_path / "tokenizer.json"))
    model, tokenizer, _ = load_pretrained(tmp_path)
    end, pad = core.token_to_id("<eos>"), core.token_to_id("<pad>")
    assert tokenizer(["RED Circle"])[0].tolist() == [28, 29, end, *[pad] * 9]
    assert model.config.text.end_id == end and model.config.text.pad_id == pad


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_remedy_for_a_sentencepiece_model(tmp_path):
    """What the error says turns spiece.model into a tokenizer.json with the ids of SiglipTokenizer."""
    sentencepiece = pytest.importorskip("sentencepiece")
    from transformers import SiglipTokenizer, T5Tokenizer

    siglip_folder(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    texts = ["a red circle moves to the left", "two dogs run", "it's a very long day", "café blue"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 50),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=40,
        hard_vocab_limit=False,
        pad_id=-1,
        bos_id=-1,
        eos_id=1,
        unk_id=2,
        minloglevel=2,
    )
    with pytest.raises(HarvestError, match="T5Tokenizer"):
        load_pretrained(tmp_path)
    T5Tokenizer.from_pretrained(tmp_path, extra_ids=0, pad_token="</s>").save_pretrained(tmp_path)
    model, tokenizer, _ = load_pretrained(tmp_path)
    theirs = SiglipTokenizer(str(tmp_path / "spiece.model"))
    texts += ["A RED circle!", "  two   dogs ", "zebra: 12, naïve", "", "dog " * 20]
    expected = theirs(texts, padding="max_length", truncation=True, max_length=12)["input_ids"]
    assert tokenizer(texts).tolist() == expected
    assert model.config.text.pad_id == 1
