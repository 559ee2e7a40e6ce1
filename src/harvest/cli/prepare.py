"""`harvest prepare`."""

from pathlib import Path
from typing import Annotated

import tyro

from harvest.cli.options import RowOptions
from harvest.data.options import PrepareConfig


def prepare_command(
    manifest: Annotated[Path, tyro.conf.Positional],
    out: Annotated[Path, tyro.conf.Positional],
    /,
    rows: RowOptions = RowOptions(),  # noqa: B008  # frozen, as the other
    config: PrepareConfig = PrepareConfig(),  # noqa: B008
    workers: int = 2,
    verify: bool = False,
) -> None:
    """Pack the clips of a manifest into tar shards. Goes on if stopped.

    $ harvest prepare results_10M_train.csv /data/webvid-256 \\
        --videos /data/webvid --workers 32
    $ harvest train harvest-b16 \\
        --data.train '/data/webvid-256/shard-{000000..010699}.tar'
    $ harvest prepare clips.jsonl /data/frames --frames 16   JPEGs instead of video
    $ harvest prepare clips.jsonl /data/webvid-256 --verify  compare the checksums

    Args:
        manifest: .jsonl, .csv, .tsv or .parquet: video, caption(s), optional start_s, end_s, label; or the files of a
            published training set as they are (harvest dataset).
        out: Folder for the shards.
        workers: Processes.
        verify: Write nothing; read the shards and compare their checksums.
    """
    from harvest.data import prepare as preparing
    from harvest.data.manifest import read_manifest
    from harvest.interfaces import HarvestError
    from harvest.progress import bar

    if verify:
        with bar("reading shards") as progress:
            wrong = preparing.verify(out, progress=progress)
        if wrong:
            raise HarvestError("\n  ".join([f"{len(wrong)} shards of {out} are damaged:", *wrong]))
        print(f"{out}: every shard is as it was written")
        return
    examples = read_manifest(manifest, captions_required=False, **vars(rows))
    print(examples.summary())
    with bar("preparing clips") as progress:
        made = preparing.prepare(examples, out, config, workers=workers, progress=progress)
    print(
        f"{made.num_clips:,} of {len(examples):,} clips in {len(made.shards):,} shards, {made.num_bytes / 1e9:.2f} GB"
    )
    if made.broken:
        name, reason = next(iter(made.broken.items()))
        print(f"{len(made.broken)} could not be read; first: {name}: {reason}; all: {out / 'broken.json'}")
    left_behind = sum(bool(e.labels or e.boxes or e.question) for e in examples)
    if left_behind:
        print(
            f"{left_behind:,} rows have several labels, boxes or a question, which shards do not hold: for these"
            " tasks train from the manifest"
        )
    print(f"--data.train {out}")
