from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

from harvest.data.video import write_video
from harvest.evaluation.embed import (
    cosines,
    default_frames,
    embed_texts,
    embed_videos,
    encode_clips,
)
from harvest.interfaces import Example, HarvestError
from harvest.tokens import Selection, Selector

from .conftest import SENTENCES, World

NUM_TUBELETS = 32  # of a clip of four frames


def test_unit_vectors_in_the_order_of_the_examples(world: World) -> None:
    whole = embed_videos(world.model, world.examples)
    assert whole.pooled.shape == (4, 24)
    assert whole.pooled.dtype == torch.float32
    assert whole.pooled.norm(dim=1).tolist() == pytest.approx([1] * 4)
    assert whole.row.tolist() == whole.first.tolist() == [0, 1, 2, 3]
    assert whole.broken == {}
    in_threes = embed_videos(world.model, world.examples, batch_size=3)
    assert torch.allclose(in_threes.pooled, whole.pooled, atol=1e-6)
    backwards = embed_videos(world.model, world.examples[::-1])
    assert torch.allclose(backwards.pooled.flip(0), whole.pooled, atol=1e-6)
    assert cosines(whole.pooled, whole.pooled).triu(1).max() < 0.9999


def test_a_stretch_is_encoded_once(world: World) -> None:
    video = world.examples[0].video
    examples = [
        world.examples[1],
        Example("a", video),
        Example("b", video, texts=("again",)),
        Example("c", video, start_s=0.5),
    ]
    found = embed_videos(world.model, examples)
    assert found.row.tolist() == [0, 1, 1, 2]
    assert found.first.tolist() == [0, 1, 3]
    assert not torch.allclose(found.pooled[1], found.pooled[2], atol=1e-4)


def test_broken_videos_are_named(world: World, tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"not a video")
    gone = str(tmp_path / "gone.mp4")
    examples = [Example("gone", gone), world.examples[0], Example("bad", str(bad)), Example("gone too", gone)]
    found = embed_videos(world.model, examples)
    assert found.row.tolist() == [-1, 0, -1, -1]
    assert sorted(found.broken) == ["bad", "gone", "gone too"]
    assert "no such file" in found.broken["gone"]
    with pytest.raises(HarvestError, match="none of the 2 videos"):
        embed_videos(world.model, [examples[0], examples[2]])
    with pytest.raises(HarvestError, match="empty"):
        embed_videos(world.model, [])


def test_image_mode_of_equal_frames_is_video_mode(world: World, tmp_path: Path) -> None:
    picture = torch.randint(
        256, (1, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    write_video(tmp_path / "still.mp4", picture.expand(8, -1, -1, -1), fps=8, crf=0)
    still = [Example("still", str(tmp_path / "still.mp4"))]
    as_video = embed_videos(world.model, still, mode="video").pooled
    as_images = embed_videos(world.model, still, mode="image").pooled
    baseline = embed_videos(world.image_model, still, mode="image")
    assert torch.allclose(as_video, as_images, atol=1e-4)
    assert torch.allclose(as_video, baseline.pooled, atol=1e-4)
    assert default_frames(world.image_model, "image") == 8
    assert default_frames(world.image_model, "video") == 1


def test_image_mode_is_the_mean_of_frames(world: World) -> None:
    clip = torch.randint(
        256, (2, 4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)
    )
    features = encode_clips(world.image_model, clip, mode="image")
    frames = world.image_model.encode_video(clip.flatten(0, 1)[:, None]).pooled.view(2, 4, -1)
    assert torch.allclose(features.pooled, nn.functional.normalize(frames.mean(dim=1), dim=-1), atol=1e-6)
    assert features.tokens.shape == (2, 4 * 16, 32)
    # It cannot tell the order of frames.
    backwards = encode_clips(world.image_model, clip.flip(1), mode="image")
    assert torch.allclose(features.pooled, backwards.pooled, atol=1e-6)


def test_tokens_may_be_chosen(world: World) -> None:
    whole = embed_videos(world.model, world.examples)
    all_of_them = embed_videos(world.model, world.examples, selection=Selection(budget=NUM_TUBELETS))
    assert torch.equal(all_of_them.pooled, whole.pooled)
    for selector in get_args(Selector):
        few = Selection(budget=16, selector=selector)  # half: merging cannot do more in two blocks
        some = embed_videos(world.model, world.examples, selection=few)
        assert not torch.allclose(some.pooled, whole.pooled, atol=1e-3)
        # A clip's embedding is its own, whatever it is encoded with.
        alone = embed_videos(world.model, world.examples, selection=few, batch_size=1)
        assert torch.allclose(some.pooled, alone.pooled, atol=1e-6)
    with pytest.raises(HarvestError, match="mode 'video'"):
        embed_videos(world.model, world.examples, mode="image", selection=few)
    with pytest.raises(HarvestError, match=f"budget of {NUM_TUBELETS + 1} tubelets is more than a clip has"):
        embed_videos(world.model, world.examples, selection=Selection(budget=NUM_TUBELETS + 1))


def test_embeddings_may_be_shortened(world: World) -> None:
    whole = embed_videos(world.model, world.examples).pooled
    short = embed_videos(world.model, world.examples, dim=5).pooled
    assert torch.allclose(short, nn.functional.normalize(whole[:, :5], dim=-1), atol=1e-6)
    assert embed_texts(world.model, world.tokenizer, SENTENCES, dim=5).shape == (len(SENTENCES), 5)
    for wrong in (0, whole.shape[1] + 1):
        with pytest.raises(HarvestError, match=f"dim: expected 1 to {whole.shape[1]}"):
            embed_videos(world.model, world.examples, dim=wrong)


def test_texts(world: World) -> None:
    texts = [*SENTENCES, SENTENCES[1]] * 2
    pooled = embed_texts(world.model, world.tokenizer, texts, batch_size=3)
    assert pooled.shape == (10, 24)
    assert torch.equal(pooled[1], pooled[4])
    assert torch.equal(pooled[:5], pooled[5:])
    assert torch.allclose(pooled[:4], embed_texts(world.model, world.tokenizer, SENTENCES), atol=1e-6)
    assert embed_texts(world.model, world.tokenizer, []).shape == (0, 24)


def test_bf16_is_near_and_scores_stay_fp32(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harvest.parallel._cpu_has_bf16", lambda: True)  # else it would be computed in fp32
    exact = embed_videos(world.model, world.examples)
    near = embed_videos(world.model, world.examples, precision="bf16")
    assert near.pooled.dtype == torch.float32
    assert 0 < (near.pooled - exact.pooled).abs().max() < 0.03
    assert cosines(near.pooled, exact.pooled).dtype == torch.float32


def test_the_model_is_left_as_it_was(world: World) -> None:
    world.model.train()
    embed_videos(world.model, world.examples[:1])
    assert world.model.training
    world.model.eval()
    embed_videos(world.model, world.examples[:1])
    assert not world.model.training
    (
        embed_videos(world.model, world.examples[:1]).pooled @ nn.Parameter(torch.ones(24))
    ).backward()  # a usual tensor


def test_broken_weights_are_an_error(world: World) -> None:
    weight = world.model.video.projection.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[0, 0] = float("nan")
    try:
        with pytest.raises(HarvestError, match="not finite"):
            embed_videos(world.model, world.examples[:1])
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_progress(world: World) -> None:
    calls: list[tuple[int, int]] = []
    embed_videos(
        world.model, world.examples, batch_size=3, progress=lambda done, total: calls.append((done, total))
    )
    assert calls[0] == (3, 4)
    assert calls[-1] == (4, 4)
