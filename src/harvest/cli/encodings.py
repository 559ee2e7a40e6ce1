"""Terminals and pipes that have no Unicode: what they lack is written in ASCII, where it would end a command."""

import codecs
import sys

_PLAIN = str.maketrans(
    {"…": "...", "·": "-", "≤": "<=", "“": '"', "”": '"', "\u00a0": " "} | dict.fromkeys("▁▂▃▄▅▆▇█▀", "#")
)


def _plainer(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end].translate(_PLAIN)
    return lacking.encode("ascii", "replace").decode(), error.end


def write_in_any_encoding() -> None:
    """From now on standard output and error take every text."""
    codecs.register_error("harvest-plain", _plainer)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="harvest-plain")
