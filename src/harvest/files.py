"""Files and folders that are seen whole or not at all, whatever a kill, a full disk or the power does."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PART = ".part"
"""How the hidden name of a file ends that is still being written, beside the place it is to take."""


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


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
