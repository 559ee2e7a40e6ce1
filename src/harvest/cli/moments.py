"""`harvest moments`: a score for every second of one video."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from harvest.cli.defaults import read_defaults
from harvest.cli.parsing import print_json


def moments_command(
    video: Annotated[Path, tyro.conf.Positional],
    texts: Annotated[tuple[str, ...], tyro.conf.Positional],
    /,
    model: Annotated[str | None, tyro.conf.arg(aliases=["-m"])] = None,
    window_s: float = 4.0,
    hop_s: float = 1.0,
    fast: bool = False,
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 5,
    precision: Literal["fp32", "bf16"] = "fp32",
    picture: Path | None = None,
    json: bool = False,
) -> None:
    """A score for every second of a video, and where a sentence is best met.

    $ harvest moments film.mp4 "two people dance" -m runs/webvid --picture dance.svg
    $ harvest moments film.mp4 "two people dance" "it rains" -m runs/webvid --json

    Args:
        video: The video.
        texts: One sentence or several; the video is encoded once.
        model: Model folder, or any source that `harvest convert` takes; without it the default model.
        window_s: How much of the video a score is of.
        hop_s: Distance of scores.
        fast: Encode each hop once instead of every window: less work, and order within a window is lost.
        k: How many stretches.
        picture: Write the curve to this SVG file; of several sentences, each with its number.
        json: Print the curve as JSON.
    """
    import torch

    from harvest.files import write_file
    from harvest.interfaces import HarvestError
    from harvest.model.importing.pretrained import load_pretrained
    from harvest.progress import bar
    from harvest.search.asking.curve import blocks, clock, svg
    from harvest.search.asking.moments import Dense, DenseVideo

    if not texts:
        raise HarvestError("moments needs a sentence")
    dense = Dense(window_s=window_s, hop_s=hop_s, fast=fast)
    loaded, tokenizer, _ = load_pretrained(model or read_defaults().model)
    if torch.cuda.is_available():
        loaded.cuda()
    with bar("encoding") as progress:
        read = DenseVideo.read(loaded, tokenizer, video, dense, precision=precision, progress=progress)
    for number, text in enumerate(texts, start=1):
        curve = read.curve(text, k=k)
        if json:
            print_json(curve)
        else:
            print(text)
            print(f"  {blocks(curve.scores, width=72)}  {min(curve.scores):.2f} to {max(curve.scores):.2f}")
            for best in curve.intervals:
                print(f"  {clock(best.start_s)} to {clock(best.end_s)}  score {best.score:.3f}")
        if picture is not None:
            file = picture if len(texts) == 1 else picture.with_stem(f"{picture.stem}-{number}")
            write_file(file, svg(curve))
            if not json:
                print(f"picture: {file}")
