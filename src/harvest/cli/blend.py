"""`harvest blend`: weights between an image model and the video model made of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from harvest.cli.parsing import print_json

if TYPE_CHECKING:
    from harvest.evaluation.blending import Sweep


@dataclass(frozen=True)
class BlendOptions:
    """Two models, and what their skills are measured on."""

    image_model: Annotated[str, tyro.conf.Positional]
    """The image model that the video model was made of, as `harvest convert` takes it, or mini-image."""
    video_model: Annotated[str, tyro.conf.Positional]
    """The model folder of the video model."""
    evaluate: Path
    """Manifest of video skill."""
    image_evaluate: Path
    """Manifest of image skill."""
    task: str = "retrieval"
    """How video skill is scored, by the main figure of a task of `harvest evaluate`: t2v R@1, accuracy, top-1."""
    image_task: str = "retrieval"
    """How image skill is scored."""
    videos: Path | None = None
    """Folder that the paths of --evaluate are relative to."""
    image_videos: Path | None = None
    """Folder that the paths of --image-evaluate are relative to."""
    shares: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    """Shares of the video model to try; 1 is tried always."""
    image_limit: float = 1.0
    """Points of image skill that may be lost."""
    video_limit: float = 2.0
    """Points of video skill that may be lost."""
    batch_size: int = 32
    precision: Literal["fp32", "bf16"] = "fp32"
    workers: int = 2
    json: bool = False
    """Print every share and its scores as JSON."""
    out: Path = Path("runs/blend")
    """Folder for the model and the curve."""


def blend_command(given: BlendOptions) -> None:
    """Average an image model and the video model made of it: which share is best.

    $ harvest blend mini-image runs/demo/model --task choice \\
        --image-task choice --out runs/blend \\
        --evaluate runs/demo/world/motion_choice.jsonl \\
        --image-evaluate runs/demo/world/appearance_choice.jsonl

    The best share loses least of both skills, each measured by its limit.
    """
    from harvest.data.manifest import read_manifest
    from harvest.evaluation.blending import main_metric, sweep, write_blend
    from harvest.evaluation.settings import EvalSettings
    from harvest.evaluation.tasks import task_named
    from harvest.model.folder import check_room
    from harvest.model.importing.pretrained import load_pretrained
    from harvest.parallel import world
    from harvest.progress import bar, say

    check_room(given.out / "model")  # before hours of scoring
    for name in (given.task, given.image_task):
        task_named(name)
    start = load_pretrained(given.image_model)[0]
    model, tokenizer, _ = load_pretrained(given.video_model)
    frames = model.config.video.num_frames
    settings = EvalSettings(
        num_frames=frames, batch_size=given.batch_size, precision=given.precision, workers=given.workers
    )
    image_rows = read_manifest(given.image_evaluate, videos=given.image_videos)
    video_rows = read_manifest(given.evaluate, videos=given.videos)
    with world() as here:
        start.to(here.device)
        model.to(here.device)
        with bar("scoring blends", quiet=not here.is_main) as progress:
            found = sweep(
                start,
                model,
                image_skill=main_metric(tokenizer, image_rows, given.image_task, settings),
                video_skill=main_metric(tokenizer, video_rows, given.task, settings),
                shares=given.shares,
                image_limit=given.image_limit,
                video_limit=given.video_limit,
                progress=progress,
            )
    if not here.is_main:
        return
    print_json(found) if given.json else _show(found)
    write_blend(
        given.out,
        found,
        start,
        model,
        tokenizer,
        sources=(given.image_model, given.video_model),
        image_name=f"{given.image_task}, {given.image_evaluate.stem}",
        video_name=f"{given.task}, {given.evaluate.stem}",
    )
    say(f"model: {given.out / 'model'}\ncurve: {given.out / 'curve.svg'}")


def _show(found: "Sweep") -> None:
    from rich.console import Console
    from rich.table import Table

    grid = Table(show_edge=False)
    for title in ("share", "image skill", "95 %", "video skill", "95 %", ""):
        grid.add_column(title, justify="right")
    for point in found.points:
        cells = []
        for part in (point.image, point.video):
            low, high = part.interval
            cells += [f"{100 * part.value:.1f} %", f"{100 * low:.1f} to {100 * high:.1f}"]
        grid.add_row(f"{point.video_ratio:g}", *cells, "best" if point is found.best else "")
    console = Console()
    console.print(grid)
    lost = found.losses(found.best)
    verdict = "within" if found.used(found.best) <= 1 else "and none is within"
    console.print(
        f"the image model alone: {100 * found.image_model.value:.1f} % of image skill. Share"
        f" {found.best.video_ratio:g} loses {lost[0]:.1f} points on images and {lost[1]:.1f} on video, {verdict} the"
        f" limits of {found.image_limit:g} and {found.video_limit:g}",
        highlight=False,
    )
