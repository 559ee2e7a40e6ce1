"""`harvest version`: what a report of a fault should say."""

import importlib.metadata
import platform

from harvest import __version__

LIBRARIES = ("torch", "numpy", "av", "tokenizers", "safetensors", "huggingface-hub", "usearch")


def version_command() -> None:
    """The versions that a report of a fault should name.

    $ harvest version
    """
    lines = {"harvest": __version__, "python": platform.python_version(), "system": platform.platform()}
    for name in LIBRARIES:
        try:
            lines[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            lines[name] = "not installed"
    print("\n".join(f"{name:<16} {value}" for name, value in lines.items()))
