"""`harvest check`, `prepare` and `miniworld`: training sets."""

from pathlib import Path
from typing import Annotated

from harvest.cli.parsing import run


def check_command(args: list[str]) -> None:
    import tyro

    def check(
        manifest: Annotated[Path, tyro.conf.Positional],
        /,
        videos: Path | None = None,
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
        """Look at every clip of a manifest once; what is wrong goes on a page, what is not into clean.jsonl.

        $ harvest check clips.jsonl
        $ harvest check results_10M_train.csv --videos /data/webvid --workers 32 --out checks/webvid
        $ harvest check results_10M_train.csv --links       are the videos still where the csv says they are?
        $ harvest check clips.jsonl --caption-model openai/clip-vit-base-patch16 --min-similarity 0.2

        Args:
            manifest: .jsonl, .csv, .tsv or .parquet: video, caption(s), optional start_s, end_s, label.
            videos: Folder that video paths are relative to; without it the manifest's own.
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
        from harvest.data.manifest import columns_of, links_of, read_manifest
        from harvest.interfaces import HarvestError
        from harvest.progress import bar

        if min_similarity is not None and caption_model is None:
            raise HarvestError("--min-similarity needs --caption-model, which measures it")
        examples = read_manifest(manifest, videos=videos, captions_required=False)
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
            addresses = {e.id: link for e, link in zip(examples, links_of(manifest), strict=True) if link}
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
                columns=columns_of(manifest),
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

    run(check, args)


def prepare_command(args: list[str]) -> None:
    import tyro

    def prepare(
        manifest: Annotated[Path, tyro.conf.Positional],
        out: Annotated[Path, tyro.conf.Positional],
        /,
        videos: Path | None = None,
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
        """Pack the clips of a manifest into tar shards that `harvest train` and webdataset read. Goes on if stopped.

        $ harvest prepare results_10M_train.csv /data/webvid-256 --videos /data/webvid --workers 32
        $ harvest train harvest-b16 --data.train '/data/webvid-256/shard-{000000..010699}.tar'
        $ harvest prepare clips.jsonl /data/frames --frames 16        JPEGs instead of video
        $ harvest prepare clips.jsonl /data/webvid-256 --verify       compare with the written checksums

        Args:
            manifest: .jsonl, .csv, .tsv or .parquet: video, caption(s), optional start_s, end_s, label.
            out: Folder for the shards.
            videos: Folder that video paths are relative to; without it the manifest's own.
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
        examples = read_manifest(manifest, videos=videos, captions_required=False)
        with bar("preparing clips") as progress:
            made = preparing.prepare(examples, out, config, workers=workers, progress=progress)
        print(
            f"{made.num_clips:,} of {len(examples):,} clips in {len(made.shards):,} shards, {made.num_bytes / 1e9:.2f} GB"
        )
        if made.broken:
            name, reason = next(iter(made.broken.items()))
            print(
                f"{len(made.broken)} could not be read; first: {name}: {reason}; all: {out / 'broken.json'}"
            )
        left_behind = sum(bool(e.labels or e.boxes or e.question) for e in examples)
        if left_behind:
            print(
                f"{left_behind:,} rows have several labels, boxes or a question, which shards do not hold: for these"
                " tasks train from the manifest"
            )
        print(f"--data.train {out}")

    run(prepare, args)


def miniworld_command(args: list[str]) -> None:
    import tyro

    def miniworld(
        out: Annotated[Path, tyro.conf.Positional], /, train: int = 20_000, seed: int = 0, workers: int = 2
    ) -> None:
        """Write the mini-world: captioned clips, questions and labels (docs/miniworld.md).

        $ harvest miniworld runs/world --train 12000

        Args:
            out: Folder to write into.
            train: Number of training clips.
            seed: Another seed is another world of the same kind.
        """
        from harvest.data.miniworld import MiniWorldConfig, write_miniworld
        from harvest.progress import bar

        with bar("drawing the mini-world") as progress:
            world = write_miniworld(
                out, MiniWorldConfig(seed=seed, train=train), progress=progress, workers=workers
            )
        print(f"manifests: {world.folder}")

    run(miniworld, args)
