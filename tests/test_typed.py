"""A user's script under `mypy --strict`: what `harvest` gives has types, and none of them is Any."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
import harvest
from harvest.search.results import Answer, Hit

model = harvest.load("runs/webvid/model")
reveal_type(model)
reveal_type(model.embed_videos(["a.mp4"]))
reveal_type(model.embed_texts(["a dog"]))
with harvest.Index.build("videos", out="library", model="model") as index:
    reveal_type(index)
    answer: Answer = index.search("a dog", k=3)
    hit: Hit = answer.hits[0]
    reveal_type(hit.path)
    reveal_type(hit.chance)
    reveal_type(index.file(hit.moment.video))
    reveal_type(index.videos())
    reveal_type(index.report)
    reveal_type(index.timeline("a dog", hit.moment.video))
reveal_type(harvest.__version__)
"""


@pytest.mark.slow
def test_a_script_under_strict_mypy(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    options = ["--strict", "--config-file", "", "--cache-dir", str(ROOT / ".mypy_cache")]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, str(script)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    revealed = [line for line in done.stdout.splitlines() if "Revealed type" in line]
    assert len(revealed) == SCRIPT.count("reveal_type") and "Any" not in done.stdout, done.stdout
