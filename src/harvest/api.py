"""The three things one does with a model, in one object: `harvest.load` opens it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from harvest.data.video import read_clip
from harvest.evaluation.embed import Mode, default_frames, embed_texts, embed_videos
from harvest.evaluation.word_filling import fill_mask
from harvest.interfaces import Example, HarvestError
from harvest.model.importing.pretrained import load_pretrained
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_text import VideoTextModel
from harvest.tokens import Selector, see


class VideoText:
    """A video-text model with its tokenizer. Cosines of what its methods embed say how well text and video agree."""

    def __init__(self, model: VideoTextModel, tokenizer: Tokenizer, *, mode: Mode = "video") -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.mode: Mode = mode

    def embed_videos(
        self,
        paths: Sequence[str | Path],
        *,
        budget: int | None = None,
        selector: Selector = "motion",
        dim: int | None = None,
        batch_size: int = 16,
        workers: int = 0,
    ) -> Tensor:
        """Unit vectors of whole videos, fp32 `[len(paths), E]`. A video that cannot be read raises HarvestError.

        `budget` is how many tubelets of each video are seen, chosen as `selector` says; None sees all. `dim` keeps the
        first so many entries, for models trained with nested sizes: give `embed_texts` the same.
        """
        if isinstance(paths, str | Path):
            raise HarvestError(f"embed_videos takes a list of paths: [{str(paths)!r}]")
        found = embed_videos(
            self.model,
            [Example(id=str(path), video=str(path)) for path in paths],
            mode=self.mode,
            selection=see(budget, selector),
            dim=dim,
            batch_size=batch_size,
            workers=workers,
        )
        if found.broken:
            name, reason = next(iter(found.broken.items()))
            raise HarvestError(f"{len(found.broken)} of {len(paths)} videos cannot be read; {name}: {reason}")
        return found.pooled[found.row]

    def embed_texts(self, texts: Sequence[str], *, dim: int | None = None) -> Tensor:
        """Unit vectors of sentences, fp32 `[len(texts), E]`, or their first `dim` entries."""
        if isinstance(texts, str):
            raise HarvestError(f"embed_texts takes a list of sentences: [{texts!r}]")
        return embed_texts(self.model, self.tokenizer, texts, dim=dim)

    def fill_mask(self, path: str | Path, sentence: str) -> list[tuple[str, float]]:
        """The likeliest word, with its probability, for each `[mask]` of a sentence about a video."""
        clip = read_clip(
            path,
            num_frames=default_frames(self.model, self.mode),
            image_size=self.model.config.video.image_size,
        )
        return fill_mask(self.model, self.tokenizer, clip.frames, sentence, mode=self.mode)


def load(source: str | Path) -> VideoText:
    """Open a Harvest model folder, a hub name, or any weights that `harvest convert` takes.

    An image model sees a video as the mean of its frames. The model is on the CPU; after `.model.to("cuda")` its methods
    compute there. Load or fail: HarvestError says what does not fit.
    """
    model, tokenizer, _ = load_pretrained(source)
    return VideoText(model, tokenizer, mode="image" if model.config.video.num_frames == 1 else "video")
