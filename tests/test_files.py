import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harvest.files import PART, new_file, new_folder, write_file


def test_a_file_takes_its_place_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "scores.json"
    write_file(path, "1 café")
    assert path.read_bytes() == "1 café".encode()
    with new_file(path) as part:
        part.write_bytes(b"2")
        assert path.read_bytes() == "1 café".encode() and part.parent == path.parent
        assert part.name.startswith(".") and part.suffix == PART
    assert [(file.name, file.read_bytes()) for file in path.parent.iterdir()] == [("scores.json", b"2")]


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    write_file(path, b"old")
    with pytest.raises(OSError, match="full"), new_file(path) as part:
        part.write_bytes(b"ha")
        raise OSError("the disk is full")
    with pytest.raises(FileNotFoundError), new_file(path):
        pass  # nothing was written
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("scores.json", b"old")]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_kill_in_the_middle_leaves_the_old_one(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "kept"
    if kind == "file":
        write_file(path, "old")
    else:
        with new_folder(path) as folder:
            (folder / "weights").write_text("old")
    writing = f"""
import os, signal, sys
from pathlib import Path
from harvest.files import new_file, new_folder
with new_{kind}(Path(sys.argv[1])) as part:
    (part if {kind == "file"} else part / "weights").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", writing, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (path if kind == "file" else path / "weights").read_text() == "old"
    assert all(left.name.startswith(".") for left in tmp_path.iterdir() if left != path)


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with new_folder(tmp_path / "model") as folder:
            (folder / content).write_text(content)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert os.stat(tmp_path / "model").st_mode & 0o777 == 0o755
    with pytest.raises(ValueError, match="no"), new_folder(tmp_path / "model") as folder:
        raise ValueError("no")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_everybody_may_read_what_is_in_a_new_folder(tmp_path: Path) -> None:
    with new_folder(tmp_path / "model") as folder:
        (folder / "inside").mkdir()
        (folder / "inside" / "weights").write_text("w")
        (folder / "inside" / "weights").chmod(0o600)  # as safetensors leaves it
    assert (tmp_path / "model/inside/weights").stat().st_mode & 0o777 == 0o644
