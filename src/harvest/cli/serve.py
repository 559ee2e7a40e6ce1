"""`harvest serve`: a library over HTTP, with a page in the browser."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro

from harvest.cli.defaults import split_library
from harvest.errors import HarvestError


def serve_command(
    library: Annotated[str | None, tyro.conf.Positional] = None,
    /,
    host: str = "127.0.0.1",
    port: int = 8077,
    token_file: Path | None = None,
    name: tuple[str, ...] = (),
    threads: int = 2,
    prefix: str = "",
    model: Annotated[str | None, tyro.conf.arg(aliases=["-m"])] = None,
    open: bool = False,
) -> None:
    """Serve a library over HTTP: a page in the browser, and an interface for programs.

    $ harvest serve --open                            # the default library
    $ harvest serve library --open
    $ harvest serve library --host 0.0.0.0 --token-file token.txt

    Everybody on this machine may ask; from elsewhere a token is needed.

    Args:
        library: The folder or database that `harvest index` wrote; without it the default library.
        host: Address to listen at.
        port: Port to listen at; 0 is any free one.
        token_file: File whose first line is the token; without it HARVEST_TOKEN, or one that is made and printed.
        name: Further names that this service goes by, such as that of a proxy before it.
        prefix: Path under which a proxy serves it, such as /videos.
        threads: Searches, and pictures, computed at once.
        model: Where the model is now, if it was moved.
        open: Open the page in the browser.
    """
    if library is None:
        library, _ = split_library(())
    import harvest

    run = _service()
    # so that what the service keeps in a temporary folder goes with it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

    def ready(address: str) -> None:
        print(f"serving {library} at {address}\nend with Ctrl-C", flush=True)
        if warning := index.warning():
            print(warning, file=sys.stderr)
        if open:
            import webbrowser

            webbrowser.open(address)

    with harvest.Index.open(library, model=model) as index:
        run(
            index,
            host=host,
            port=port,
            token=_token(token_file),
            names=name,
            threads=threads,
            prefix=prefix,
            ready=ready,
        )


def _token(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get("HARVEST_TOKEN") or None
    try:
        return file.read_text(encoding="utf-8").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise HarvestError(f"token file {file}: cannot be read: {error}") from error


def _service() -> Callable[..., None]:
    try:
        from harvest.search.serving.server import serve
    except ImportError as error:
        raise HarvestError(
            f"serving needs {error.name}: pip install fastapi starlette uvicorn prometheus-client"
        ) from error
    return serve
