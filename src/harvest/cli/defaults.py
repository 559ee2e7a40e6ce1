"""What commands take where nothing is named: the default library and model, which a config file may set.

    ~/.config/harvest/config.json      {"library": "~/library", "model": "google/siglip2-base-patch16-224"}

($XDG_CONFIG_HOME where it is set; without the file the library lies in ~/.local/share/harvest.)
"""

import os
from dataclasses import dataclass
from pathlib import Path

from harvest.errors import HarvestError
from harvest.search.results import is_address

# Apache-2.0, 1.5 GB. Of the SigLIP 2 models the one with the fewest patches a picture: on a CPU four times as fast as
# patch16-224, and better than a CLIP of the same cost.
DEFAULT_MODEL = "google/siglip2-base-patch32-256"
ABOUT_DEFAULT_MODEL = f"{DEFAULT_MODEL} (licence Apache-2.0; 1.5 GB, downloaded once and kept)"


@dataclass(frozen=True)
class Defaults:
    library: str = ""
    model: str = DEFAULT_MODEL

    @property
    def place(self) -> str:
        """The default library: a folder, or a database's address."""
        if self.library:
            return self.library if is_address(self.library) else str(Path(self.library).expanduser())
        data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
        return str(Path(data) / "harvest" / "library")


def read_defaults() -> Defaults:
    """The defaults, or the config file's; HarvestError where that is not understood."""
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    path = Path(config) / "harvest" / "config.json"
    if not path.is_file():
        return Defaults()
    from harvest.settings import read_settings

    defaults: Defaults = read_settings(Defaults, path)
    return defaults


def is_library(place: str) -> bool:
    return is_address(place) or (Path(place) / "library.db").is_file()


def split_library(words: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The library and the other words: the first word where it is a library, else the default library."""
    if words and is_library(words[0]):
        return words[0], words[1:]
    library = read_defaults().place
    if not is_library(library):
        named = f"{words[0]} is not a library, and there" if words else "There"
        raise HarvestError(f"{named} is no default library ({library}): make one with harvest index FOLDER")
    return library, words
