"""`harvest index`: folders of videos become a library that can be searched."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from harvest.cli.defaults import ABOUT_DEFAULT_MODEL, DEFAULT_MODEL, is_library, read_defaults
from harvest.cli.parsing import asks_help, printable, run
from harvest.search.results import is_address

if TYPE_CHECKING:
    from harvest.search.results import IndexReport

MOST_NAMED = 10  # files of one kind in the report
HELP = """usage: harvest index [FOLDER ...] [options]

Indexes folders of videos, or brings their library up to date. A stopped run
goes on with the same command.

  harvest index ~/Videos           into the default library, with its model
  harvest index ~/Videos --model runs/demo/model --out library
  harvest index                    new, changed and vanished files
  torchrun --nproc-per-node 8 -m harvest index /data --model M --out library

  FOLDER             folders, with all that is in them, or single files;
                     without any, those that the library has
  -o, --out FOLDER   the library; by default ~/.local/share/harvest/library
  --store ADDRESS    a library in PostgreSQL: postgresql://user@host/name
  -m, --model MODEL  model folder, hub name, or what harvest convert takes;
                     a library remembers it, a new one takes
                     google/siglip2-base-patch32-256
  --window-s S       length of moments in long shots (default 4)
  --background FILE  sentences that nothing in the library matches, one a line
  --trust FOLDER     where links may lead, such as a media server's store
  --workers N        videos decoded at a time (default 1)
  --verify           read every file to see whether it changed
  --reindex          start anew, for another model or other settings
  --repair           keep what is whole of a damaged library

Every option: harvest index --help-all
"""


@dataclass(frozen=True)
class IndexOptions:
    """Where the library lies, and how it is made."""

    out: Annotated[str | None, tyro.conf.arg(aliases=["-o", "--store"])] = None
    """The library's folder, or a PostgreSQL database (postgresql://user@host/name); without it the default library."""
    model: Annotated[str | None, tyro.conf.arg(aliases=["-m"])] = None
    """Model folder, or any source that `harvest convert` takes. A library remembers it; a new one takes
    google/siglip2-base-patch32-256."""
    background: Path | None = None
    """File of sentences that nothing in the library matches, one a line, to calibrate scores against."""
    rerank: int | None = None
    """Number of first answers of each search that the matching head orders again; calibrates that too."""
    trust: tuple[Path, ...] | None = None
    """Folders that links may lead into, such as a media server's or git-annex's store."""
    precision: Literal["fp32", "bf16"] | None = None
    """None: bf16 by PyTorch, in fp32 on a CPU without its instructions; ONNX as it was exported."""
    batch_size: int = 32
    workers: int = 1
    """Videos decoded at a time."""
    verify: bool = False
    """Read every file to see whether it changed, where otherwise its size and time tell."""
    reindex: bool = False
    """Forget everything and start anew, for another model or other settings."""
    repair: bool = False
    """Keep what is whole of a damaged library, and index the rest again."""


@dataclass(frozen=True)
class CutOptions:
    """How videos are cut into moments; None: as the library has it, and new libraries as `Segmentation`."""

    window_s: float | None = None
    """Length of moments in long shots; new libraries take 4."""
    overlap: float | None = None
    """Share of a moment that it has in common with the next; new libraries take 0.5."""
    num_frames: int | None = None
    """Frames looked at in a moment; new libraries of a video model take the model's own number."""
    frames_per_s: float | None = None
    """Frames looked at in a second, by an image model; its new libraries take 1."""
    budget: int | None = None
    """Tubelets seen of each moment; without it all."""


def main(args: list[str]) -> None:
    if asks_help(args, HELP):
        return
    from harvest.plain_types import Selector

    def index(
        folders: Annotated[tuple[Path, ...], tyro.conf.Positional] = (),
        /,
        options: IndexOptions = IndexOptions(),  # frozen, as the other
        cut: CutOptions = CutOptions(),
        selector: Selector | None = None,
    ) -> None:
        """Index folders of videos, or bring their library up to date; a stopped run goes on (docs/search.md).

        $ harvest index ~/Videos                          # into the default library, with the default model
        $ harvest index ~/Videos --model runs/demo/model --out library
        $ harvest index                                   # new, changed and vanished files of the folders it has
        $ torchrun --nproc-per-node 8 -m harvest index /data --model M --out library

        Args:
            folders: Folders of videos, searched with all that is in them, or single files; without any, those that the
                library has.
            selector: Which tubelets are seen, with a budget; run_length sees what does not repeat, with or without one.
                New libraries take motion.
        """
        _index(folders, options, vars(cut) | {"selector": selector})

    run(index, args, prog="harvest index")


def _index(folders: tuple[Path, ...], options: IndexOptions, cut: dict[str, Any]) -> None:
    import harvest
    from harvest.progress import bar
    from harvest.search.library.ranks import world
    from harvest.search.library.segmentation import Segmentation

    defaults = read_defaults()
    library, model = options.out or defaults.place, options.model
    if model is None and not is_library(library):
        model = defaults.model
        about = ABOUT_DEFAULT_MODEL if model == DEFAULT_MODEL else model
        print(f"model: {about}", file=sys.stderr, flush=True)
    given = {name: value for name, value in cut.items() if value is not None}
    trust = None if options.trust is None else tuple(str(folder.resolve()) for folder in options.trust)
    settings = vars(options) | {"out": library, "model": model, "trust": trust}
    with world() as is_main, bar("indexing") as progress:
        made = harvest.Index.build(
            folders,
            segmentation=replace(Segmentation(), **given) if given else None,
            progress=progress,
            **settings,
        )
    report, warning = made.report, made.warning() if is_main else None
    made.close()
    if report is not None and is_main:
        _print_report(report, library)
        if warning:
            print(warning, file=sys.stderr)


def _print_report(report: "IndexReport", library: str) -> None:
    copies = f"{report.copies} copies of others, " if report.copies else ""
    print(
        f"{report.new} new, {copies}{report.changed} changed, {report.moved} moved, {report.vanished} vanished, "
        f"{report.unchanged} unchanged, {len(report.broken)} in quarantine: {report.moments:,} moments, "
        f"{report.seconds:.1f} s: {library}"
    )
    for kind, found in (("quarantine", report.broken), ("not listed", report.unreadable)):
        for one in found[:MOST_NAMED]:
            print(f"{kind}: {printable(one.path)}: {printable(one.reason)}")
        if len(found) > MOST_NAMED:
            print(
                f"and {len(found) - MOST_NAMED} more"
                + ("" if is_address(library) else f": {library}/quarantine.jsonl")
            )
    if report.left_out:
        most = sorted(report.left_out.items(), key=lambda pair: (-pair[1], pair[0]))
        named = ", ".join(f"{count} {printable(kind)}" for kind, count in most[:MOST_NAMED])
        print(f"left out as no videos: {named}{' and others' if len(most) > MOST_NAMED else ''}")
