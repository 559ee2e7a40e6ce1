"""How alike a clip and its caption are to an image model: what web data sets are filtered by (InternVid-FLT)."""

from __future__ import annotations

from collections.abc import Sequence

from harvest.evaluation.embed import embed_texts, embed_videos
from harvest.interfaces import Example, OnProgress
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_text import VideoTextModel


def caption_similarities(
    model: VideoTextModel,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    *,
    num_frames: int = 4,
    batch_size: int = 32,
    workers: int = 2,
    progress: OnProgress | None = None,
) -> dict[str, float]:
    """The cosine of each row's clip, the mean of its frames seen alone, and its most similar caption, by id.

    Rows without captions, and clips that cannot be read, are left out.
    """
    captioned = [example for example in examples if example.texts]
    videos = embed_videos(
        model,
        captioned,
        mode="image",
        num_frames=num_frames,
        batch_size=batch_size,
        workers=workers,
        progress=progress,
    )
    texts = [text for example in captioned for text in example.texts]
    pooled = embed_texts(model, tokenizer, texts)
    found: dict[str, float] = {}
    first = 0
    for place, example in enumerate(captioned):
        mine = pooled[first : first + len(example.texts)]
        first += len(example.texts)
        row = int(videos.row[place])
        if row >= 0:
            found[example.id] = float((mine @ videos.pooled[row].to(mine.dtype)).max())
    return found
