"""`harvest search`: moments of a library, by a sentence, a picture or a clip."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from harvest.cli.defaults import split_library
from harvest.cli.parsing import print_json, printable
from harvest.search.results import Where

if TYPE_CHECKING:
    from harvest import Index
    from harvest.search.results import Answer


@dataclass(frozen=True)
class LikeOptions:
    """What moments are to be like, and not like, besides words."""

    image: Path | None = None
    """Find moments like a picture."""
    clip: Path | None = None
    """Find moments like a clip, or a stretch of it."""
    start_s: float = 0.0
    """Where the stretch of --clip starts."""
    end_s: float | None = None
    """Where it ends; without it the clip's end."""
    moment: str | None = None
    """Find moments like one of the library's own, by its id in --json."""
    not_: Annotated[tuple[str, ...], tyro.conf.arg(name="not")] = ()
    """What must not be there."""


def search_command(
    words: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    /,
    like: LikeOptions = LikeOptions(),  # frozen, as the other
    where: Where = Where(),  # noqa: B008
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 10,
    per_video: int | None = None,
    rerank: int | None = None,
    false_accept: float = 0.05,
    model: Annotated[str | None, tyro.conf.arg(aliases=["-m"])] = None,
    json: bool = False,
    pictures: bool = True,
) -> None:
    """Find moments by a sentence, a picture or a clip.

    "Nothing like this here" is an answer.

    $ harvest search a red car turns left             # in the default library
    $ harvest search library "a red car turns left"
    $ harvest search library "a dog on a beach" --not "people" \\
        --path "holiday/*" --after 2026-06-01
    $ harvest search library --image photo.jpg --json
    $ harvest search library --clip video.mp4 --start-s 12 --end-s 15

    Args:
        words: What to look for; before it, the folder or database of a library that is not the default one.
        k: How many moments.
        per_video: How many of one video at most.
        rerank: Number of first answers that the matching head orders again; without it, as indexed.
        false_accept: Share of nonsense queries that may be answered all the same.
        model: Where the model is now, if it was moved.
        json: Print the answer as JSON.
        pictures: Thumbnails, in a terminal with colours.
    """
    library, query = split_library(words)
    import harvest

    with harvest.Index.open(library, model=model) as index:
        answer = index.search(
            " ".join(query) or None,
            image=like.image,
            clip=like.clip,
            clip_start_s=like.start_s,
            clip_end_s=like.end_s,
            moment=like.moment,
            without=like.not_,
            where=where,
            k=k,
            per_video=per_video,
            rerank=rerank,
            false_accept=false_accept,
        )
        if json:
            print_json(_with_whole_paths(index, answer))
        else:
            _print_answer(index, answer, pictures=pictures)
        if warning := index.warning():
            print(warning, file=sys.stderr)


def _with_whole_paths(index: "Index", answer: "Answer") -> "Answer":
    """Hits whose paths other programs can open."""
    moments = [replace(hit.moment, path=str(index.path(hit.moment.video))) for hit in answer.hits]
    return replace(
        answer,
        hits=tuple(replace(hit, moment=moment) for hit, moment in zip(answer.hits, moments, strict=True)),
    )


def _print_answer(index: "Index", answer: "Answer", *, pictures: bool) -> None:
    from rich.console import Console

    from harvest.search.asking.curve import clock

    console = Console(highlight=False)
    for note in answer.notes:
        console.print(printable(note), markup=False)
    if not answer.is_there:
        console.print(f"nothing like this here: {printable(answer.query)}", markup=False)
        if answer.hits:
            console.print("the nearest:", markup=False)
    has_colours = console.color_system in ("256", "truecolor") and not console.no_color
    for number, hit in enumerate(_with_whole_paths(index, answer).hits, start=1):
        start, end = (clock(time_s + hit.moment.offset_s) for time_s in (hit.start_s, hit.end_s))
        chance = "" if hit.chance is None else f"  {hit.match} (chance {hit.chance:.1%})"
        console.print(
            f"{number:>3}. {printable(hit.path)}  {start} to {end}  score {hit.score:.3f}{chance}",
            markup=False,
            soft_wrap=True,
        )
        if pictures and console.is_terminal and has_colours:
            from harvest.errors import HarvestError
            from harvest.search.asking.pictures import frames_at, half_blocks

            times = [hit.start_s + (hit.end_s - hit.start_s) * (part + 0.5) / 4 for part in range(4)]
            try:
                strip = frames_at(index.file(hit.moment.video), times, height=32)
            except HarvestError as error:
                console.print(f"     no picture: {printable(str(error))}", markup=False)
            else:
                console.print(half_blocks(strip, rows=6))
