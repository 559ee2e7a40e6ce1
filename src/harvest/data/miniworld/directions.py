"""Which of the mini-world's questions ask for a direction: what a clip that runs backwards turns into its opposite."""

from __future__ import annotations

import json
from pathlib import Path

from harvest.data.miniworld.motions import reverse_of

_ASK_FOR_MOTIONS = ("motion_choice", "motion_choice_held_out")


def directions(manifest: Path) -> dict[str, bool]:
    """By id of every question of a mini-world's manifest: is another motion what its clip shows backwards?

    Empty for manifests that do not ask which motion a clip shows, and for those of other folders. A function of the
    field `motion` of the rows, so that any world has it.
    """
    if manifest.stem not in _ASK_FOR_MOTIONS or not (manifest.parent / "world.json").is_file():
        return {}
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    return {row["id"]: reverse_of(row["motion"]) is not None for row in rows}
