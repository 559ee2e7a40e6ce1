"""`harvest evaluate`, `benchmark`, `probe` and `compare`: what a model is worth."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from harvest.cli.parsing import run, write_result

if TYPE_CHECKING:
    from torch.nn import Module

    from harvest.data.sampling import FrameOrder
    from harvest.evaluation.card import Split
    from harvest.evaluation.result import Result
    from harvest.model.heads import Head
    from harvest.model.video_text import VideoTextModel
    from harvest.parallel import World

_SHOWN = {
    "forward": "encoding",
    "reversed": "encoding, reversed",
    "shuffled": "encoding, shuffled",
    "one_frame": "encoding, one frame",
}


def show(result: "Result") -> None:
    """A result as people read it: the table, how it came about, what it means, and what it lacks."""
    from rich.console import Console

    from harvest.evaluation import table

    console = Console()
    console.print(table([result]))
    console.print(result.protocol, markup=False, highlight=False)
    for finding in result.findings:
        console.print(finding, markup=False, highlight=False)
    for name, reason in list(result.missing.items())[:10]:
        console.print(f"not evaluated: {name}: {reason}", markup=False)


def on_device(here: "World", *modules: "Module | None") -> None:
    """Move what computes to this process's device."""
    for module in modules:
        if module is not None:
            module.to(here.device)


def write_card_of(
    result: "Result",
    split: "Split",
    model: "VideoTextModel",
    head: "Head | None",
    *,
    source: str,
    typed: list[str],
    folder: Path,
) -> None:
    """The card of what a command scored; `typed` is its name and what was typed behind it."""
    import shlex

    from harvest.evaluation.card import make_card, write_card
    from harvest.machine import hardware

    command = f"harvest {shlex.join(typed)}"
    made = make_card(result, split, model, head=head, source=source, command=command, hardware=hardware())
    write_card(folder, made, result)
    print(f"card: {folder / 'card.html'}")


def _is_given(args: list[str], flag: str) -> bool:
    return any(arg.replace("_", "-") == flag for arg in args)


def _refuse(flags: dict[str, Any], why: str) -> None:
    """HarvestError where one of the flags was given, as it would do nothing; `why` says what it needs or is for."""
    from harvest.interfaces import HarvestError

    given = [flag for flag, value in flags.items() if value is not None and value is not False]
    if given:
        raise HarvestError(f"{', '.join(given)}: {why}")


def evaluate_command(args: list[str]) -> None:
    import tyro

    from harvest.evaluation.settings import EvalSettings

    reading = EvalSettings(workers=2)

    def evaluate(
        model: Annotated[str, tyro.conf.Positional],
        /,
        data: str,
        task: Literal[
            "retrieval", "choice", "recognition", "qa", "masked_words", "classification"
        ] = "retrieval",
        videos: Path | None = None,
        classes: Path | None = None,
        templates: tuple[str, ...] = ("a video of {}",),
        zero_shot: bool = False,
        motion_truth: bool = False,
        settings: EvalSettings = reading,
        card: Path | None = None,
        out: Path | None = None,
    ) -> None:
        """Scores of a model on a manifest, as a table and, with --out, as JSON.

        $ harvest evaluate runs/demo/model --data runs/demo/world/retrieval.jsonl
        $ harvest evaluate openai/clip-vit-base-patch16 --image --data msrvtt.jsonl --videos /data/msrvtt
        $ harvest evaluate runs/webvid/model --data 'shards-{000..009}.tar'
        $ harvest evaluate runs/webvid/model --data k400.csv --task recognition --classes k400.txt

        Args:
            model: A Harvest model folder, or any source that `harvest convert` takes.
            data: Manifest (.jsonl, .csv, .parquet): video, caption(s), optional start_s, end_s, label, question, answer.
                Or tar shards, in their order: a folder, 'shards-{000..009}.tar', or such an address in a bucket.
            task: retrieval: text to video and back. choice: texts are options, label the right one. recognition: label
                is the class. qa: question and answer. masked_words: words filled with the right and another clip.
                classification: by the head of a fine-tuned model; qa uses it too, where there is one.
            videos: Folder that video paths are relative to; without it the manifest's own.
            classes: Class names for recognition: one a line, a JSON list, a JSON object of names and numbers, or a .csv
                with the columns id and name.
            templates: Prompts for recognition, with {} for the class; several are averaged.
            zero_shot: Leave the head of a fine-tuned model aside.
            motion_truth: Score again with the frames reversed, shuffled, and one frame alone, as columns of their own.
                On for manifests of the mini-world, unless --no-motion-truth.
            card: Write the benchmark card into this folder: every number with what decides it; for `harvest compare`.
            out: Write the result as JSON to this file.
        """
        from dataclasses import replace

        from harvest.data.miniworld import directions
        from harvest.data.rows import read_rows
        from harvest.data.shards import are_shards
        from harvest.evaluation import evaluate as run
        from harvest.evaluation import read_class_names
        from harvest.evaluation.card import split_of
        from harvest.evaluation.motion_truth import by_direction
        from harvest.evaluation.motion_truth import motion_truth as with_motion_truth
        from harvest.interfaces import HarvestError
        from harvest.model.folder import load_head
        from harvest.model.importing.pretrained import load_any
        from harvest.parallel import world
        from harvest.progress import bar

        if task == "qa" and are_shards(data):
            raise HarvestError(
                f"{data}: shards hold captions and labels, no questions: give the manifest that they were prepared from"
            )
        with bar("reading captions") as progress:
            examples, left_out = read_rows(data, videos=videos, progress=progress)
        loaded, tokenizer, _ = load_any(model)
        has_head = (Path(model) / "head.json").is_file() and not zero_shot
        head = load_head(Path(model)) if task == "classification" or (task == "qa" and has_head) else None
        names = read_class_names(classes) if classes else None
        is_miniworld = (Path(data).parent / "world.json").is_file()
        groups = by_direction(directions(Path(data))) if task == "choice" else None

        with world() as here:
            on_device(here, loaded, head)

            def score(frame_order: "FrameOrder") -> "Result":
                with bar(_SHOWN[frame_order], quiet=not here.is_main) as progress:
                    return run(
                        loaded,
                        tokenizer,
                        examples,
                        task=task,
                        settings=settings,
                        frame_order=frame_order,
                        progress=progress,
                        groups=groups,
                        class_names=names,
                        templates=templates,
                        head=head,
                    )

            if motion_truth or (
                is_miniworld and not settings.image and not _is_given(args, "--no-motion-truth")
            ):
                result = with_motion_truth(score)
            else:
                result = score("forward")
            result = replace(result, missing={**left_out, **result.missing})
            if here.is_main:
                show(result)
                write_result(result, out)
                if card is not None:
                    split = split_of(examples, Path(data).name, names)
                    write_card_of(
                        result, split, loaded, head, source=model, typed=["evaluate", *args], folder=card
                    )

    run(evaluate, args)


def benchmark_command(args: list[str]) -> None:
    if not args:
        from harvest.data.benchmarks import BENCHMARKS

        for known in BENCHMARKS.values():
            print(f"{known.name:<16} {known.task:<12} {known.title}: {', '.join(known.splits)}")
        return
    import tyro

    from harvest.evaluation.settings import EvalSettings

    reading = EvalSettings(workers=2)

    def benchmark(
        name: Annotated[str, tyro.conf.Positional],
        /,
        annotations: Path,
        videos: Path | None = None,
        model: str | None = None,
        split: str | None = None,
        allow_missing: bool = False,
        missing_list: Path | None = None,
        manifest: Path | None = None,
        boxes: Path | None = None,
        span_s: float | None = None,
        zero_shot: bool = False,
        motion_truth: bool = False,
        settings: EvalSettings = reading,
        card: Path | None = None,
        out: Path | None = None,
    ) -> None:
        """Read a benchmark's official files, say what is missing, and score a model on it by its protocol.

        harvest benchmark                         lists the benchmarks and their splits
        harvest benchmark msrvtt --annotations anns/msrvtt --videos /data/msrvtt
        harvest benchmark msrvtt --annotations anns/msrvtt --videos /data/msrvtt --model runs/webvid/model
        harvest benchmark msrvtt-qa --split train --annotations anns/qa --videos /data/msrvtt --manifest qa-train.jsonl
        harvest benchmark ucf101 --split test2 --annotations ucfTrainTestlist --videos UCF-101 --model runs/webvid/model

        Args:
            name: The benchmark (docs/benchmarks.md).
            annotations: Folder of its official annotation files.
            videos: Folder of its videos, or of folders of pictures; without it only the annotations are read.
            model: A Harvest model folder, or any source that `harvest convert` takes; without it nothing is scored.
            split: One of the benchmark's splits; without it its first one.
            allow_missing: Score what is there, and give the share of the rows beside it.
            missing_list: File for the list of missing videos; without it missing-NAME-SPLIT.txt here.
            manifest: Write the rows as a manifest to train on (.jsonl), and its classes or answers beside it
                (.names.json).
            boxes: Of action detection: a detector's boxes of persons (csv); without it the annotated boxes.
            span_s: Of action detection: seconds of video shown around a picture; without it what annotators saw.
            zero_shot: Leave the head of a fine-tuned model aside.
            motion_truth: Score again with the frames reversed, shuffled, and one frame alone, as columns of their own.
            card: Write the benchmark card into this folder: every number with what decides it; for `harvest compare`.
            out: Write the result as JSON to this file.
        """
        from harvest.data.benchmarks import missing, read, widen, write_training

        flags: dict[str, Any]
        if videos is None:
            flags = {"--model": model, "--manifest": manifest, "--missing-list": missing_list}
            _refuse(flags, "needs --videos, without which only the annotations are read")
        if model is None:
            flags = {"--out": out, "--card": card, "--motion-truth": motion_truth}
            flags |= {"--boxes": boxes, "--zero-shot": zero_shot}
            _refuse(flags, "needs --model, without which nothing is scored")
        data = read(name, annotations, split=split, videos=videos)
        if data.task != "detection":
            flags = {"--span-s": span_s, "--boxes": boxes}
            _refuse(flags, f"for action detection only; {data.name} is a benchmark of {data.task}")
        if span_s is not None:
            data = widen(data, span_s)
        for count, number in data.counts.items():
            published = data.published.counts.get(count)
            beside = "" if published is None else f" (published: {published:,}, {data.published.source})"
            print(f"{count.replace('_', ' ')}: {number:,}{beside}")
        if videos is None:
            return
        absent = missing(data)
        print(absent if absent else f"{data.name} {data.split}: nothing is missing")
        if absent.videos:
            listed = missing_list or Path(f"missing-{data.name}-{data.split}.txt")
            absent.write(listed)
            print(f"missing videos: {listed}")
        if manifest is not None:
            write_training(data, manifest, allow_missing=allow_missing)
            print(f"manifest: {manifest}")
        if model is None:
            return
        from harvest.evaluation.benchmark import check_complete, score_benchmark
        from harvest.evaluation.card import Split
        from harvest.evaluation.detection import read_boxes
        from harvest.evaluation.motion_truth import motion_truth as with_motion_truth
        from harvest.model.folder import load_head
        from harvest.model.importing.pretrained import load_any
        from harvest.parallel import world
        from harvest.progress import bar

        check_complete(data, allow_missing=allow_missing)  # before the model is loaded
        loaded, tokenizer, _ = load_any(model)
        has_head = (Path(model) / "head.json").is_file() and not zero_shot
        head = load_head(Path(model)) if has_head else None
        detected = None if boxes is None else read_boxes(boxes)

        with world() as here:
            on_device(here, loaded, head)

            def score(frame_order: "FrameOrder") -> "Result":
                with bar(_SHOWN[frame_order], quiet=not here.is_main) as progress:
                    return score_benchmark(
                        loaded,
                        tokenizer,
                        data,
                        allow_missing=allow_missing,
                        head=head,
                        detected=detected,
                        settings=settings,
                        frame_order=frame_order,
                        progress=progress,
                    )

            result = with_motion_truth(score) if motion_truth else score("forward")
            if here.is_main:
                show(result)
                write_result(result, out)
                if card is not None:
                    rows = Split(f"{data.name} {data.split}", data.digest, len(data.examples), {})
                    write_card_of(
                        result, rows, loaded, head, source=model, typed=["benchmark", *args], folder=card
                    )

    run(benchmark, args)


def probe_command(args: list[str]) -> None:
    import tyro

    def probe(
        model: Annotated[str, tyro.conf.Positional],
        /,
        train: Path | None = None,
        test: Path | None = None,
        classes: Path | None = None,
        videos: Path | None = None,
        benchmark: str | None = None,
        annotations: Path | None = None,
        train_split: str = "train",
        test_split: str | None = None,
        allow_missing: bool = False,
        kind: Literal["linear", "attentive"] = "linear",
        shots: int | None = None,
        draws: int = 5,
        seed: int = 0,
        num_frames: int | None = None,
        batch_size: int = 32,
        precision: Literal["fp32", "bf16"] = "fp32",
        workers: int = 2,
        cache: Path | None = None,
        out: Path | None = None,
    ) -> None:
        """What a frozen tower knows: a head trained on features that are computed once.

        $ harvest probe runs/demo/model --train train.jsonl --test test.jsonl --classes names.txt
        $ harvest probe runs/webvid/model --benchmark ucf101 --annotations ucfTrainTestlist --videos UCF-101 \\
            --train-split train1 --test-split test1 --kind attentive --shots 4

        Args:
            model: A Harvest model folder, or any source that `harvest convert` takes.
            train: Manifest of labelled clips to learn from.
            test: Manifest of labelled clips to score.
            classes: Class names in the order of the labels: one a line or a JSON list; or with their numbers, a JSON
                object or a .csv with the columns id and name.
            videos: Folder that video paths are relative to, or that holds the benchmark's videos.
            benchmark: A recognition benchmark (docs/benchmarks.md) instead of manifests.
            annotations: Folder of its official annotation files.
            train_split: Its split to learn from.
            test_split: Its split to score; without it its first one.
            allow_missing: Score what is there, and give the share of the rows beside it.
            kind: linear: logistic regression on a clip's feature. attentive: a learned query over all tokens.
            shots: Learn from so many clips a class; the figures are means over draws.
            draws: Times that these clips are drawn.
            num_frames: Frames a clip; without it the model's own number.
            cache: Folder in which features are kept for the next probe.
            out: Write the result as JSON to this file.
        """
        from collections.abc import Callable
        from functools import partial

        from harvest.data.benchmarks import read
        from harvest.data.labels import read_class_names
        from harvest.data.manifest import read_manifest
        from harvest.evaluation.benchmark import probe_benchmark
        from harvest.evaluation.probe import probe as run
        from harvest.evaluation.result import Result
        from harvest.interfaces import HarvestError
        from harvest.model.importing.pretrained import load_any
        from harvest.parallel import world
        from harvest.progress import bar

        how: dict[str, Any] = dict(
            kind=kind,
            shots=shots,
            draws=draws,
            seed=seed,
            num_frames=num_frames,
            batch_size=batch_size,
            precision=precision,
            workers=workers,
            cache=cache,
        )
        score: Callable[..., Result]
        sets: list[Any]
        if benchmark is not None and annotations is not None and videos is not None:
            sets = [
                read(benchmark, annotations, split=split, videos=videos)
                for split in (train_split, test_split)
            ]
            score = partial(probe_benchmark, allow_missing=allow_missing, **how)
        elif benchmark is None and train is not None and test is not None and classes is not None:
            sets = [read_manifest(path, videos=videos) for path in (train, test)]
            score = partial(run, class_names=read_class_names(classes), **how)
        else:
            raise HarvestError(
                "probe needs --train, --test and --classes, or --benchmark with --annotations and --videos"
            )
        loaded = load_any(model)[0]

        with world() as here:
            on_device(here, loaded)
            with bar("encoding", quiet=not here.is_main) as progress:
                result = score(loaded, *sets, progress=progress)
            if here.is_main:
                show(result)
                write_result(result, out)

    run(probe, args)


def compare_command(args: list[str]) -> None:
    import tyro

    def compare(
        a: Annotated[Path, tyro.conf.Positional],
        b: Annotated[Path, tyro.conf.Positional],
        /,
        allow: tuple[str, ...] = (),
    ) -> None:
        """Which differences between two models are larger than their intervals, by a paired bootstrap over videos.

        Figures without time (reversed, shuffled, one frame) and of another clip get no better or worse.

        $ harvest evaluate runs/a/model --data clips.jsonl --card cards/a
        $ harvest evaluate runs/b/model --data clips.jsonl --card cards/b
        $ harvest compare cards/a/card.json cards/b/card.json

        Args:
            a: A benchmark card, card.json or its folder.
            b: The card to compare with it; differences are B minus A.
            allow: Settings that may differ, e.g. num_frames; without it cards of different protocols are refused.
        """
        from rich.console import Console
        from rich.table import Table

        from harvest.evaluation.card import read_card
        from harvest.evaluation.comparison import compare as run
        from harvest.evaluation.result import is_fraction, shown

        cards = read_card(a), read_card(b)
        found = run(*cards, allow=allow)
        grid = Table(show_edge=False)
        grid.add_column("figure")
        for title in ("A", "B", "B - A, points", "95 % interval", ""):
            grid.add_column(title, justify="right")
        for one in found.differences:
            ends = ""
            if one.interval is not None:
                ends = f"{100 * one.interval[0]:+.1f} to {100 * one.interval[1]:+.1f}"
            unit = 100 if is_fraction(one.name) else 1
            grid.add_row(
                one.name,
                shown(one.name, one.a),
                shown(one.name, one.b),
                f"{unit * (one.b - one.a):+.1f}",
                ends,
                one.verdict,
            )
        console = Console()
        for name, (card, _) in zip("AB", cards, strict=True):
            console.print(
                f"{name}: {card.model['source']}, weights {card.model['fingerprint'][:12]}", markup=False
            )
        console.print(grid)
        for line in found.told:
            console.print(f"they also differ in {line}", markup=False)
        num = sum(one.interval is not None for one in found.differences)
        console.print(
            f"{cards[0][0].split.name}: each interval is of the difference when the same videos are drawn again for both;"
            f" of {num} figures one in twenty would stand out by chance.",
            markup=False,
        )

    run(compare, args)
