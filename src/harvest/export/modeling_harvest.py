"""A Harvest model for `transformers`. This file is copied into exported model folders and needs `harvest-video` installed.

>>> model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)
>>> processor = AutoProcessor.from_pretrained(FOLDER, trust_remote_code=True)
>>> inputs = processor(text=["a red circle moves to the left"], videos=["a.mp4"])
>>> model(**inputs).logits_per_text
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature, PretrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils.generic import ModelOutput
from transformers.utils.hub import cached_file

from harvest.data.show import show
from harvest.evaluation.embed import encode_shown, mode_of
from harvest.export.hub import write_hub_files
from harvest.model.folder import NOTES, sizes_of
from harvest.model.importing.vocabularies import read_tokenizer
from harvest.model.tokenizer import Tokenizer, TokenizerConfig
from harvest.model.video_text import VideoTextModel


class HarvestConfig(PretrainedConfig):  # type: ignore[no-untyped-call]
    """The config.json of a Harvest model folder."""

    model_type = "harvest-video"


@dataclass
class HarvestOutput(ModelOutput):  # type: ignore[no-untyped-call]
    """Scaled cosines `[texts, videos]` and the unit vectors `[n, E]` that they are of."""

    logits_per_text: Tensor | None = None
    logits_per_video: Tensor | None = None
    text_embeds: Tensor | None = None
    video_embeds: Tensor | None = None


class HarvestModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """A video tower and a text tower; `harvest` is the same model, with the same weights, under Harvest's interface."""

    config_class = HarvestConfig
    main_input_name = "pixel_values_videos"
    harvest: VideoTextModel
    fixed_tables: dict[str, Tensor]
    text_tokenizer: Tokenizer | None

    def __init__(self, config: HarvestConfig) -> None:
        super().__init__(config)
        sizes, _ = sizes_of(config.to_dict(), f"{config.name_or_path}/config.json")
        with torch.device("cpu"):  # from_pretrained builds on no device, and would leave fixed tables empty
            harvest = VideoTextModel(sizes)
        weights = harvest.state_dict()
        tables = {name: table.clone() for name, table in harvest.named_buffers() if name not in weights}
        # The dictionaries themselves are shared, so that a weight which is replaced in one is replaced in the other.
        self.__dict__.update(harvest=harvest, _modules=harvest._modules, _parameters=harvest._parameters)
        self.__dict__.update(fixed_tables=tables, text_tokenizer=None)
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """`transformers`' own, which empties what is computed and not stored: pixel statistics, fixed positions."""
        found = super().from_pretrained(*args, **kwargs)
        model = found[0] if isinstance(found, tuple) else found
        source = HarvestProcessor.from_pretrained(model.config.name_or_path)
        model.__dict__["text_tokenizer"] = source.text_tokenizer
        buffers = dict(model.named_buffers())
        with torch.no_grad():
            for name, table in model.fixed_tables.items():
                buffers[name].copy_(table)
        return found

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """`transformers`' own; besides, the folder is one that Harvest opens, with new checksums and a new fingerprint."""
        super().save_pretrained(save_directory, **kwargs)
        if self.text_tokenizer is not None:
            notes = {name: getattr(self.config, name) for name in NOTES if hasattr(self.config, name)}
            write_hub_files(Path(save_directory), self.harvest, self.text_tokenizer, notes=notes)

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Every weight comes from the folder; those of a new model were drawn when it was built."""

    def train(self, mode: bool = True) -> "HarvestModel":
        self.harvest.training = mode
        return super().train(mode)

    def get_text_features(self, input_ids: Tensor) -> Tensor:
        """Unit vectors `[B, E]` of texts `[B, L]`."""
        return self.harvest.encode_text(input_ids).pooled

    def get_video_features(self, pixel_values_videos: Tensor) -> Tensor:
        """Unit vectors `[B, E]` of clips uint8 `[B, T, 3, S, S]`; an image model gives the mean of its frames'."""
        return encode_shown(self.harvest, pixel_values_videos, mode=mode_of(self.harvest)).pooled

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Unit vectors `[B, E]` of pictures uint8 `[B, 3, S, S]`."""
        return self.harvest.encode_video(pixel_values[:, None]).pooled

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        pixel_values: Tensor | None = None,
        **_: Any,
    ) -> HarvestOutput:
        """Embed texts, videos or pictures; scores where there are texts and one of the others."""
        videos = texts = scores = None
        if pixel_values_videos is not None:
            videos = self.get_video_features(pixel_values_videos)
        elif pixel_values is not None:
            videos = self.get_image_features(pixel_values)
        if input_ids is not None:
            texts = self.get_text_features(input_ids)
        if texts is not None and videos is not None:
            scores = self.harvest.scores(videos, texts)
        return HarvestOutput(scores, None if scores is None else scores.T, texts, videos)


class HarvestProcessor(ProcessorMixin):
    """Texts to ids and clips to frames, as the model was trained."""

    def __init__(self, settings: dict[str, Any], tokenizer: Tokenizer) -> None:
        self.settings, self.chat_template = settings, None
        self.text_tokenizer = tokenizer

    @classmethod
    def get_attributes(cls) -> list[str]:
        return []

    @classmethod
    def from_pretrained(cls, name: Any, **kwargs: Any) -> "HarvestProcessor":  # type: ignore[override]
        """`kwargs` are those of `transformers.utils.cached_file`: revision, cache_dir, token, …"""
        kwargs.pop("trust_remote_code", None)
        path, core = (
            cached_file(name, file, **kwargs) for file in ("processor_config.json", "tokenizer.json")
        )
        assert path is not None and core is not None  # it raises otherwise
        settings = json.loads(Path(path).read_text())
        return cls(settings, Tokenizer(read_tokenizer(Path(core)), TokenizerConfig(**settings["tokenizer"])))

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **_: Any) -> list[str]:
        if push_to_hub:
            raise NotImplementedError("upload with `harvest push FOLDER NAME`")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        if self._auto_class is not None:
            custom_object_save(self, str(folder))
        (folder / "processor_config.json").write_text(json.dumps(self.settings, indent=1))
        self.text_tokenizer.save(folder / "tokenizer.json")
        return [str(folder / name) for name in ("processor_config.json", "tokenizer.json")]

    def __call__(self, text: Any = None, images: Any = None, videos: Any = None, **_: Any) -> BatchFeature:
        """Lists of sentences, of pictures and of clips: paths, Pillow pictures, uint8 arrays or tensors, lists of frames."""
        found: dict[str, Tensor] = {}
        settings = self.settings
        if text is not None:
            found["input_ids"] = self.text_tokenizer([text] if isinstance(text, str) else list(text))
        if images is not None:
            shown = [show(image, num_frames=1, **settings["squares"])[0] for image in images]
            found["pixel_values"] = torch.stack(shown)
        if videos is not None:
            shown = [show(clip, num_frames=settings["num_frames"], **settings["squares"]) for clip in videos]
            found["pixel_values_videos"] = torch.stack(shown)
        return BatchFeature(found)
