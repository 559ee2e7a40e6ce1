"""`harvest index`: folders of videos become a library that can be searched."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

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


def main(args: list[str]) -> None:
    if asks_help(args, HELP):
        return
    import tyro

    from harvest.plain_types import Selector

    def index(
        folders: Annotated[tuple[Path, ...], tyro.conf.Positional] = (),
        /,
        out: Annotated[str | None, tyro.conf.arg(aliases=["-o", "--store"])] = None,
        model: Annotated[str | None, tyro.conf.arg(aliases=["-m"])] = None,
        window_s: float | None = None,
        overlap: float | None = None,
        num_frames: int | None = None,
        budget: int | None = None,
        selector: Selector | None = None,
        background: Path | None = None,
        rerank: int | None = None,
        trust: tuple[Path, ...] | None = None,
        precision: Literal["fp32", "bf16"] = "fp32",
        batch_size: int = 32,
        workers: int = 1,
        verify: bool = False,
        reindex: bool = False,
        repair: bool = False,
    ) -> None:
        """Index folders of videos, or bring their library up to date; a stopped run goes on (docs/search.md).

        $ harvest index ~/Videos                          # into the default library, with the default model
        $ harvest index ~/Videos --model runs/demo/model --out library
        $ harvest index                                   # new, changed and vanished files of the folders it has
        $ torchrun --nproc-per-node 8 -m harvest index /data --model M --out library

        Args:
            folders: Folders of videos, searched with all that is in them, or single files; without any, those that the
                library has.
            out: The library's folder, or a PostgreSQL database (postgresql://user@host/name); without it the default
                library.
            model: Model folder, or any source that `harvest convert` takes. A library remembers it; a new one takes
                google/siglip2-base-patch32-256.
            window_s: Length of moments in long shots; new libraries take 4.
            overlap: Share of a moment that it has in common with the next; new libraries take 0.5.
            num_frames: Frames looked at in a moment; new libraries take the model's own number.
            budget: Tubelets seen of each moment; without it all.
            selector: Which tubelets are seen, with a budget; run_length sees what does not repeat, with or without one. New
                libraries take motion.
            background: File of sentences that nothing in the library matches, one a line, to calibrate scores against.
            rerank: Number of first answers of each search that the matching head orders again; calibrates that too.
            trust: Folders that links may lead into, such as a media server's or git-annex's store.
            workers: Videos decoded at a time.
            verify: Read every file to see whether it changed, where otherwise its size and time tell.
            reindex: Forget everything and start anew, for another model or other settings.
            repair: Keep what is whole of a damaged library, and index the rest again.
        """
        import dataclasses

        import harvest
        from harvest.progress import bar
        from harvest.search.library.ranks import world
        from harvest.search.library.segmentation import Segmentation

        defaults = read_defaults()
        library = out or defaults.place
        if model is None and not is_library(library):
            model = defaults.model
            print(
                f"model: {ABOUT_DEFAULT_MODEL if model == DEFAULT_MODEL else model}",
                file=sys.stderr,
                flush=True,
            )
        named: dict[str, object] = {"window_s": window_s, "overlap": overlap, "num_frames": num_frames}
        named |= {"budget": budget, "selector": selector}
        given = {name: value for name, value in named.items() if value is not None}
        with world() as is_main, bar("indexing") as progress:
            made = harvest.Index.build(
                folders,
                out=library,
                model=model,
                segmentation=dataclasses.replace(Segmentation(), **given) if given else None,  # type: ignore[arg-type]
                background=background,
                rerank=rerank,
                trust=None if trust is None else tuple(str(folder.resolve()) for folder in trust),
                precision=precision,
                batch_size=batch_size,
                workers=workers,
                verify=verify,
                reindex=reindex,
                repair=repair,
                progress=progress,
            )
        report, warning = made.report, made.warning() if is_main else None
        made.close()
        if report is not None and is_main:
            _print_report(report, library)
            if warning:
                print(warning, file=sys.stderr)

    run(index, args, prog="harvest index")


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
