"""SigLIP against `transformers`."""

import pytest
import tokenizers
import torch
from toys import randomize, siglip_folder
from transformers import Siglip2Config, Siglip2Model

from harvest.interfaces import HarvestError
from harvest.model.importing.pretrained import load_pretrained
from harvest.tokens import Selection, choose


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


def test_naflex_at_its_square_grid(tmp_path):
    """SigLIP 2's NaFlex: another order of pixels, a grid from the number of patches."""
    folder, plain = tmp_path / "naflex", tmp_path / "plain"
    for path in (folder, plain):
        path.mkdir()
        siglip_folder(path)
    (folder / "model.safetensors").unlink()
    shape = {"num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 72, "num_attention_heads": 3}
    theirs = Siglip2Model(
        Siglip2Config(
            text_config={"vocab_size": 60, "max_position_embeddings": 12, "projection_size": 48, **shape},
            vision_config={"num_patches": 16, "patch_size": 8, **shape},
        )
    ).eval()
    randomize(theirs)
    theirs.save_pretrained(folder)
    model, tokenizer, report = load_pretrained(folder)
    assert report.used == len(theirs.state_dict()) and model.config.video.image_size == 32
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    patches = images.view(3, 3, 4, 8, 4, 8).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    ids = tokenizer(["red circle", "moves to the left"])
    with torch.no_grad():
        found = theirs(
            pixel_values=patches,
            pixel_attention_mask=torch.ones(3, 16, dtype=torch.int32),
            spatial_shapes=torch.tensor([[4, 4]] * 3),
            input_ids=ids,
        )
        video, text = model.encode_video(images[:, None]), model.encode_text(ids)
    torch.testing.assert_close(video.pooled, found.image_embeds, atol=2e-6, rtol=0)
    torch.testing.assert_close(text.pooled, found.text_embeds, atol=2e-6, rtol=0)


def test_pixels_that_fill_no_patch_are_not_used(tmp_path):
    """384 pixels with patches of 14 are 27 x 27 patches: here 37 with 8."""
    model = siglip_folder(tmp_path, image_size=37)
    ours, _, _ = load_pretrained(tmp_path)
    images = torch.randn(2, 3, 37, 37, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = model.get_image_features(pixel_values=images)
        theirs = getattr(theirs, "pooler_output", theirs)
        found = ours.encode_video(images[:, None])
    expected = torch.nn.functional.normalize(theirs, dim=-1)
    torch.testing.assert_close(found.pooled, expected, atol=2e-6, rtol=0)
    assert ours.num_tubelets(images[:, None]) == found.tokens.shape[1] == 16
    keep = motion_keep_of(ours, images)
    assert keep.shape == (1, 20) and int(keep.max()) < 32


def motion_keep_of(model, images):
    video = images[None]
    choice = Selection(budget=20, selector="motion")
    return choose(choice, video, model.grid(video), generator=torch.Generator())
