"""Files and folders that are seen whole or not at all, whatever a kill, a full disk or the power does."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harvest.errors import HarvestError

PART = ".part"
"""How the hidden name of a file ends that is still being written, beside the place it is to take."""
WHOLE = "cache.json"
"""In a folder that was filled file by file: what it is made of, written last."""
_FILLING = "filling.json"


@contextmanager
def new_file(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """Write the file that the block is given; it takes `path`'s place when the block ends well, else it is removed.

    Without `flush` it may be lost to a power cut, name and all, which is right for what is made anew cheaply.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}{PART}")
    try:
        yield part
        if flush:
            _flush(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file, text as UTF-8, into a folder that is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Fill the folder that the block is given; it takes `folder`'s place when the block ends well, else it is removed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    temporary.chmod(0o755)  # mkdtemp makes it private; a model is shared like any other file
    try:
        yield temporary
        for path in (*temporary.rglob("*"), temporary):
            if path.is_file():
                path.chmod(0o644)  # as above: safetensors writes for the owner alone
            _flush(path)  # on the disk before its name is
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
            os.rename(folder, old / "folder")
            os.rename(temporary, folder)
            shutil.rmtree(old)
        else:
            os.rename(temporary, folder)
        _flush(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_file(path: Path, *, most: int | None = None) -> None:
    """HarvestError unless `path` is a regular file of at most `most` bytes that is not a git-lfs pointer."""
    try:
        if not path.is_file():
            raise HarvestError(
                f"{path}: no such file" if not path.exists() else f"{path} is not a regular file"
            )
        if most is not None and path.stat().st_size > most:
            raise HarvestError(f"{path} has {path.stat().st_size:,} bytes: at most {most:,} are read")
        with path.open("rb") as file:
            start = file.read(40)
    except OSError as error:
        raise HarvestError(f"{path} cannot be read: {error.strerror or error}") from error
    if start.startswith(b"version https://git-lfs"):
        raise HarvestError(
            f"{path} is a git-lfs pointer, not the file itself: run `git lfs pull` in its folder, or download it again"
        )


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums_of(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file in a folder, by its path there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}


def check_checksums(folder: Path, written: Mapping[str, str]) -> None:
    """HarvestError for the first file of a folder that is not what `checksums_of` found when it was written."""
    for name, checksum in written.items():
        check_file(folder / name)
        try:
            found = sha256_of(folder / name)
        except OSError as error:
            raise HarvestError(f"{folder / name} cannot be read: {error.strerror or error}") from error
        if found != checksum:
            raise HarvestError(f"{folder / name} has changed since it was written (its checksum differs)")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def begin_filling(folder: Path, made_of: Mapping[str, Any], what: str) -> bool:
    """Before the first file of a folder that is filled file by file, over several runs if need be: note in
    `filling.json` what it is made of, or see that it is the same that is noted. False where all is there already.

    Raises HarvestError where the folder is of something else; `what` names the kind of folder.
    """
    if (folder / WHOLE).is_file():
        check_made_of(folder, made_of, what)
        return False
    path = folder / _FILLING
    if path.is_file():
        _compare(path, made_of, what)
    elif folder.is_dir() and any(folder.iterdir()):
        raise HarvestError(
            f"{folder} is not empty and holds no {_FILLING} that says what it is made of: give another folder for the"
            f" {what}, or remove this one"
        )
    else:
        write_file(path, json.dumps(made_of, indent=1))
    return True


def finish_filling(folder: Path, made_of: Mapping[str, Any]) -> None:
    """Note that all files are there."""
    write_file(folder / WHOLE, json.dumps(made_of, indent=1))
    (folder / _FILLING).unlink(missing_ok=True)


def check_made_of(folder: Path, made_of: Mapping[str, Any], what: str) -> None:
    """Raise HarvestError unless a folder is whole and made of this."""
    if not (folder / WHOLE).is_file():
        raise HarvestError(f"{folder} is no finished {what}: it has no {WHOLE}")
    _compare(folder / WHOLE, made_of, what)


def _compare(path: Path, made_of: Mapping[str, Any], what: str) -> None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise HarvestError(
            f"{path} cannot be read: {error}. Remove {path.parent} to fill it anew."
        ) from error
    found = found if isinstance(found, dict) else {}
    differ = [
        f"{key}: {found.get(key)!r} there, {made_of.get(key)!r} now"
        for key in sorted(found.keys() | made_of.keys())
        if found.get(key) != made_of.get(key)
    ]
    if differ:
        raise HarvestError(
            f"{path.parent} is a {what} of something else:\n  "
            + "\n  ".join(differ)
            + "\nGive another folder, or remove this one."
        )
