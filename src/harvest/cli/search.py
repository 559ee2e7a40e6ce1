"""`harvest search`: moments of a library, by a sentence, a picture or a clip."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from harvest.cli.parsing import print_json, run

if TYPE_CHECKING:
    from harvest import Index
    from harvest.search.results import Answer


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

    from harvest.search.asking.curve import clock

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
            from harvest.search.asking.pictures import frames_at, half_blocks

            times = [hit.start_s + (hit.end_s - hit.start_s) * (part + 0.5) / 4 for part in range(4)]
            try:
                strip = frames_at(index.file(hit.moment.video), times, height=32)
            except HarvestError as error:
                console.print(f"     no picture: {error}", markup=False)
            else:
                console.print(half_blocks(strip, rows=6))
