"""A Harvest model as the one module of a `SentenceTransformer`.

>>> model = SentenceTransformer(FOLDER, trust_remote_code=True)
>>> model.encode(["a red circle moves to the left", "a.mp4", {"image": picture}, {"video": frames}])
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.base.modality import infer_modality
from sentence_transformers.base.modules.input_module import InputModule
from torch import Tensor

from harvest.data.show import show
from harvest.evaluation.embed import default_frames, encode_shown, mode_of
from harvest.export.hub import write_hub_files
from harvest.interfaces import HarvestError
from harvest.model.folder import load_model, read_notes
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_text import NO_TEXT_TOWER, VideoTextModel

MODALITIES = ["text", "image", "video", "message"]
"""`message` is what sentence-transformers calls a batch of several kinds; chat messages are refused."""


class VideoTextModule(InputModule):
    """Sentences, pictures, paths of videos and decoded frames become unit vectors, in batches of any mixture."""

    save_in_root = True
    modalities = MODALITIES  # type: ignore[assignment]

    def __init__(
        self, model: VideoTextModel, tokenizer: Tokenizer, notes: dict[str, Any] | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model, self.text_tokenizer, self.notes = model, tokenizer, notes or {}

    @property
    def max_seq_length(self) -> int:
        return self.text_tokenizer.config.context_length

    def get_embedding_dimension(self) -> int:
        """The entries of a vector."""
        return self.model.config.text_tower.embed_dim

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> dict[str, Any]:
        """The inputs as tensors: `input_ids` `[t, L]`, `images` `[i, 1, 3, S, S]`, `videos` `[v, T, 3, S, S]`, and
        `places` int64 `[3, n]`, the places of each in the batch (-1 behind the last)."""
        groups: dict[str, list[int]] = {"text": [], "image": [], "video": []}
        values = []
        for place, item in enumerate(inputs):
            kind = str(infer_modality(item))
            if kind not in groups:
                raise HarvestError(
                    f"expected a sentence, a picture or a video, got {kind}: encode one at a time"
                )
            groups[kind].append(place)
            values.append(_content(item))
        features: dict[str, Any] = {"places": torch.full((3, len(values)), -1)}
        for row, places in zip(features["places"], groups.values(), strict=True):
            row[: len(places)] = torch.tensor(places, dtype=torch.int64)
        if groups["text"]:
            sentences = [(prompt or "") + values[place] for place in groups["text"]]
            features["input_ids"] = self.text_tokenizer(sentences)
        frames = {"image": 1, "video": default_frames(self.model, mode_of(self.model))}
        for kind, num_frames in frames.items():
            clips = [values[place] for place in groups[kind]]
            if clips:
                shown = [
                    show(clip, num_frames=num_frames, **self.model.config.video.squares) for clip in clips
                ]
                features[f"{kind}s"] = torch.stack(shown)
        return features

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        places: Tensor = features["places"]
        pooled = torch.empty(places.shape[1], self.get_embedding_dimension(), device=places.device)
        made: dict[int, Tensor] = {}
        if "input_ids" in features:
            made[0] = self.model.encode_text(features["input_ids"]).pooled
        for row, name in ((1, "images"), (2, "videos")):
            if name in features:
                made[row] = encode_shown(self.model, features[name], mode=mode_of(self.model)).pooled
        rows = torch.cat([places[row, places[row] >= 0] for row in made])
        features["sentence_embedding"] = pooled.index_copy(
            0, rows, torch.cat([*made.values()]).to(pooled.dtype)
        )
        return features

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        write_hub_files(Path(output_path), self.model, self.text_tokenizer, notes=self.notes)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> VideoTextModule:  # type: ignore[override]
        names = ("token", "cache_folder", "revision", "local_files_only")
        where = {name: kwargs[name] for name in names if name in kwargs}
        folder = Path(str(cls.load_dir_path(model_name_or_path, subfolder=subfolder, **where)))
        model, tokenizer = load_model(folder)
        if tokenizer is None:
            raise HarvestError(f"{folder}: {NO_TEXT_TOWER}")
        return cls(model, tokenizer, read_notes(folder))


def _content(item: Any) -> Any:
    """The picture, clip or sentence in an input: `{"video": …}`, `{"array": …, "video_metadata": …}`, or itself."""
    while isinstance(item, dict):
        item = item["array"] if "array" in item else next(iter(item.values()))
    return item
