"""`harvest index`, `search`, `moments` and `serve`: a model at work on one's own videos."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from harvest.cli.parsing import print_json, run

if TYPE_CHECKING:
    from harvest import Index
    from harvest.search.results import Answer


def index_command(args: list[str]) -> None:
    import tyro

    def index(
        folders: Annotated[tuple[Path, ...], tyro.conf.Positional],
        /,
        out: Path,
        model: str | None = None,
        window_s: float | None = None,
        overlap: float | None = None,
        num_frames: int | None = None,
        budget: int | None = None,
        selector: Literal["random", "tube", "motion", "attention", "run_length", "merge"] | None = None,
        background: Path | None = None,
        store: str | None = None,
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
        $ torchrun --nproc-per-node 8 -m harvest index /data --model M --out library --store http://host:6333/videos

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
            store: Address of a Qdrant server for the vectors, http://HOST:6333/NAME; without it the library's folder.
            rerank: Let the model's matching head read so many first answers of each search again, and calibrate that.
            workers: Videos decoded at a time.
            verify: Read every file to see whether it changed, where otherwise its size and time tell.
            reindex: Forget everything and start anew, for another model or other settings.
        """
        import dataclasses

        import harvest
        from harvest.parallel import world
        from harvest.progress import bar
        from harvest.search.cutting import Cutting

        named: dict[str, object] = {"window_s": window_s, "overlap": overlap, "num_frames": num_frames}
        named |= {"budget": budget, "selector": selector}
        given = {name: value for name, value in named.items() if value is not None}
        with world() as here, bar("indexing") as progress:
            made = harvest.Index.build(
                folders,
                out=out,
                model=model,
                cutting=dataclasses.replace(Cutting(), **given) if given else None,  # type: ignore[arg-type]
                background=background,
                store=store,
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


def search_command(args: list[str]) -> None:
    import tyro

    def search(
        library: Annotated[Path, tyro.conf.Positional],
        text: Annotated[str | None, tyro.conf.Positional] = None,
        /,
        image: Path | None = None,
        clip: Path | None = None,
        start_s: float = 0.0,
        end_s: float | None = None,
        moment: str | None = None,
        not_: Annotated[tuple[str, ...], tyro.conf.arg(name="not")] = (),
        path: str | None = None,
        after: str | None = None,
        before: str | None = None,
        min_duration_s: float | None = None,
        max_duration_s: float | None = None,
        k: int = 10,
        rerank: int | None = None,
        false_accept: float = 0.05,
        model: str | None = None,
        json: bool = False,
        pictures: bool = True,
    ) -> None:
        """Find moments by a sentence, a picture or a clip. "Nothing like this here" is an answer.

        $ harvest search library "a red car turns left"
        $ harvest search library "a dog on a beach" --not "people" --path "holiday/*" --after 2026-06-01
        $ harvest search library --image photo.jpg --json
        $ harvest search library --clip video.mp4 --start-s 12 --end-s 15

        Args:
            library: The folder that `harvest index` wrote.
            text: What to look for.
            image: Find moments like a picture.
            clip: Find moments like a clip, or a stretch of it.
            start_s: Where the stretch of --clip starts.
            end_s: Where it ends; without it the clip's end.
            moment: Find moments like one of the library's own, by its id in --json.
            not_: What must not be there.
            path: Pattern, or piece, of the paths to look in.
            after: Only files changed on or after this date.
            before: Only files changed before this date.
            k: How many moments.
            rerank: Let the model's matching head read the first so many again and order them; without it, as indexed.
            false_accept: Share of nonsense queries that may be answered all the same.
            model: Where the model is now, if it was moved.
            json: Print the answer as JSON.
            pictures: Thumbnails, in a terminal with colours.
        """
        import harvest
        from harvest.search.results import Where

        with harvest.Index.open(library, model=model) as index:
            answer = index.search(
                text,
                image=image,
                clip=clip,
                clip_start_s=start_s,
                clip_end_s=end_s,
                moment=moment,
                without=not_,
                where=Where(
                    path=path,
                    after=after,
                    before=before,
                    min_duration_s=min_duration_s,
                    max_duration_s=max_duration_s,
                ),
                k=k,
                rerank=rerank,
                false_accept=false_accept,
            )
            if json:
                print_json(answer)
            else:
                _print_answer(index, answer, pictures=pictures)

    run(search, args)


def _print_answer(index: "Index", answer: "Answer", *, pictures: bool) -> None:
    from rich.console import Console

    from harvest.search.curve import clock

    console = Console(highlight=False)
    for note in answer.notes:
        console.print(note, markup=False)
    if not answer.is_there:
        console.print(f"nothing like this here: {answer.query}", markup=False)
        if answer.hits:
            console.print("the nearest:", markup=False)
    with_pictures = pictures and console.is_terminal and console.color_system in ("256", "truecolor")
    for number, hit in enumerate(answer.hits, start=1):
        chance = "" if hit.chance is None else f"  chance {hit.chance:.1%}"
        console.print(
            f"{number:>3}. {hit.path}  {clock(hit.start_s)} to {clock(hit.end_s)}  score {hit.score:.3f}{chance}",
            markup=False,
            soft_wrap=True,
        )
        if with_pictures:
            from harvest.interfaces import HarvestError
            from harvest.search.pictures import frames_at, half_blocks

            times = [hit.start_s + (hit.end_s - hit.start_s) * (part + 0.5) / 4 for part in range(4)]
            try:
                strip = frames_at(index.file(hit.moment.video), times, height=32)
            except HarvestError as error:
                console.print(f"     no picture: {error}", markup=False)
            else:
                console.print(half_blocks(strip, rows=6))


def moments_command(args: list[str]) -> None:
    import tyro

    def moments(
        video: Annotated[Path, tyro.conf.Positional],
        texts: Annotated[tuple[str, ...], tyro.conf.Positional],
        /,
        model: str,
        window_s: float = 4.0,
        hop_s: float = 1.0,
        fast: bool = False,
        k: int = 5,
        precision: Literal["fp32", "bf16"] = "fp32",
        picture: Path | None = None,
        json: bool = False,
    ) -> None:
        """A score for every second of one video, and the stretches in which a sentence is best met.

        $ harvest moments film.mp4 "two people dance" --model runs/webvid/model --picture dance.svg
        $ harvest moments film.mp4 "two people dance" "it rains" --model runs/webvid/model --json

        Args:
            video: The video.
            texts: One sentence or several; the video is encoded once.
            model: Model folder, or any source that `harvest convert` takes.
            window_s: How much of the video a score is of.
            hop_s: Distance of scores.
            fast: Encode each hop once instead of every window: less work, and order within a window is lost.
            k: How many stretches.
            picture: Write the curve to this SVG file; of several sentences, each with its number.
            json: Print the curve as JSON.
        """
        import torch

        from harvest.files import write_file
        from harvest.interfaces import HarvestError
        from harvest.model.pretrained import load_pretrained
        from harvest.progress import bar
        from harvest.search.curve import blocks, clock, svg
        from harvest.search.moments import Dense, DenseVideo

        if not texts:
            raise HarvestError("moments needs a sentence")
        dense = Dense(window_s=window_s, hop_s=hop_s, fast=fast)
        loaded, tokenizer, _ = load_pretrained(model)
        if torch.cuda.is_available():
            loaded.cuda()
        with bar("encoding") as progress:
            read = DenseVideo.read(loaded, tokenizer, video, dense, precision=precision, progress=progress)
        for number, text in enumerate(texts, start=1):
            curve = read.curve(text, k=k)
            if json:
                print_json(curve)
            else:
                print(text)
                print(
                    f"  {blocks(curve.scores, width=72)}  {min(curve.scores):.2f} to {max(curve.scores):.2f}"
                )
                for best in curve.intervals:
                    print(f"  {clock(best.start_s)} to {clock(best.end_s)}  score {best.score:.3f}")
            if picture is not None:
                file = picture if len(texts) == 1 else picture.with_stem(f"{picture.stem}-{number}")
                write_file(file, svg(curve))
                if not json:
                    print(f"picture: {file}")

    run(moments, args)


def serve_command(args: list[str]) -> None:
    import signal

    import tyro

    def serve(
        library: Annotated[Path, tyro.conf.Positional],
        /,
        host: str = "127.0.0.1",
        port: int = 8077,
        token_file: Path | None = None,
        name: tuple[str, ...] = (),
        threads: int = 2,
        model: str | None = None,
        open: bool = False,
    ) -> None:
        """Serve a library over HTTP: a page in the browser, and the interface that /openapi.json describes.

        $ harvest serve library --open
        $ harvest serve library --host 0.0.0.0 --token-file token.txt

        Whoever can reach it on this machine may ask. Bound to another address it asks for a token: that of
        --token-file or the variable HARVEST_TOKEN, or else one that is made and printed.

        Args:
            library: The folder that `harvest index` wrote.
            host: Address to listen at.
            port: Port to listen at; 0 is any free one.
            token_file: File whose first line is the token.
            name: Further names that this service goes by, such as that of a proxy before it.
            threads: Searches, and pictures, computed at once.
            model: Where the model is now, if it was moved.
            open: Open the page in the browser.
        """
        import harvest
        from harvest.interfaces import HarvestError

        try:
            from harvest.search.server import serve as run
        except ImportError as error:
            raise HarvestError(
                f"serving needs {error.name}: pip install 'harvest-video[search,serve]'"
            ) from error
        token = os.environ.get("HARVEST_TOKEN") or None
        if token_file is not None:
            try:
                token = token_file.read_text(encoding="utf-8").partition("\n")[0].strip()
            except (OSError, UnicodeDecodeError) as error:
                raise HarvestError(f"token file {token_file}: cannot be read: {error}") from error

        # so that what the service keeps in a temporary folder goes with it
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

        def ready(address: str) -> None:
            print(f"serving {library} at {address}\nend with Ctrl-C", flush=True)
            if open:
                import webbrowser

                webbrowser.open(address)

        with harvest.Index.open(library, model=model) as index:
            run(index, host=host, port=port, token=token, names=name, threads=threads, ready=ready)

    run(serve, args)
