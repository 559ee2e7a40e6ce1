from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from harvest.interfaces import HarvestError
from harvest.search.library.files import scan


def made(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def found(scans: list[Any]) -> list[tuple[str, str]]:
    return [(one.root.name, file.path) for one in scans for file in one.files]


def test_what_is_a_video_and_what_is_left_out(tmp_path: Path) -> None:
    root = made(
        tmp_path / "videos",
        *(
            "a.MP4",
            "b.insv",
            "c.y4m",
            "trip/d.3gpp",
            ".hidden.mp4",
            "notes.txt",
            "cover.jpg",
            "back.jpg",
            "none",
        ),
        *("@eaDir/a.MP4", "#recycle/x.mp4", ".Trash/y.mp4", "lost+found/z.mp4"),
    )
    os.mkfifo(root / "pipe.mp4")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "s.mp4"))
    (root / "loop").symlink_to(".")
    (root / "self.mp4").symlink_to("self.mp4")
    (root / "inside.mp4").symlink_to("a.MP4")
    os.utime(root / "b.insv", ns=(0, 15_000_000_000 * 10**9))  # later than 64 bits count
    [one] = scan([root])
    reasons = {file.path: file.reason for file in one.files}
    assert {path for path, reason in reasons.items() if reason is None} == {
        *("a.MP4", "b.insv", "c.y4m", "trip/d.3gpp", "inside.mp4")
    }
    assert "a pipe" in str(reasons["pipe.mp4"]) and "a socket" in str(reasons["s.mp4"])
    assert reasons["self.mp4"] is not None
    assert one.left_out == {".jpg": 2, ".txt": 1, "no suffix": 1, "links to folders": 1}
    assert next(file for file in one.files if file.path == "b.insv").modified_ns == 2**63 - 1


def test_folders_in_folders_and_single_files(tmp_path: Path) -> None:
    root = made(tmp_path / "all", "a.mp4", "trip/b.mp4", "trip/c.xyz")
    whole = [("all", "a.mp4"), ("all", "trip/b.mp4")]
    for paths in ([root], [root / "trip", root], [root, root / "trip" / "b.mp4", root]):
        assert found(scan(paths)) == whole
    assert found(scan([root / "trip"])) == [("trip", "b.mp4")]
    [part] = scan([root / "trip"], [str(root)])  # in a library that has the folder above
    assert found([part]) == [("all", "trip/b.mp4")]
    assert part.covers(str(root), "trip/gone.mp4") and not part.covers(str(root), "a.mp4")
    [file] = scan([root / "trip" / "c.xyz"])  # meant, whatever its name
    assert found([file]) == [("trip", "c.xyz")] and not file.covers(str(root / "trip"), "b.mp4")
    assert scan([root])[0].covers(str(root / "trip"), "b.mp4")  # indexed on its own before
    with pytest.raises(HarvestError, match="no such folder or file"):
        scan([root / "nowhere"])
    with pytest.raises(HarvestError, match="holds no videos"):
        scan([made(tmp_path / "texts", "a.txt")])


def test_links_lead_out_only_where_that_is_trusted(tmp_path: Path) -> None:
    root, store = made(tmp_path / "videos", "a.mp4"), made(tmp_path / "store", "x.mp4")
    (root / "link.mp4").symlink_to(store / "x.mp4")
    assert "--trust" in str(scan([root])[0].files[1].reason)
    assert scan([root], trusted=[str(store)])[0].files[1].reason is None


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = made(tmp_path / "videos", "a.mp4", "locked/b.mp4")
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    [one] = scan([root])
    assert one.unreadable == {"locked": "Permission denied"}
    assert one.says_of(str(root), "gone.mp4") and not one.says_of(str(root), "locked/b.mp4")
