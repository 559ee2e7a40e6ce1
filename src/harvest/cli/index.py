"""`harvest index`: folders of videos become a library that can be searched."""

from pathlib import Path
from typing import Annotated, Literal

from harvest.cli.parsing import run


def index_command(args: list[str]) -> None:
    import tyro

    from harvest.tokens import Selector

    def index(
        folders: Annotated[tuple[Path, ...], tyro.conf.Positional],
        /,
        out: Path,
        model: str | None = None,
        window_s: float | None = None,
        overlap: float | None = None,
        num_frames: int | None = None,
        budget: int | None = None,
        selector: Selector | None = None,
        background: Path | None = None,
        rerank: int | None = None,
        precision: Literal["fp32", "bf16"] = "fp32",
        batch_size: int = 32,
        workers: int = 1,
        verify: bool = False,
        reindex: bool = False,
    ) -> None:
        """Index folders of videos, or bring their library up to date; a stopped run goes on (docs/search.md).

        $ harvest index ~/Videos --model runs/demo/model --out library
        $ harvest index ~/Videos --out library                                  # new, changed and vanished files
        $ torchrun --nproc-per-node 8 -m harvest index /data --model M --out library

        Args:
            folders: Folders of videos, searched with all that is in them.
            out: The library's folder.
            model: Model folder, or any source that `harvest convert` takes; needed for a new library.
            window_s: Length of moments in long shots; new libraries take 4.
            overlap: Share of a moment that it has in common with the next; new libraries take 0.5.
            num_frames: Frames looked at in a moment; new libraries take the model's own number.
            budget: Tubelets seen of each moment; without it all.
            selector: Which tubelets are seen, with a budget; run_length sees what does not repeat, with or without one. New
                libraries take motion.
            background: File of sentences that nothing in the library matches, one a line, to calibrate scores against.
            rerank: Let the model's matching head read so many first answers of each search again, and calibrate that.
            workers: Videos decoded at a time.
            verify: Read every file to see whether it changed, where otherwise its size and time tell.
            reindex: Forget everything and start anew, for another model or other settings.
        """
        import dataclasses

        import harvest
        from harvest.parallel import world
        from harvest.progress import bar
        from harvest.search.library.segmentation import Segmentation

        named: dict[str, object] = {"window_s": window_s, "overlap": overlap, "num_frames": num_frames}
        named |= {"budget": budget, "selector": selector}
        given = {name: value for name, value in named.items() if value is not None}
        with world() as here, bar("indexing") as progress:
            made = harvest.Index.build(
                folders,
                out=out,
                model=model,
                segmentation=dataclasses.replace(Segmentation(), **given) if given else None,  # type: ignore[arg-type]
                background=background,
                rerank=rerank,
                precision=precision,
                batch_size=batch_size,
                workers=workers,
                verify=verify,
                reindex=reindex,
                progress=progress,
            )
        report = made.report
        made.close()
        if report is None or not here.is_main:
            return
        print(
            f"{report.new} new, {report.changed} changed, {report.moved} moved, {report.vanished} vanished, "
            f"{report.unchanged} unchanged, {len(report.broken)} in quarantine: {report.moments:,} moments, "
            f"{report.seconds:.1f} s"
        )
        for broken in report.broken[:10]:
            print(f"quarantine: {broken.path}: {broken.reason}")
        if len(report.broken) > 10:
            print(f"and {len(report.broken) - 10} more: {out / 'quarantine.jsonl'}")

    run(index, args)
