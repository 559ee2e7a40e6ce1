"""The steps of UMT's stages are timed, at the size of the mini-world's."""

from __future__ import annotations

import pytest

from harvest.cli import main


def test_umt_s_steps_are_timed(capsys: pytest.CaptureFixture[str]) -> None:
    asked = "bench umt --model mini --batch 2 --frames 4 2 --seconds 0.01 --plain --precision fp32"
    assert main(asked.split()) == 0
    said = capsys.readouterr().out
    for name in ("stage 1, plain", "stage 1, teacher in int8", "stage 1, teacher cached", "stage 2"):
        assert name in said
    assert main(["bench", "umt", "--model", "mini", "--seconds", "0"]) == 2
