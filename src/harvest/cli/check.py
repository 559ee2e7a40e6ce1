"""`harvest check`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from harvest.cli.options import RowOptions
from harvest.data.options import CheckConfig
from harvest.errors import HarvestError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harvest.data.check import Checked
    from harvest.data.manifest import Rows


def check_command(
    manifest: Annotated[Path, tyro.conf.Positional],
    /,
    rows: RowOptions = RowOptions(),  # noqa: B008  # frozen, as the other
    config: CheckConfig = CheckConfig(),  # noqa: B008
    out: Path | None = None,
    caption_model: str | None = None,
    workers: int = 2,
    links: bool = False,
    link_timeout_s: float = 10.0,
) -> None:
    """Look at every clip of a manifest once: a page of what is wrong, and clean.jsonl.

    $ harvest check clips.jsonl
    $ harvest check results_10M_train.csv --videos /data/webvid --workers 32
    $ harvest check results_10M_train.csv --links      are the videos still there?
    $ harvest check panda70m_training_2m.csv --videos /data/panda
    $ harvest check clips.jsonl --caption-model openai/clip-vit-base-patch16 \\
        --min-similarity 0.2

    Args:
        manifest: .jsonl, .csv, .tsv or .parquet: video, caption(s), optional start_s, end_s, label; or the files of a
            published training set as they are (harvest dataset).
        out: Folder for check.html, check.json and clean.jsonl; without it check-NAME here.
        caption_model: An image model that says how alike clips and captions are: a hub name, a folder or a file.
        workers: Processes that decode.
        links: Also ask whether the videos behind addresses (columns video, url, contentUrl, link) are still there.
        link_timeout_s: How long a server may take to answer; it is asked three times.
    """
    from harvest.data.check import check, write_report
    from harvest.data.manifest import read_manifest
    from harvest.progress import bar

    if config.min_similarity is not None and caption_model is None:
        raise HarvestError("--min-similarity needs --caption-model, which measures it")
    examples = read_manifest(manifest, captions_required=False, keep_links=links, **vars(rows))
    print(examples.summary())
    similarities = None if caption_model is None else _similarities(caption_model, examples, workers)
    rotted = _rotted(manifest, examples, link_timeout_s) if links else None
    with bar("looking at clips") as progress:
        found = check(
            examples,
            config,
            columns=examples.columns,
            similarities=similarities,
            rotted=rotted,
            workers=workers,
            progress=progress,
        )
    folder = out or Path(f"check-{manifest.stem}")
    write_report(folder, manifest.name, examples, found)
    _print_found(found, folder, asked_links=links)


def _similarities(caption_model: str, examples: "Rows", workers: int) -> "Mapping[str, float]":
    from harvest.evaluation.caption_quality import caption_similarities
    from harvest.model.importing.pretrained import load_pretrained
    from harvest.progress import bar

    model, tokenizer, _ = load_pretrained(caption_model)
    with bar("comparing clips and captions") as progress:
        return caption_similarities(model, tokenizer, examples, workers=workers, progress=progress)


def _rotted(manifest: Path, examples: "Rows", timeout_s: float) -> dict[str, str]:
    from harvest.data.links import check_links
    from harvest.progress import bar

    addresses = examples.links
    if not addresses:
        raise HarvestError(f"{manifest} has no addresses: --links has nothing to ask for")
    with bar("asking for videos") as progress:
        gone = check_links(list(addresses.values()), timeout_s=timeout_s, progress=progress)
    return {id: gone[address] for id, address in addresses.items() if address in gone}


def _print_found(found: "Checked", folder: Path, *, asked_links: bool) -> None:
    print(f"{found.num_rows:,} rows of {found.num_clips:,} clips, {found.hours:.1f} hours")
    for word in ("missing", "rotted", "broken", "duplicate", "short", "silent", "unlike"):
        rows = getattr(found, word)
        first = next(iter(rows.items()), None)
        print(f"{word:<10} {len(rows):>9,}" + (f"   first: {first[0]}: {first[1]}" if first else ""))
    if found.num_addresses and not asked_links:
        print(
            f"{found.num_addresses:,} rows are addresses, not looked at: --links asks whether they are there"
        )
    if found.licence_column is None:
        print("no column tells the licence (licence, license, rights)")
    print(f"page: {folder / 'check.html'}")
    print(f"{found.num_rows - len(found.useless):,} rows with nothing wrong: {folder / 'clean.jsonl'}")
