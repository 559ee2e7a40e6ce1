"""A model small enough for brute force, batches for it, and the same step on several processes."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harvest.interfaces import Batch, Box, Example
from harvest.model.fusion import FusionConfig
from harvest.model.inflation import as_teacher
from harvest.model.text_encoder import TextEncoderConfig
from harvest.model.video_encoder import VideoEncoderConfig
from harvest.model.video_text import ModelConfig, VideoTextModel
from harvest.objectives.classification import Classification, ClassificationConfig
from harvest.objectives.detection import Detection, DetectionConfig
from harvest.objectives.image_text import ImageTextConfig, ImageTextPretraining
from harvest.objectives.masked_alignment import MaskedAlignment, MaskedAlignmentConfig
from harvest.objectives.multimodal import Multimodal, MultimodalConfig
from harvest.objectives.multiple_choice import MultipleChoice, MultipleChoiceConfig
from harvest.objectives.post_pretraining import PostPretraining, PostPretrainingConfig
from harvest.objectives.text_store import Captions, encode_texts
from harvest.parallel import World, meet, wrap

WORDS, LENGTH = 40, 9
START, END, PAD = 0, 1, 2


def small_model(*, fusion: bool = True, num_frames: int = 4, seed: int = 0) -> VideoTextModel:
    """Every parameter random, also those that start at zero."""
    sizes = {"width": 16, "depth": 2, "num_heads": 2, "mlp_width": 32, "embed_dim": 12}
    model = VideoTextModel(
        ModelConfig(
            video=VideoEncoderConfig(image_size=16, patch_size=4, num_frames=num_frames, **sizes),
            text=TextEncoderConfig(
                vocab_size=WORDS, context_length=LENGTH, start_id=START, end_id=END, pad_id=PAD, **sizes
            ),
            fusion=FusionConfig(depth=1, num_heads=2) if fusion else None,
        )
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "log_scale":
                is_norm = "norm" in name and name.endswith("weight")
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(1 + 0.1 * noise if is_norm else 0.2 * noise)
    return model


def stage2_model(layout: str = "bert") -> VideoTextModel:
    """A model of UMT's second stage with a BERT, or with CLIP's text tower and a decoder behind it."""
    sizes = {"width": 16, "num_heads": 2, "mlp_width": 32, "embed_dim": 12}
    is_bert = layout == "bert"
    video = VideoEncoderConfig(
        image_size=16,
        patch_size=4,
        num_frames=4,
        depth=3,
        activation="gelu",
        prefix="none",
        pooling="mean",
        pre_norm=False,
        patch_bias=True,
        projection_bias=True,
        pooled_norm=True,
        pool_times=True,
        key_bias=False,
        positions="sinusoid",
        **sizes | {"width": 24},
    )
    text = TextEncoderConfig(
        vocab_size=WORDS, context_length=LENGTH, depth=2, start_id=START, end_id=END, pad_id=PAD, **sizes
    )
    if is_bert:
        text = dataclasses.replace(
            text, causal=False, norms="after", pooling="first", dropout=0.1, projection_bias=True
        )
    fusion = FusionConfig(
        depth=1, num_heads=2, layout="bert" if is_bert else "decoder", tied_words=is_bert, matches=True
    )
    torch.manual_seed(0)
    return VideoTextModel(ModelConfig(video=video, text=text, fusion=fusion))


def small_batch(clips: int, *, captions: int = 1, seed: int = 0) -> Batch:
    """Random clips; captions of different lengths; clips 0 and 1 are one video."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, WORDS, (clips, captions, LENGTH), generator=generator)
    for clip in range(clips):
        end = 3 + clip % (LENGTH - 3)
        ids[clip, :, 0], ids[clip, :, end] = START, END
        ids[clip, :, end + 1 :] = PAD
    example = torch.arange(clips)
    example[1] = 0
    return Batch(
        video=torch.randint(256, (clips, 4, 3, 16, 16), generator=generator, dtype=torch.uint8),
        text_ids=ids,
        example=example,
        caption=torch.arange(clips * captions).view(clips, captions),
        label=torch.arange(clips) % 2,
    )


def objective_of(kind: str) -> nn.Module:
    """Nothing about these depends on random draws, so that ranks see what one process sees."""
    if kind in ("image_text", "image_text_sigmoid"):
        image_text = ImageTextConfig(
            drop_ratio=0.0, contrastive_loss="sigmoid" if kind == "image_text_sigmoid" else "softmax"
        )
        return ImageTextPretraining(image_text, small_model(fusion=False), seed=0)
    if kind == "alignment":
        student = small_model(fusion=False)
        config = MaskedAlignmentConfig(num_layers=2, drop_ratio=0.0, drop_path=0.0)
        torch.manual_seed(0)
        teacher = as_teacher(small_model(fusion=False, num_frames=1, seed=1))
        return MaskedAlignment(config, student, teacher, seed=0)
    if kind == "multimodal":
        config = MultimodalConfig(
            num_layers=2, drop_ratio=0.0, drop_path=0.0, matching_weight=0.0, masked_words_weight=0.0
        )
        teacher = as_teacher(small_model(fusion=False, num_frames=1, seed=1))
        made = Multimodal(config, stage2_model(), teacher, seed=0)
        return made.eval()  # without dropout
    if kind in ("classification", "detection"):
        torch.manual_seed(0)
        if kind == "classification":
            plain = ClassificationConfig(
                mixup=0.0, cutmix=0.0, random_erasing=0.0, drop_path=0.0, head_scale=1.0
            )
            return Classification(plain, small_model(fusion=False), ("a", "b"), seed=0)
        boxes = [Box((0.1 * n, 0.0, 0.1 * n + 0.2, 0.7), (n % 2,)) for n in range(8)]
        clips = [
            Example(str(n), f"{n}.mp4", boxes=tuple(boxes[n % 3 :])) for n in range(8)
        ]  # 8, 7, 6, 8, … boxes
        still_sets = DetectionConfig(flip=False, drop_path=0.0)
        return Detection(still_sets, small_model(fusion=False), ("a", "b"), clips, seed=0)
    if kind == "choice":
        return MultipleChoice(MultipleChoiceConfig(), small_model(fusion=False), seed=0)
    base = PostPretrainingConfig(drop_ratio=0.0, text_mask_ratio=1.0)
    changes = {
        "contrastive": {"masked_words_weight": 0.0},
        "sigmoid": {"masked_words_weight": 0.0, "contrastive_loss": "sigmoid", "text_tower": "trained"},
        "bank": {"masked_words_weight": 0.0, "cache_texts": True, "text_bank": 7, "dims": (4,)},
        "sigmoid_bank": {
            "masked_words_weight": 0.0,
            "contrastive_loss": "sigmoid",
            "cache_texts": True,
            "text_bank": 7,
        },
        "masked_words": {"contrastive_weight": 0.0},
        "both": {},
        "both_trained": {"text_tower": "trained"},
    }[kind]
    config = dataclasses.replace(base, **changes)
    model = small_model(fusion=config.masked_words_weight > 0)
    made = PostPretraining(config, model, seed=0)
    if config.cache_texts:
        world = small_batch(12, captions=2)
        made.captions = encoded_captions(model, world)
    return made


def encoded_captions(model: VideoTextModel, batch: Batch) -> Captions:
    """All captions of a batch, in the order of their numbers."""
    pooled = encode_texts(model, batch.text_ids.flatten(0, 1))
    clips = batch.example.repeat_interleave(batch.text_ids.shape[1])
    return Captions(len(pooled), pooled.__getitem__, clips.__getitem__)


def with_rows(batch: Batch, captions: Captions) -> Batch:
    """The batch with the rows of its captions, as workers bring them."""
    return batch._replace(stored=captions.pooled(batch.caption).view(torch.uint8))


def loss_and_gradients(objective: nn.Module, step_of: nn.Module, batch: Batch) -> dict[str, Tensor]:
    captions = getattr(objective, "captions", None)
    losses = step_of(batch if captions is None else with_rows(batch, captions), 0)
    losses.total.backward()
    found = {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}
    return {"loss": losses.total.detach(), **found}


def still(batch: Batch) -> Batch:
    """All frames of a clip equal, so that it does not matter which one is drawn."""
    return batch._replace(video=batch.video[:, :1].expand(-1, 4, -1, -1, -1).contiguous())


def on_a_rank(rank: int, size: int, kinds: tuple[str, ...], folder: str, clips: int) -> None:
    torch.set_num_threads(1)
    meet(dist.FileStore(f"{folder}/meet", size), rank, size)
    batch = still(small_batch(clips, captions=2))
    mine = Batch(*(tensor[rank::size] for tensor in batch))
    for kind in kinds:
        objective = objective_of(kind)
        found = loss_and_gradients(objective, wrap(objective, World(rank, size)), mine)
        total = found.pop("loss").clone()
        dist.all_reduce(total)
        if rank == 0:
            torch.save({"loss": total / size, **found}, Path(folder) / f"{kind}.pt")
    dist.barrier()
    os._exit(0)  # gloo's threads now and then abort a process that tears them down at its end
