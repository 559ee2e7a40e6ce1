"""ONNX Runtime gives the vectors that PyTorch gives: every family, budget, number of frames, from pixels and from files."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import harvest
from harvest.evaluation.embed import encode_clips, mode_of
from harvest.model.folder import load_model
from harvest.model.video_text import VideoTextModel
from harvest.tokens import Selection

from .conftest import SENTENCES, moving, small_model

for library in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(library)

import onnxruntime  # noqa: E402

from harvest.export.onnx import OnnxOptions, TextGraph, VideoGraph, export_onnx, write_graph  # noqa: E402
from harvest.export.runner import OnnxVideoText, read_video  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of the exporter

logging.getLogger("torch.__trace").disabled = True  # pytest would format every step of the tracer
TOLERANCE = 1e-4
FAMILIES: dict[str, dict[str, object]] = {
    "harvest": {"time_positions": "gated"},
    "clip, a table of times": {"activation": "gelu"},
    "viclip": {"prefix": "clip"},
    "siglip": {"prefix": "none", "pooling": "attention", "pre_norm": False, "activation": "gelu_tanh"},
    "umt": {
        "prefix": "none",
        "pooling": "mean",
        "positions": "sinusoid",
        "key_bias": False,
        "pooled_norm": True,
    },
    "eva": {"rotary_grid": 4, "gated_mlp": True, "inner_norms": True, "width": 48, "num_heads": 3},
    "ragged sides": {"image_size": 35},
}
LOOKED_AT_WHOLE: dict[str, dict[str, object]] = {
    "a frame at a time": {"attention": "frame"},
    "an image model": {"num_frames": 1},
    "umt, times apart": {"prefix": "none", "pooling": "mean", "positions": "sinusoid", "pool_times": True},
}


class Together(nn.Module):
    """Several models in one graph: exporting each alone would take as long for each."""

    def __init__(self, graphs: list[VideoGraph]) -> None:
        super().__init__()
        self.graphs = nn.ModuleList(graphs)

    def forward(self, video: Tensor, slots: Tensor | None = None) -> tuple[Tensor, ...]:
        if slots is None:
            return tuple(graph(video[..., : graph.side, : graph.side]) for graph in self.graphs)
        keep = self.graphs[0].keep(video, slots)  # they all have the same grid
        return tuple(
            graph.tower(video[..., : graph.side, : graph.side], keep).pooled for graph in self.graphs
        )


def together(
    families: dict[str, dict[str, object]], options: OnnxOptions, path: Path
) -> tuple[list[VideoTextModel], onnxruntime.InferenceSession]:
    models = [small_model(seed, **{"depth": 1, **family})[0] for seed, family in enumerate(families.values())]
    graphs = [VideoGraph(model, options) for model in models]
    for graph in graphs:
        graph.side = graph.tower.config.image_size
    largest = max(graphs, key=lambda graph: graph.side)
    write_graph(Together(graphs), largest.example(), largest.dynamic(), path, int8=False)
    return models, onnxruntime.InferenceSession(str(path))


def clips(num_frames: int, seed: int = 0, num_clips: int = 3) -> Tensor:
    """One clip with noise, one in which something moves, one that stands still."""
    generator = torch.Generator().manual_seed(seed)
    video = torch.randint(0, 256, (num_clips, num_frames, 3, 35, 35), generator=generator, dtype=torch.uint8)
    video[1] = moving(seed, num_frames, (35, 35)) if num_frames < 12 else video[1]
    video[2] = video[2, :1]
    return video


def compare(
    models: list[VideoTextModel],
    session: onnxruntime.InferenceSession,
    frames: list[int],
    selector: str | None,
) -> None:
    for num_frames in frames:
        side = max(model.config.video.image_size for model in models)
        video = clips(num_frames)[..., :side, :side]
        most = models[0].num_tubelets(video)
        for budget in (None,) if selector is None else (5, 16, most):
            inputs = {"video": video.numpy()}
            selection = None
            if selector is not None:
                inputs["slots"] = np.zeros(budget, dtype=np.int64)
                selection = Selection(budget=budget, selector=selector)
            for model, found in zip(models, session.run(None, inputs), strict=True):
                side = model.config.video.image_size
                seen = encode_clips(model, video[..., :side, :side], mode=mode_of(model), selection=selection)
                assert np.abs(found - seen.pooled.numpy()).max() <= TOLERANCE, (num_frames, budget)


@pytest.mark.parametrize("selector", ["motion", "random", "tube"])
def test_every_family_with_tokens_chosen_in_the_graph(selector: str, tmp_path: Path) -> None:
    families = FAMILIES if selector == "motion" else {"harvest": FAMILIES["harvest"]}
    models, session = together(families, OnnxOptions(budget=16, selector=selector), tmp_path / "all.onnx")
    compare(models, session, [1, 4, 7], selector)


def test_every_family_that_sees_all(tmp_path: Path) -> None:
    models, session = together(FAMILIES | LOOKED_AT_WHOLE, OnnxOptions(), tmp_path / "all.onnx")
    compare(models, session, [1, 4, 7], None)


def test_tubelets_of_two_frames_and_joint_positions(tmp_path: Path) -> None:
    families = {"tubelets": {"tubelet_size": 2}, "joint": {"tubelet_size": 2, "positions": "joint"}}
    models, session = together(
        {"tubelets": families["tubelets"]}, OnnxOptions(budget=16), tmp_path / "a.onnx"
    )
    compare(models, session, [4, 8], "motion")
    models, session = together({"joint": families["joint"]}, OnnxOptions(budget=16), tmp_path / "b.onnx")
    compare(models, session, [4], "motion")


TEXTS: dict[str, dict[str, object]] = {
    "clip": {},
    "siglip": {"pooling": "last", "causal": False, "activation": "gelu_tanh"},
    "bert": {"pooling": "first", "causal": False, "norms": "after", "end_id": None},
    "coca": {"class_token": True, "context_length": 13},
    "mean": {"pooling": "mean", "causal": False},
}


class TextsTogether(nn.Module):
    def __init__(self, models: list[VideoTextModel]) -> None:
        super().__init__()
        self.graphs = nn.ModuleList(TextGraph(model) for model in models)

    def forward(self, text_ids: Tensor) -> tuple[Tensor, ...]:
        return tuple(graph(text_ids) for graph in self.graphs)


def test_every_family_of_texts(tmp_path: Path) -> None:
    pairs = [small_model(seed, texts=texts, depth=1) for seed, texts in enumerate(TEXTS.values())]
    models, tokenizer = [model for model, _ in pairs], pairs[0][1]
    shapes = {"text_ids": {0: torch.export.Dim("texts")}}
    write_graph(TextsTogether(models), (tokenizer(SENTENCES[:2]),), shapes, tmp_path / "all.onnx", int8=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "all.onnx"))
    for sentences in (SENTENCES, ["", "a red " * 20], SENTENCES[:1]):
        ids = tokenizer(sentences)
        found = session.run(None, {"text_ids": ids.numpy()})
        for name, model, vectors in zip(TEXTS, models, found, strict=True):
            with torch.inference_mode():
                expected = model.encode_text(ids).pooled.numpy()
            assert np.abs(vectors - expected).max() <= TOLERANCE, name


def test_the_runner_is_harvest_without_torch(
    exported: Path, video_model: Path, clips: list[Path], picture: Path
) -> None:
    own, other = harvest.load(video_model, device="cpu"), OnnxVideoText(exported)
    texts = [*SENTENCES, "A  red\tCIRCLE <end> moves", ""]
    assert np.abs(other.embed_texts(texts) - own.embed_texts(texts).numpy()).max() <= TOLERANCE
    for budget in (24, 64):
        seen = own.embed_videos(clips, budget=budget).numpy()
        assert np.abs(other.embed_videos(clips, budget=budget) - seen).max() <= TOLERANCE
    assert (
        other.embed_videos(clips).shape == other.embed_videos([*clips[:1]] * 3, batch_size=2).shape == (3, 24)
    )
    assert other.embed_images([picture]).shape == (1, 24) and other.embed_texts([]).shape == (0, 24)
    code = (
        "import sys; sys.modules['torch'] = None; sys.path.insert(0, sys.argv[1]); import runner; "
        "runner.main(sys.argv[2:]); print(runner.__file__)"
    )
    command = [sys.executable, "-c", code, str(exported), SENTENCES[0], *map(str, clips)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4 and lines[-1] == str(exported / "runner.py")
    for wrong, why in ((0, "budget"), (65, "budget")):
        with pytest.raises(ValueError, match=why):
            other.embed_videos(clips, budget=wrong)
    with pytest.raises(ValueError, match="at most 64"):
        other.embed_frames(np.zeros((1, 65, 3, 32, 32), dtype=np.uint8))


def test_frames_of_files_are_those_of_harvest(clips: list[Path], tmp_path: Path) -> None:
    from harvest.data.video import read_clip

    for fit in ("crop", "squash", "pad"):
        squares = {"image_size": 32, "fit": fit, "interpolation": "bicubic"}
        for path in clips:
            found = read_video(path, 5, **squares)
            assert np.array_equal(found, read_clip(path, num_frames=5, **squares).frames.numpy())
    other = tmp_path / "a.avi"
    with av.open(other, "w", format="avi") as container:
        stream = container.add_stream("mpeg4", 8)
        stream.width, stream.height, stream.pix_fmt = 56, 40, "yuv420p"
        for frame in moving(0).permute(0, 2, 3, 1).numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match=r"a\.avi: this runner reads MP4"):
        read_video(other, 5, **squares)


def test_8_bits(video_model: Path, tmp_path: Path, clips: list[Path], exported: Path) -> None:
    export_onnx(video_model, tmp_path / "out", OnnxOptions(int8=True))
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["int8"] and settings["selector"] is None
    found = OnnxVideoText(tmp_path / "out").embed_videos(clips)
    own = harvest.load(video_model, device="cpu").embed_videos(clips).numpy()
    assert (found * own).sum(axis=1).min() > 0.99
    with pytest.raises(ValueError, match="without a selector"):
        OnnxVideoText(tmp_path / "out").embed_videos(clips, budget=4)
    for tower in ("video", "text"):
        sizes = [(folder / f"{tower}.onnx").stat().st_size for folder in (tmp_path / "out", exported)]
        assert sizes[0] < sizes[1]


def test_what_cannot_be_exported_is_refused(video_model: Path, frame_model: Path, tmp_path: Path) -> None:
    model, _ = load_model(video_model)
    for options, why in (
        (OnnxOptions(budget=4, selector="merge"), "merge cannot be exported"),
        (OnnxOptions(budget=4, selector="run_length"), "run_length cannot be exported"),
        (OnnxOptions(budget=65), "more than a clip has"),
    ):
        with pytest.raises(harvest.HarvestError, match=why):
            VideoGraph(model, options)
    with pytest.raises(harvest.HarvestError, match="whole"):
        export_onnx(frame_model, tmp_path / "out", OnnxOptions(budget=4))
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(harvest.HarvestError, match="give another folder"):
        export_onnx(video_model, tmp_path, OnnxOptions())
