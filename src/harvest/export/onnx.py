"""A model as ONNX files for processes without PyTorch, with the runner that computes them.

OUT/video.onnx       uint8 [B, T, 3, S, S] to unit vectors [B, E]: normalisation, choice of tubelets, tower, projection
OUT/text.onnx        int64 [B, L] to unit vectors [B, E]
OUT/settings.json    sizes, selector, what is fixed; OUT/tokenizer.json
OUT/runner.py        embeds files and sentences: NumPy, onnxruntime, tokenizers, PyAV, Pillow (OUT/requirements.txt)

Shapes: B clips, T frames, S tubelet times, P patches of a frame, N = S * P tubelets, K kept ones.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harvest.evaluation.embed import default_frames, mode_of
from harvest.export import runner
from harvest.files import new_folder
from harvest.interfaces import Grid, HarvestError
from harvest.model import text_cleaning
from harvest.model.folder import weights_digest
from harvest.model.importing.pretrained import load_pretrained
from harvest.model.layers import SinusoidPositions
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_encoder import VideoEncoder
from harvest.model.video_text import VideoTextModel
from harvest.parallel import generator_for
from harvest.tokens import Selection, budget_of
from harvest.tokens.change import GREY_LEVELS_PER_UNIT, differences
from harvest.tokens.selectors import motion_priority

IN_GRAPH = ("motion", "random", "tube")
"""Selectors that a graph can hold: those that keep equally many tubelets of every clip and need no second look."""
FILES = (
    *("video.onnx", "text.onnx", "settings.json", "tokenizer.json"),
    *("runner.py", "text_cleaning.py", "requirements.txt"),
)
MOST_FRAMES = 64
"""That an exported model takes of a clip."""
NUM_GROUPS = 4
"""Of times, which `motion_keep` treats apart."""


@dataclasses.dataclass(frozen=True)
class OnnxOptions:
    """How a model becomes ONNX."""

    int8: bool = False
    """Weights of matrix products in 8 bits: a quarter of the size; activations are rounded as they come."""
    budget: int | None = None
    """Tubelets seen of each clip unless the caller says another number; without it the graph sees all."""
    selector: str = "motion"
    """Which are seen, with a budget: motion, random or tube."""


def export_onnx(source: str | Path, out: Path, options: OnnxOptions = OnnxOptions()) -> None:
    """Write the model that `source` names, in any form that `harvest.load` takes, as a folder of ONNX files."""
    _check_room(out)
    model, tokenizer, _ = load_pretrained(source)
    graph = VideoGraph(model, options)
    settings = settings_of(model, tokenizer, options, graph)
    with new_folder(out) as temporary:
        write_graph(graph, graph.example(), graph.dynamic(), temporary / "video.onnx", int8=options.int8)
        ids = torch.full((2, tokenizer.config.context_length), tokenizer.config.pad_id)
        shapes = {"text_ids": {0: torch.export.Dim("texts")}}
        write_graph(TextGraph(model), (ids,), shapes, temporary / "text.onnx", int8=options.int8)
        (temporary / "settings.json").write_text(json.dumps(settings, indent=1))
        tokenizer.save(temporary / "tokenizer.json")
        for module in (runner, text_cleaning):
            shutil.copyfile(str(module.__file__), temporary / Path(str(module.__file__)).name)
        (temporary / "requirements.txt").write_text("\n".join(runner.REQUIREMENTS) + "\n")


def settings_of(
    model: VideoTextModel, tokenizer: Tokenizer, options: OnnxOptions, graph: VideoGraph
) -> dict[str, Any]:
    """What the runner has to know."""
    video = model.config.video
    return {
        "format": runner.FORMAT,
        "num_frames": default_frames(model, mode_of(model)),
        "fixed_frames": graph.fixed_frames,
        "most_frames": MOST_FRAMES,
        "tubelet_size": video.tubelet_size if graph.mode == "video" else 1,
        "budget": options.budget,
        "selector": options.selector if options.budget is not None else None,
        "num_patches": video.num_patches,
        "squares": video.squares,
        "is_frame_wise": graph.mode == "image",
        "weights_digest": weights_digest(model),
        "embed_dim": model.config.text_tower.embed_dim,
        "tokenizer": dataclasses.asdict(tokenizer.config),
        "int8": options.int8,
    }


class TextGraph(nn.Module):
    """Ids to unit vectors."""

    def __init__(self, model: VideoTextModel) -> None:
        super().__init__()
        self.text = copy.deepcopy(model.text).eval()

    def forward(self, text_ids: Tensor) -> Tensor:
        return self.text(text_ids).pooled


class VideoGraph(nn.Module):
    """Pixels to unit vectors, of any number of clips and frames, and of kept tubelets where some are chosen.

    `slots` is any int64 `[K]`: its length is the budget, so that the number of kept tubelets is a size like the others.
    """

    noise: Tensor

    def __init__(self, model: VideoTextModel, options: OnnxOptions) -> None:
        super().__init__()
        self.mode = mode_of(model)
        self.tower: VideoEncoder = copy.deepcopy(model.video).eval()
        config = self.tower.config
        self.is_chosen = options.budget is not None
        self.selector = options.selector
        if self.is_chosen:
            self._check(model, options)
        t = config.tubelet_size
        self.fixed_frames = (
            config.num_frames if self.mode == "video" and config.positions == "joint" else None
        )
        self.most_times = MOST_FRAMES // t
        if config.positions == "factored":
            self.tower.time_positions = TimesTable(self.tower.time_positions, self.most_times)  # type: ignore[assignment]
        elif config.positions == "sinusoid":
            most = self.most_times * config.num_patches
            self.tower.sinusoid = SinusoidPositions(most, config.width)
        num = config.num_patches if options.selector == "tube" else self.most_times * config.num_patches
        noise = torch.rand(1, num, generator=generator_for(0))  # the draws that evaluation makes
        self.register_buffer("noise", noise)

    def _check(self, model: VideoTextModel, options: OnnxOptions) -> None:
        if options.selector not in IN_GRAPH:
            raise HarvestError(
                f"selector {options.selector} cannot be exported to ONNX: expected {', '.join(IN_GRAPH)}"
            )
        if self.mode == "image" or self.tower.config.attention == "frame":
            raise HarvestError("budget: this model sees frames one by one, and whole; leave the budget out")
        size = self.tower.config.image_size
        clip = torch.empty(1, self.tower.config.num_frames, 3, size, size, dtype=torch.uint8)
        budget_of(Selection(budget=options.budget), model.grid(clip))  # raises where a clip has fewer

    def example(self) -> tuple[Tensor, ...]:
        """Inputs to trace with."""
        config = self.tower.config
        size, t = config.image_size, config.tubelet_size
        frames = self.fixed_frames or 3 * t
        video = torch.randint(0, 256, (2, frames, 3, size, size), dtype=torch.uint8)
        return (video, torch.zeros(5, dtype=torch.int64)) if self.is_chosen else (video,)

    def dynamic(self) -> dict[str, Any]:
        """The sizes that are free, for torch.export."""
        sizes: dict[int, Any] = {0: torch.export.Dim("clips")}
        if self.fixed_frames is None:
            t = self.tower.config.tubelet_size if self.mode == "video" else 1
            times = torch.export.Dim("times", max=self.most_times)
            sizes[1] = t * times if t > 1 else times
        shapes: dict[str, Any] = {"video": sizes}
        if self.is_chosen:
            shapes["slots"] = {0: torch.export.Dim("budget")}
        return shapes

    def forward(self, video: Tensor, slots: Tensor | None = None) -> Tensor:
        if self.mode == "image":
            B, T = video.shape[:2]
            pooled = self.tower(video.reshape(B * T, 1, *video.shape[2:])).pooled
            return F.normalize(pooled.view(B, T, pooled.shape[-1]).mean(dim=1), dim=-1)
        keep = None if slots is None else self.keep(video, slots)
        return self.tower(video, keep).pooled

    def keep(self, video: Tensor, slots: Tensor) -> Tensor:
        """`tokens.choose` in operations whose sizes are free: `[B, K]`, ascending."""
        grid, K = self.tower.grid(video), slots.shape[0]
        if self.selector == "motion":
            kept = self._motion(video, grid, K)
        elif self.selector == "tube":
            ranks = self.noise.argsort(dim=1, descending=True).argsort(dim=1)  # [1, P]
            time = torch.arange(grid.num_times)
            counts = (time + 1) * K // grid.num_times - time * K // grid.num_times
            kept = (ranks < counts[:, None]).reshape(1, -1)
        else:
            noise = self.noise[:, : grid.num_times * grid.num_patches]
            kept = largest(noise, torch.ones_like(noise, dtype=torch.bool), K)
        N = kept.shape[1]
        order = torch.where(kept, torch.arange(N, 0, -1), 0).sort(dim=1, descending=True).indices
        found = order.index_select(1, torch.arange(K))
        return found.expand(video.shape[0], -1)

    def _motion(self, video: Tensor, grid: Grid, K: int) -> Tensor:
        """What `motion_keep` keeps, with its shares of a quarter drawn at random, as bool `[B, N]`."""
        change = tubelet_change(video, grid)
        noise = self.noise[:, : change.shape[1]].expand(change.shape[0], -1)
        time = torch.arange(grid.num_times)
        place = torch.arange(change.shape[1]) // grid.num_patches
        num_groups = (time[-1:] + 1).clamp(max=NUM_GROUPS)  # int64 [1]
        numbers = torch.arange(NUM_GROUPS + 1)
        ends = torch.minimum(numbers, num_groups) * grid.num_times // num_groups  # of the times of each group
        cuts = ends * K // grid.num_times
        counts = cuts[1:] - cuts[:-1]
        moving = counts - (counts * Selection().random_ratio).round().long()
        priority = motion_priority(change, noise, grid.num_times)
        inside = [(place >= ends[g]) & (place < ends[g + 1]) for g in range(NUM_GROUPS)]
        chosen = torch.zeros_like(change, dtype=torch.bool)
        for g in range(NUM_GROUPS):
            chosen = chosen | largest(priority, inside[g], moving[g])
        noise = torch.where(chosen, 2.0, noise)  # above all noise, so these are kept
        kept = torch.zeros_like(chosen)
        for g in range(NUM_GROUPS):
            kept = kept | largest(noise, inside[g], counts[g])
        return kept


def largest(priority: Tensor, inside: Tensor, count: Tensor | int) -> Tensor:
    """Bool `[B, N]`: the `count` tubelets of largest priority among those `inside`; the earlier of equal ones."""
    order = torch.where(inside, priority, -1.0).sort(dim=1, descending=True).indices
    is_kept = (torch.arange(priority.shape[1]) < count).expand(priority.shape[0], -1)
    return torch.zeros_like(is_kept).scatter(1, order, is_kept)


def tubelet_change(video: Tensor, grid: Grid) -> Tensor:
    """`tokens.tubelet_change` of any number of frames, one too: `[B, N]`."""
    pixels = video.float() / GREY_LEVELS_PER_UNIT
    padded = torch.cat([pixels[:, :1], pixels, pixels[:, -1:]], dim=1)
    between = differences(
        padded, grid
    )  # [B, T + 1, P]; nothing changes before the first and behind the last frame
    frame = torch.arange(video.shape[1])
    neighbours = (frame > 0).float() + (frame < video.shape[1] - 1).float()
    change = (between[:, :-1] + between[:, 1:]) / neighbours.clamp(min=1.0)[:, None]
    return change.view(video.shape[0], grid.num_times, grid.tubelet_size, -1).amax(dim=2).flatten(1)


class TimesTable(nn.Module):
    """`TimePositions` computed beforehand for every number of times up to the most."""

    tables: Tensor

    def __init__(self, positions: Any, most: int) -> None:
        super().__init__()
        with torch.no_grad():
            tables = [F.pad(positions(times), (0, 0, 0, most - times)) for times in range(1, most + 1)]
        self.register_buffer("tables", torch.stack(tables))  # [most, most, D]

    def forward(self, num_times: int) -> Tensor:
        last = torch.arange(num_times)[-1:]
        return self.tables.index_select(0, last)[0, :num_times]


def write_graph(
    graph: nn.Module, example: tuple[Tensor, ...], shapes: dict[str, Any], path: Path, *, int8: bool
) -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise HarvestError(
            f"exporting to ONNX needs {error.name}: pip install 'harvest-video[export]'"
        ) from error
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            graph.eval(),
            example,
            dynamic_shapes=shapes,
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
        exported = torch.onnx.export(
            program, dynamo=True, output_names=["embeddings"], verbose=False, optimize=True
        )
    assert exported is not None
    size = sum(tensor.numel() * tensor.element_size() for tensor in graph.state_dict().values())
    if not int8:
        exported.save(str(path), external_data=size > _MOST_IN_ONE_FILE)
        return
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        whole = Path(folder) / path.name
        exported.save(str(whole), external_data=size > _MOST_IN_ONE_FILE)
        quantize_dynamic(
            whole,
            path,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=size > 4 * _MOST_IN_ONE_FILE,
        )


_MOST_IN_ONE_FILE = 1_800_000_000
"""Bytes of weights; an ONNX file holds at most 2 GB, more lies beside it."""


def _check_room(out: Path) -> None:
    """HarvestError where an export would take the place of something else."""
    if not out.exists():
        return
    if not out.is_dir():
        raise HarvestError(f"{out} is a file: give a folder for the export")
    others = [path.name for path in out.iterdir() if path.name.removesuffix(".data") not in FILES]
    if others:
        raise HarvestError(f"{out} is not empty and holds no export alone ({others[0]}): give another folder")
