"""`harvest export`: a model in the format of another library."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from harvest.errors import HarvestError


def export_command(
    model: Annotated[str, tyro.conf.Positional],
    out: Annotated[Path, tyro.conf.Positional],
    /,
    format: Literal["transformers", "onnx", "open_clip", "viclip"] = "transformers",
    budget: int | None = None,
    selector: Literal["motion", "random", "tube"] | None = None,
    int8: bool = False,
) -> None:
    """Write a model for other libraries (docs/export.md).

    $ harvest export runs/demo/model exported
    $ harvest export runs/demo/model exported --format onnx --budget 40

    Args:
        model: Model folder, or any source that `harvest convert` takes.
        out: The folder to write.
        format: transformers: a model folder that also opens in transformers and sentence-transformers. onnx: for ONNX
            Runtime, with a runner that needs no PyTorch. open_clip, viclip: weights in the layout of OpenCLIP (an image
            model of CLIP's kind) or of ViCLIP (a video model that began as one).
        budget: Of onnx: tubelets seen of each clip, unless the caller says another number; without it all.
        selector: Of onnx, with a budget: which are seen; motion where nothing is said.
        int8: Of onnx: weights of matrix products in 8 bits.
    """
    if format != "onnx" and (budget is not None or selector is not None or int8):
        raise HarvestError("budget, selector and int8 go with --format onnx")
    if format == "transformers":
        from harvest.export.hub import export_hub

        export_hub(model, out)
    elif format != "onnx":
        from harvest.export.layouts import export_layout

        export_layout(model, out, format)
    else:
        if selector is not None and budget is None:
            raise HarvestError("selector goes with --budget N: without one all tubelets are seen")
        from harvest.export.onnx import OnnxOptions, export_onnx

        export_onnx(model, out, OnnxOptions(int8, budget, selector or "motion"))
    print(f"model: {out}")
