"""`harvest check`."""

from pathlib import Path
from typing import Annotated

import tyro


def check_command(
    manifest: Annotated[Path, tyro.conf.Positional],
    /,
    videos: Path | None = None,
    form: str = "",
    columns: tuple[str, ...] = (),
    out: Path | None = None,
    min_s: float = 1.0,
    min_words: int = 2,
    caption_model: str | None = None,
    min_similarity: float | None = None,
    video_limit_s: float = 30.0,
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
        videos: Folder that video paths are relative to; without it the manifest's own.
        form: Name of the training set (harvest dataset), where it is not to be recognised by its columns.
        columns: What a column is, where its name does not say: caption=long_text video=file start=t0 ignore=t1.
        out: Folder for check.html, check.json and clean.jsonl; without it check-NAME here.
        min_s: Clips that are shorter are named.
        min_words: Captions of fewer words are named.
        caption_model: An image model that says how alike clips and captions are: a hub name, a folder or a file.
        min_similarity: Rows whose best caption is less similar to the clip are named.
        video_limit_s: A clip that takes longer to read counts as broken.
        workers: Processes that decode.
        links: Also ask whether the videos behind addresses (columns video, url, contentUrl, link) are still there.
        link_timeout_s: How long a server may take to answer; it is asked three times.
    """
    from harvest.data.check import CheckConfig, write_report
    from harvest.data.check import check as run
    from harvest.data.links import check_links
    from harvest.data.manifest import read_manifest
    from harvest.interfaces import HarvestError
    from harvest.progress import bar

    if min_similarity is not None and caption_model is None:
        raise HarvestError("--min-similarity needs --caption-model, which measures it")
    examples = read_manifest(
        manifest, videos=videos, captions_required=False, form=form, columns=columns, keep_links=links
    )
    print(examples.summary())
    similarities = None
    if caption_model is not None:
        from harvest.evaluation.caption_quality import caption_similarities
        from harvest.model.importing.pretrained import load_pretrained

        model, tokenizer, _ = load_pretrained(caption_model)
        with bar("comparing clips and captions") as progress:
            similarities = caption_similarities(
                model, tokenizer, examples, workers=workers, progress=progress
            )
    rotted = None
    if links:
        addresses = examples.links
        if not addresses:
            raise HarvestError(f"{manifest} has no addresses: --links has nothing to ask for")
        with bar("asking for videos") as progress:
            gone = check_links(list(addresses.values()), timeout_s=link_timeout_s, progress=progress)
        rotted = {id: gone[address] for id, address in addresses.items() if address in gone}
    config = CheckConfig(min_s, min_words, min_similarity, video_limit_s)
    with bar("looking at clips") as progress:
        found = run(
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
    print(f"{found.num_rows:,} rows of {found.num_clips:,} clips, {found.hours:.1f} hours")
    for word in ("missing", "rotted", "broken", "duplicate", "short", "silent", "unlike"):
        rows = getattr(found, word)
        first = next(iter(rows.items()), None)
        print(f"{word:<10} {len(rows):>9,}" + (f"   first: {first[0]}: {first[1]}" if first else ""))
    if found.num_addresses and rotted is None:
        print(
            f"{found.num_addresses:,} rows are addresses, not looked at: --links asks whether they are there"
        )
    if found.licence_column is None:
        print("no column tells the licence (licence, license, rights)")
    print(f"page: {folder / 'check.html'}")
    print(f"{found.num_rows - len(found.useless):,} rows with nothing wrong: {folder / 'clean.jsonl'}")
