"""Filling hidden words of sentences with the fusion decoder.

Shapes: b sentences, L words, m hidden words of each, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor

from harvest.evaluation.clips import evaluating
from harvest.evaluation.embed import Mode, encode_clips
from harvest.interfaces import HarvestError, TextFeatures, VideoFeatures
from harvest.model import prompt
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_text import VideoTextModel
from harvest.parallel import Precision


def fill_mask(
    model: VideoTextModel,
    tokenizer: Tokenizer,
    video: Tensor,
    sentence: str,
    *,
    mode: Mode = "video",
    precision: Precision = "fp32",
) -> list[tuple[str, float]]:
    """The likeliest word, and its probability, at every `[mask]` of a sentence, shown one clip `[T, 3, H, W]`."""
    return [
        words[0]
        for words in likeliest_words(model, tokenizer, video, sentence, mode=mode, precision=precision)
    ]


def likeliest_words(
    model: VideoTextModel,
    tokenizer: Tokenizer,
    video: Tensor,
    sentence: str,
    *,
    most: int = 1,
    mode: Mode = "video",
    precision: Precision = "fp32",
) -> list[list[tuple[str, float]]]:
    """For every `[mask]` of a sentence, shown one clip `[T, 3, H, W]`, the `most` likeliest words with their
    probabilities, the likeliest first."""
    need_fusion(model)
    if not prompt.has_mask(sentence):
        raise HarvestError(f"there is no [mask] to fill in {sentence!r}")
    features = encode_clips(model, video[None], mode=mode, precision=precision)
    with evaluating(model, precision):
        scores = hidden_word_scores(model, features, masked_ids(model, tokenizer, sentence)[None], [0], [0])
    best = scores.softmax(dim=-1).topk(most)
    return [
        [(tokenizer.decode([number]), value) for number, value in zip(*row, strict=True)]
        for row in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def masked_ids(model: VideoTextModel, tokenizer: Tokenizer, sentence: str, *, num_hidden: int = 1) -> Tensor:
    """Ids `[L]` of a sentence with `num_hidden` hidden words in place of every `[mask]` (`model.prompt`)."""
    return prompt.masked_ids(
        model.config.text_tower, tokenizer, sentence, mask_id=model.mask_id, num_hidden=num_hidden
    )


def need_fusion(model: VideoTextModel) -> None:
    """Raise HarvestError for a model that cannot fill in words."""
    if model.fusion is None:
        raise HarvestError(
            "this model cannot fill in words: it has no fusion decoder. Post-train it with masked words first "
            "(an image model has none), or ask for retrieval, choice or recognition, which need only embeddings."
        )


def hidden_word_scores(
    model: VideoTextModel, video: VideoFeatures, text_ids: Tensor, clips: list[int], texts: list[int]
) -> Tensor:
    """Scores of the vocabulary at every hidden word, fp32 `[M, V]`: clip `clips[i]` fused with `text_ids[texts[i]]`.

    A text is encoded once, however many clips it is fused with. Call it under `evaluating`.
    """
    text_ids = text_ids.to(video.tokens.device)
    text = model.encode_text(text_ids)
    states = model.fuse(video.rows(clips), TextFeatures(*(part[texts] for part in text)))
    hidden = (text_ids[texts] == model.mask_id)[:, : states.shape[1]]  # padding common to all is left out
    return model.predict_words(states[hidden]).float()
