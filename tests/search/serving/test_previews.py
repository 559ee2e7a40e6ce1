"""What a preview costs does not depend on what its video claims."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harvest.data.video import probe, write_video
from harvest.search.serving.previews import MOST_PIXELS

MOST_MB = 450


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
@pytest.mark.parametrize("shape", [(16, 512), (500, 16), (16, 16)])
def test_narrow_videos_take_no_more_memory(tmp_path: Path, shape: tuple[int, int]) -> None:
    path = tmp_path / "narrow.mp4"
    write_video(path, torch.zeros(2, 3, *shape, dtype=torch.uint8), fps=0.1)
    code = (
        "import re, sys; from pathlib import Path\n"
        "from harvest.search.serving.previews import write_preview\n"
        "status = Path('/proc/self/status')  # getrusage counts the process before exec too, which was pytest's\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', status.read_text())[1]) // 1024\n"
        "before = peak()\n"
        "write_preview(Path(sys.argv[1]), Path(sys.argv[2]), start_s=0.0, end_s=20.0)\n"
        "print(peak() - before)"
    )
    out = tmp_path / "preview.mp4"
    shown = subprocess.run(
        [sys.executable, "-c", code, str(path), str(out)], capture_output=True, text=True, check=True
    )
    assert int(shown.stdout) < MOST_MB
    info = probe(out)
    assert info.duration_s == pytest.approx(20.0, abs=0.1)
    assert info.width * info.height <= MOST_PIXELS
    assert info.width / info.height == pytest.approx(shape[1] / shape[0], rel=0.1)
