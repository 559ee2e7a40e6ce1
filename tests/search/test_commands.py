"""harvest index, search and moments, as typed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import harvest
from harvest.cli import main
from harvest.search.asking.pictures import half_blocks

from .conftest import BANK


@pytest.fixture(scope="module")
def made(clips: Path, image_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    videos = folder / "videos"
    shutil.copytree(clips / "trip", videos)
    (videos / "broken.mp4").write_text("no video")
    (folder / "bank.txt").write_text("\n".join(BANK))
    command = ["index", str(videos), "--model", str(image_model), "--out", str(folder / "library")]
    assert main([*command, "--window-s", "2", "--background", str(folder / "bank.txt")]) == 0
    return folder


def test_a_search_imports_no_compiler(made: Path) -> None:
    """torch._dynamo takes as long to import as PyTorch itself, and a search is over before it would be of use."""
    program = (
        "import sys; from harvest.cli import main; code = main(); assert 'torch._dynamo' not in sys.modules"
    )
    command = [sys.executable, "-c", program, "search", str(made / "library"), "a red circle", "-k", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "score" in done.stdout, done.stderr


def test_index_again(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", str(made / "videos"), "--out", str(made / "library")]) == 0
    out = capsys.readouterr().out
    assert "0 new, 0 changed, 0 moved, 0 vanished, 4 unchanged, 1 in quarantine: 9 moments" in out
    assert "quarantine: broken.mp4: the decoder says" in out


def test_search_prints_moments_or_says_that_there_are_none(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    library = str(made / "library")
    assert main(["search", library, "a red circle", "--k", "2", "--false-accept", "0.999"]) == 0
    out = capsys.readouterr().out
    assert "  1. " in out and " s to " in out and "chance" in out and "  3. " not in out
    assert main(["search", library, BANK[0], "--false-accept", "0.001"]) == 0
    assert capsys.readouterr().out.startswith(f"nothing like this here: {BANK[0]}")


def test_the_default_library(
    made: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert main(["search", "a", "red", "circle"]) == 2
    assert "no default library" in capsys.readouterr().err
    (tmp_path / "harvest").mkdir()
    config = tmp_path / "harvest" / "config.json"
    config.write_text(json.dumps({"library": str(made / "library")}))
    answers = []
    for words in (["a red circle"], ["a", "red", "circle"], [str(made / "library"), "a", "red", "circle"]):
        assert main(["search", *words, "-k", "2", "--json"]) == 0
        said = capsys.readouterr()
        answers.append(json.loads(said.out))
        assert "coloured shapes only" in said.err
    assert answers[0] == answers[1] == answers[2] and answers[0]["query"] == "a red circle"
    assert main(["index"]) == 0  # the folders that it has
    assert "4 unchanged" in capsys.readouterr().out
    config.write_text('{"libary": "x"}')
    assert main(["search", "a"]) == 2
    assert "did you mean 'library'" in capsys.readouterr().err


def test_a_single_file_and_names_with_control_characters(
    made: Path, image_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "esc\x1b[31mred.mp4"
    shutil.copy(made / "videos" / "5.mp4", file)
    (tmp_path / "other.mp4").write_text("not given")
    assert main(["index", str(file), "-m", str(image_model), "-o", str(tmp_path / "library")]) == 0
    assert "1 new" in capsys.readouterr().out
    assert main(["search", str(tmp_path / "library"), "a", "ring", "--no-pictures"]) == 0
    out = capsys.readouterr().out
    assert r"esc\x1b[31mred.mp4" in out and "\x1b" not in out


def test_search_gives_json(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [
        "search",
        str(made / "library"),
        "a red circle",
        "--json",
        "--not",
        "a star",
        "a ring",
        "--path",
        "5*",
    ]
    assert main(asked) == 0
    answer = json.loads(capsys.readouterr().out)
    paths = {hit["moment"]["path"] for hit in answer["hits"]}
    assert paths <= {str(made / "videos" / "5.mp4")}  # for other programs
    clip = [
        "search",
        str(made / "library"),
        "--clip",
        str(made / "videos" / "6.mp4"),
        "--end-s",
        "2",
        "--json",
    ]
    assert main(clip) == 0
    assert json.loads(capsys.readouterr().out)["hits"][0]["moment"]["path"].endswith("/6.mp4")


def test_search_shows_strips_in_a_terminal_with_colours(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {
        "FORCE_COLOR": "1",
        "COLORTERM": "truecolor",
        "TERM": "xterm",
        "COLUMNS": "120",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    library = str(made / "library")
    with harvest.Index.open(library) as index:
        picture = tmp_path / "picture.jpg"
        picture.write_bytes(index.thumbnail(index.videos()[0].id, 1.0, height=64))
    assert main(["search", library, "--image", str(picture), "--k", "2"]) == 0
    out = capsys.readouterr().out
    assert out.count("▀") == 2 * 6 * 4 * 12  # two moments, six lines, four square pictures of twelve columns
    assert "  1. " in out and "/5.mp4  0.0 s to 2.0 s" in out and "carry no chance" in out
    assert main(["search", library, "--image", str(picture), "--k", "2", "--no-pictures"]) == 0
    assert "▀" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["search", "nowhere", "a"], "not a library"),
        (["search", "LIBRARY"], "exactly one"),
        (["search", "LIBRARY", "a" * 10_000], "10,000 characters"),
        (["search", "LIBRARY", "a", "--after", "yesterday"], "expected a date"),
        (["search", "LIBRARY", "--image", "nowhere.png"], "nowhere.png"),
        (["search", "LIBRARY", "--clip", "nowhere.mp4"], "nowhere.mp4"),
        (["search", "LIBRARY", "--moment", "x.1"], "no video"),
        (["index", "VIDEOS", "--out", "NEW", "--model", "MODEL", "--budget", "9"], "whole frames"),
        (["index", "VIDEOS", "--out", "LIBRARY", "--selector", "tube"], "--reindex"),
        (["index", "nowhere", "--out", "LIBRARY"], "no such folder"),
        (["index", "VIDEOS", "--out", "LIBRARY", "--window-s", "7"], "--reindex"),
        (["index", "VIDEOS", "--out", "NEW", "--model", "no/such"], "hub"),
        (["index", "VIDEOS", "--out", "NEW", "--rerank", "999"], "at most 200"),
        (["search", "a", "red", "circle"], "default library"),
        (["moments", "nowhere.mp4", "a", "--model", "MODEL"], "no such file"),
    ],
)
def test_mistakes(
    made: Path, image_model: Path, command: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {
        "LIBRARY": made / "library",
        "VIDEOS": made / "videos",
        "NEW": made / "new",
        "MODEL": image_model,
    }
    assert main([str(names.get(word, word)) for word in command]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


def test_moments_prints_a_curve_and_draws_it(
    made: Path, image_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video, picture = made / "videos" / "5.mp4", tmp_path / "curve.svg"
    asked = [
        "moments",
        str(video),
        "a red circle",
        "a blue star",
        "--model",
        str(image_model),
        "--window-s",
        "2",
    ]
    assert main([*asked, "--picture", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "a blue star" in out and "█" in out and "score" in out
    assert (tmp_path / "curve-1.svg").read_text().startswith("<svg") and (tmp_path / "curve-2.svg").is_file()
    assert main([*asked[:3], *asked[4:], "--json"]) == 0
    curve = json.loads(capsys.readouterr().out)
    assert len(curve["scores"]) == len(curve["times_s"]) == 6 and curve["intervals"]


def test_ranks_share_the_work(clips: Path, video_model: Path, tmp_path: Path, out: Path | str) -> None:
    """torchrun on two processes gives the library that one gives."""
    from .test_index import build, content

    build(clips, tmp_path / "one", video_model).close()
    bank = tmp_path / "bank.txt"
    bank.write_text("\n".join(BANK))
    code = "import sys; from harvest.search import building; building.GROUP = 2; from harvest.cli import main; sys.exit(main(sys.argv[1:]))"
    (tmp_path / "run.py").write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    asked = [
        "index",
        clips,
        "--model",
        video_model,
        "--out",
        out,
        "--window-s",
        "2",
        "--background",
        bank,
    ]
    done = subprocess.run(
        [str(word) for word in (*command, tmp_path / "run.py", *asked)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "8 vanished" not in done.stdout and "24 moments" in done.stdout
    one, two = content(tmp_path / "one"), content(out)
    assert one.keys() == two.keys()
    for name in one:
        assert one[name][:2] == two[name][:2]  # the same files and times; vectors come from other batches
        a, b = (torch.frombuffer(bytearray(lib[name][2]), dtype=torch.float32) for lib in (one, two))
        torch.testing.assert_close(a, b, atol=2e-3, rtol=0)


def test_thumbnails_in_a_terminal() -> None:
    pictures = np.zeros((2, 3, 8, 16), np.uint8)
    pictures[1, 0] = 255
    console = Console(force_terminal=True, color_system="truecolor", width=100)
    with console.capture() as caught:
        console.print(half_blocks(pictures, rows=3))
    lines = caught.get().splitlines()
    assert lines[0].count("▀") == 24 and "38;2;255;0;0;48;2;255;0;0" in lines[0] and "38;2;0;0;0" in lines[0]


def test_the_example_runs(clips: Path, image_model: Path, tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "examples" / "search_your_videos.py"
    command = [sys.executable, example, clips / "trip", image_model, tmp_path / "library"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "like it:" in done.stdout and (tmp_path / "library" / "best.jpg").stat().st_size > 500
