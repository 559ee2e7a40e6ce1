"""`harvest prepare`."""

from pathlib import Path
from typing import Annotated

import tyro


def prepare_command(
    manifest: Annotated[Path, tyro.conf.Positional],
    out: Annotated[Path, tyro.conf.Positional],
    /,
    videos: Path | None = None,
    form: str = "",
    columns: tuple[str, ...] = (),
    short_side: int = 256,
    frames: int | None = None,
    key_every: int = 12,
    crf: int = 23,
    max_fps: float | None = 30.0,
    clips_per_shard: int = 1000,
    video_limit_s: float = 300.0,
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
        videos: Folder that video paths are relative to; without it the manifest's own.
        form: Name of the training set (harvest dataset), where it is not to be recognised by its columns.
        columns: What a column is, where its name does not say: caption=long_text video=file start=t0 ignore=t1.
        short_side: Pixels of the short side; smaller videos keep their size.
        frames: So many frames of each clip as pictures, instead of a video.
        key_every: Largest distance of key frames.
        crf: x264's quality, 0 (lossless) to 51.
        max_fps: Frames a second kept.
        clips_per_shard: Clips in a shard.
        video_limit_s: A clip that takes longer counts as broken.
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
    config = preparing.PrepareConfig(
        short_side, frames, key_every, crf, max_fps, clips_per_shard, video_limit_s
    )
    examples = read_manifest(manifest, videos=videos, captions_required=False, form=form, columns=columns)
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
