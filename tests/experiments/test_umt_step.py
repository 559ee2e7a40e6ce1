"""The steps of UMT's stages are timed, at the size of the mini-world's."""

from __future__ import annotations

import pytest

from experiments.umt_step import umt_step
from harvest.interfaces import HarvestError


def test_umt_s_steps_are_timed(capsys: pytest.CaptureFixture[str]) -> None:
    umt_step("mini", batch=2, frames=(4, 2), seconds=0.01, plain=True, precision="fp32")
    said = capsys.readouterr().out
    for name in ("stage 1, plain", "stage 1, teacher in int8", "stage 1, teacher cached", "stage 2"):
        assert name in said
    with pytest.raises(HarvestError, match="more than 0 seconds"):
        umt_step("mini", seconds=0)
