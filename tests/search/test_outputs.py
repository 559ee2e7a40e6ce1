"""What commands print, in a pipe, in a terminal of 80 columns, with NO_COLOR and without Unicode: nothing is cut."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harvest.cli import COMMANDS, main
from harvest.data.manifest import write_manifest
from harvest.interfaces import Example

from .conftest import BANK, write_long

Printed = Callable[[list[str], str], str]
MODES = ("pipe", "terminal", "no colour", "ascii")


class Stream(io.TextIOWrapper):
    def __init__(self, encoding: str, *, is_terminal: bool) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, write_through=True)
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Printed:
    """The standard output of a command that ends well, its colours taken out where there may be some."""

    def run(typed: list[str], mode: str) -> str:
        is_terminal = mode in ("terminal", "no colour")
        out = Stream("ascii" if mode == "ascii" else "utf-8", is_terminal=is_terminal)
        with monkeypatch.context() as here:
            here.setattr(sys, "stdout", out)
            here.setattr(sys, "stderr", Stream(out.encoding, is_terminal=False))
            here.setenv("COLUMNS", "80")
            here.setenv("TERM", "xterm-256color")
            here.delenv("FORCE_COLOR", raising=False)
            here.delenv("NO_COLOR", raising=False)
            if mode == "no colour":
                here.setenv("NO_COLOR", "1")
            try:
                code = main(typed)
            except SystemExit as end:
                code = int(end.code or 0)
        text = out.buffer.getvalue().decode(out.encoding)  # type: ignore[attr-defined]
        assert code == 0, text
        if mode != "terminal":
            assert not re.search(r"\x1b\[([\d;]*;)?[349]\d", text), "a colour"
        if is_terminal:
            text = re.sub(r"\x1b\[[\d;]*m", "", text)
        assert "\x1b" not in text
        return text

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, image_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("printed")
    (folder / "videos").mkdir()
    captions = write_long(folder / "videos" / "a clip with a long name, 2026.mp4", range(3))
    (folder / "videos" / "broken.mp4").write_text("no video")
    video = str(folder / "videos" / "a clip with a long name, 2026.mp4")
    rows = [
        Example(f"{n}", video, (caption,), start_s=2.0 * n, end_s=2.0 * n + 2)
        for n, caption in enumerate(captions)
    ]
    write_manifest(folder / "clips.jsonl", rows)
    (folder / "bank.txt").write_text("\n".join(BANK))
    return folder


@pytest.mark.parametrize("mode", MODES)
def test_what_commands_print(mode: str, folder: Path, image_model: Path, printed: Printed) -> None:
    library = folder / f"library, {mode}"
    index = ["index", str(folder / "videos"), "-m", str(image_model), "-o", str(library), "--window-s", "2"]
    for typed, expected in (
        (
            [*index, "--background", str(folder / "bank.txt")],
            """
# new, # changed, # moved, # vanished, # unchanged, # in quarantine: # moments, #.# s: LIBRARY
quarantine: broken.mp#: the decoder says: Invalid data found when processing input
""",
        ),
        (
            [
                "search",
                str(library),
                "a",
                "red",
                "circle",
                "-k",
                "2",
                "--no-pictures",
                "--false-accept",
                "0.999",
            ],
            """
  #. FOLDER/videos/a clip with a long name, #.mp#  #.# s to #.# s  score #.#  MATCH (chance #.#%)
  #. FOLDER/videos/a clip with a long name, #.mp#  #.# s to #.# s  score #.#  MATCH (chance #.#%)
""",
        ),
        (
            [
                "evaluate",
                str(image_model),
                "--data",
                str(folder / "clips.jsonl"),
                "--image",
                "--workers",
                "0",
            ],
            """
retrieval, image
R@# R@# R@# median mean
text to video #.# % #.# % #.# % #.# #.#
# % #.#-#.# #.#-#.# #.#-#.#
video to text #.# % #.# % #.# % #.# #.#
# % #.#-#.# #.#-#.# #.#-#.#
""",
        ),
    ):
        text = printed(typed, mode)
        plain = text.replace(str(library), "LIBRARY").replace(str(folder), "FOLDER")
        lines = [line.rstrip() for line in plain.splitlines()]
        tables = [line for line in lines if not re.search("FOLDER|LIBRARY|^quarantine: ", line)]
        assert all(len(line) <= 80 for line in tables), text
        shown = re.sub(
            r"\b(good|possible|unlikely)\b",
            "MATCH",
            re.sub(r"(?<=score )-|\d+", lambda found: "#" if found[0] != "-" else "", plain),
        )
        if typed[0] == "evaluate":  # how wide columns are is the figures' matter
            shown = re.sub(r" +", " ", re.sub(r"^ +| +$", "", shown, flags=re.M))
            assert shown.strip().startswith(expected.strip()), text
        else:
            assert shown.strip() == expected.strip(), text


@pytest.mark.parametrize("mode", MODES)
def test_every_help_can_be_printed(mode: str, printed: Printed) -> None:
    """Of commands that need no PyTorch for it, in each mode; `test_cli` prints all of them."""
    for typed in (["--help"], ["recipes"], *([name, "--help"] for name in COMMANDS)):
        text = printed(typed, mode)
        assert "\u2026" not in text or mode != "ascii"
        assert max(map(len, text.splitlines())) <= 80, typed
