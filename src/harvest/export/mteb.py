"""A Harvest model for MTEB, the Massive Text Embedding Benchmark: its tasks of texts, pictures and videos.

>>> model = encoder("runs/demo/model", "user/my-model")                       # doctest: +SKIP
>>> tasks = mteb.get_tasks(modalities=["text", "video"], exclusive_modality_filter=True)  # doctest: +SKIP
>>> mteb.evaluate(model, tasks)                                               # doctest: +SKIP

Harvest itself reads the videos and picks the frames, as `harvest.load(…).embed_videos` does. torchcodec, with which
MTEB reads them, is not needed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from datasets import Video
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from torch import Tensor
from torch.utils.data import DataLoader

import harvest
from harvest.interfaces import HarvestError
from harvest.model.folder import digest_of
from harvest.tokens import Selector

BATCH = 32
"""Rows read at once where MTEB does not say."""


class HarvestEncoder(AbsEncoder):
    """`harvest.VideoText` as MTEB calls models. A row of several modalities is the sum of their vectors, as of its CLIPs."""

    def __init__(
        self, model: harvest.VideoText, meta: ModelMeta, *, budget: int | None, selector: Selector
    ) -> None:
        self.video_text = model
        self.mteb_model_meta = meta
        self.budget, self.selector = budget, selector

    def encode(self, inputs: DataLoader, **_: Any) -> Tensor:
        """Vectors fp32 `[n, E]` of the rows of a loader, of unit length where rows have one modality."""
        dataset: Any = inputs.dataset
        readers: dict[str, Callable[[list[Any]], Tensor]] = {
            "text": self.video_text.embed_texts,
            "image": self.video_text.embed_images,
            "video": self._embed_videos,
        }
        present = [name for name in readers if name in dataset.column_names]  # of a row some may be None
        if not present or "audio" in dataset.column_names:
            raise HarvestError(
                f"expected rows of {', '.join(readers)} without audio, got columns {', '.join(dataset.column_names)}"
            )
        if "video" in present:  # their bytes or paths, not MTEB's decoders
            dataset = dataset.cast_column("video", Video(decode=False))
        parts = [torch.empty(0, self.video_text.embed_dim)]
        for rows in DataLoader(dataset, batch_size=inputs.batch_size or BATCH, collate_fn=list):
            vectors = torch.zeros(len(rows), self.video_text.embed_dim)
            for name in present:
                places = [place for place, row in enumerate(rows) if row[name] is not None]
                if places:
                    vectors[places] += readers[name]([rows[place][name] for place in places])
            parts.append(vectors)
        return torch.cat(parts)

    def _embed_videos(self, videos: list[dict[str, Any]]) -> Tensor:
        """Of videos as `datasets` stores them: the bytes of a file, or its path."""
        with tempfile.TemporaryDirectory() as folder:
            paths = []
            for number, video in enumerate(videos):
                path = Path(folder, f"{number}.video")
                if video["bytes"] is None:
                    path = Path(video["path"])
                else:
                    path.write_bytes(video["bytes"])
                paths.append(path)
            return self.video_text.embed_videos(paths, budget=self.budget, selector=self.selector)


def encoder(
    source: str | Path,
    name: str,
    *,
    budget: int | None = None,
    selector: Selector = "motion",
    training_sets: Iterable[str] | None = None,
    device: str = "auto",
) -> HarvestEncoder:
    """The model that `source` names, as `harvest.load` takes it, for `mteb.evaluate`.

    `name` (user/name) and the hash of the weights, as revision, name its results; `budget` and `selector` are those of
    `VideoText.embed_videos`. `training_sets` are the names of MTEB's tasks that the model was trained on; None: not
    known.
    """
    if "/" not in name:
        raise HarvestError(f"{name!r}: MTEB names models user/name")
    model = harvest.load(source, device=device)
    config = model.model.config
    size = sum(p.numel() for p in model.model.parameters())
    meta = ModelMeta(
        loader=None,
        name=name,
        revision=digest_of(model.model)[:40],
        release_date=None,
        languages=None,
        n_parameters=size,
        memory_usage_mb=size * 4 / 2**20,
        max_tokens=config.text_tower.context_length,
        embed_dim=model.embed_dim,
        license=None,
        open_weights=None,
        public_training_code=None,
        public_training_data=None,
        framework=["PyTorch"],
        similarity_fn_name=ScoringFunction.COSINE,
        use_instructions=False,
        training_datasets=None if training_sets is None else set(training_sets),
        modalities=["text", "image", "video"],
        experiment_kwargs=None if budget is None else {"budget": budget, "selector": selector},
    )
    return HarvestEncoder(model, meta, budget=budget, selector=selector)
