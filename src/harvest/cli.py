"""The `harvest` command: parse, call, print.

Each command imports what it needs when it runs, so that `--help` answers at once.
"""

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from harvest import __version__

if TYPE_CHECKING:
    from harvest import Index
    from harvest.evaluation.result import Result
    from harvest.search.results import Answer

ABOUT = f"""harvest {__version__}: turn an image-text model into a video-text model, and use it

usage: harvest COMMAND [options]        harvest COMMAND --help for examples

  demo        the whole method in minutes: an image model becomes a video model, with a report
  recipes     list the training recipes
  check       look at every clip of a manifest: broken, duplicate, short, silent, and statistics on a page
  prepare     pack a manifest's clips, trimmed and scaled, into tar shards that training reads fast
  train       run a recipe, or go on with it: harvest train harvest-b16 --data.train clips.csv
  evaluate    zero-shot retrieval, multiple choice, recognition, question answering
  probe       what a frozen model knows: a head on features that are computed once
  benchmark   what a benchmark's files lack, and a score on it by its protocol
  index       index folders of videos, or bring their library up to date
  search      find moments in a library by a sentence, a picture or a clip
  moments     a score for every second of one video, and a picture of the curve
  serve       a library over HTTP, with a page in the browser
  convert     write a Harvest model folder from CLIP, SigLIP, OpenCLIP or ViCLIP weights
  miniworld   write the generated clips of the mini-world
  bench       measure the training step on this machine
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code.

    A user's mistake is one message on stderr and code 2, what the machine refuses (a full disk) code 1, and a
    run that was stopped and saved code 130.
    """
    try:
        code = _main(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("harvest: ended", file=sys.stderr)
        return 130
    except (
        BrokenPipeError
    ):  # the reader, such as `head`, has seen enough; Python would flush once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"harvest: {error}", file=sys.stderr)
        return 1


def _main(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(ABOUT)
        return 0
    if args[0] in ("-V", "--version"):
        print(f"harvest {__version__}")
        return 0
    if args[0] not in COMMANDS:
        print(f"harvest: no command {args[0]!r}{_nearest(args[0], COMMANDS)}", file=sys.stderr)
        print(ABOUT, file=sys.stderr)
        return 2
    from harvest.interfaces import HarvestError, RunStopped  # here, since they bring torch

    try:
        COMMANDS[args[0]](args[1:])
    except HarvestError as error:
        print(f"harvest: {error}", file=sys.stderr)
        return 130 if isinstance(error, RunStopped) else 2
    return 0


def _nearest(name: str, known: Iterable[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"


# ---- training ----------------------------------------------------------------------------------------------------


def recipes_command(args: list[str]) -> None:
    from harvest.recipes import RECIPES

    for name, recipe in RECIPES.items():
        print(f"{name:<14} {(recipe.__doc__ or '').strip().splitlines()[0]}")


TRAIN_HELP = """usage: harvest train RECIPE [--out RUN] [--tiny] [--SETTING VALUE ...]
       harvest train --config RUN/config.json [--out RUN] [--SETTING VALUE ...]

Runs a recipe; the same command goes on where a stopped run was. `harvest train RECIPE --help` lists its settings,
`harvest recipes` the recipes. On several GPUs: torchrun --nproc-per-node 8 -m harvest train RECIPE …

  harvest train mini-harvest
  harvest train harvest-b16 --data.train results_10M_train.csv --data.videos /data/webvid --out runs/webvid
  harvest train harvest-b16 --start.model google/siglip-base-patch16-224 --data.train clips.jsonl --optim.lr 2e-5
  harvest train harvest-l14 --data.train clips.parquet --loop.global-batch 512 --tuning.steps 0 --blend 0.5
"""


def train_command(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        print(TRAIN_HELP)
        return
    import tyro

    from harvest.config import RunConfig, read_config
    from harvest.interfaces import HarvestError
    from harvest.recipes import RECIPES, tiny

    out, args = _take_option(args, "--out")
    path, args = _take_option(args, "--config")
    if path is not None:
        config = read_config(Path(path))
    elif not args:
        raise HarvestError(f"train needs a recipe{_nearest('', RECIPES)}")
    else:
        name, args = args[0], args[1:]
        if name not in RECIPES:
            raise HarvestError(f"no recipe {name!r}{_nearest(name, RECIPES)}")
        config = tiny(name) if "--tiny" in args else RECIPES[name]()
        args = [a for a in args if a != "--tiny"]
    config = tyro.cli(
        RunConfig,
        args=args,
        default=config,
        prog=f"harvest train {config.recipe}",
        config=(tyro.conf.AvoidSubcommands, tyro.conf.SuppressFixed),
    )
    from harvest.training.loop import train

    folder = train(config, Path(out) if out else Path("runs") / config.recipe)
    print(f"model: {folder}")


def _take_option(args: list[str], name: str) -> tuple[str | None, list[str]]:
    """The value of `name VALUE` or `name=VALUE`, and the other arguments."""
    for place, arg in enumerate(args):
        if arg == name:
            if place + 1 == len(args):
                from harvest.interfaces import HarvestError

                raise HarvestError(f"{name} needs a value")
            return args[place + 1], args[:place] + args[place + 2 :]
        if arg.startswith(name + "="):
            return arg[len(name) + 1 :], args[:place] + args[place + 1 :]
    return None, args


# ---- using a model -----------------------------------------------------------------------------------------------


def evaluate_command(args: list[str]) -> None:
    import tyro

    def evaluate(
        model: Annotated[str, tyro.conf.Positional],
        /,
        data: Path,
        task: Literal[
            "retrieval", "choice", "recognition", "qa", "masked_words", "classification"
        ] = "retrieval",
        image: bool = False,
        videos: Path | None = None,
        classes: Path | None = None,
        templates: tuple[str, ...] = ("a video of {}",),
        num_frames: int | None = None,
        budget: int | None = None,
        keep: Literal["random", "tube", "motion", "attention", "run_length", "merge"] = "motion",
        dim: int | None = None,
        num_clips: int = 1,
        num_crops: int = 1,
        dual_softmax: bool = False,
        rerank_top_k: int = 0,
        matching: bool = False,
        zero_shot: bool = False,
        batch_size: int = 32,
        precision: Literal["fp32", "bf16"] = "fp32",
        workers: int = 2,
        out: Path | None = None,
    ) -> None:
        """Scores of a model on a manifest, as a table and, with --out, as JSON.

        $ harvest evaluate runs/demo/model --data runs/demo/world/retrieval.jsonl
        $ harvest evaluate openai/clip-vit-base-patch16 --image --data msrvtt.jsonl --videos /data/msrvtt
        $ harvest evaluate runs/webvid/model --data k400.csv --task recognition --classes k400.txt

        Args:
            model: A Harvest model folder, or any source that `harvest convert` takes.
            data: Manifest (.jsonl, .csv, .parquet): video, caption(s), optional start_s, end_s, label, question, answer.
            task: retrieval: text to video and back. choice: texts are options, label the right one. recognition: label
                is the class. qa: question and answer. masked_words: words filled with the right and another clip.
                classification: by the head of a fine-tuned model; qa uses it too, where there is one.
            image: The image baseline: each frame encoded alone, embeddings averaged.
            videos: Folder that video paths are relative to; without it the manifest's own.
            classes: Class names for recognition, one a line or a JSON list.
            templates: Prompts for recognition, with {} for the class; several are averaged.
            num_frames: Frames a clip; without it the model's own number.
            budget: Tubelets seen of each clip; without it all.
            keep: Which tubelets are seen, with a budget; run_length sees what does not repeat, with or without one.
            dim: Compare the first so many entries of the embeddings; for models trained with objective.dims.
            num_clips: Of classification: views in time, whose probabilities are averaged.
            num_crops: Of classification: views along the picture's longer side.
            zero_shot: Leave the head of a fine-tuned model aside.
            dual_softmax: Of retrieval: beside the plain figures those after dual softmax, which needs all queries at once.
            rerank_top_k: Of retrieval: re-order the so many items nearest to each query by the matching head, as columns of their own.
            matching: Of choice: beside the cosines the matching head, and its mixture with them.
            out: Write the result as JSON to this file.
        """
        from rich.console import Console

        from harvest.data.manifest import read_manifest
        from harvest.evaluation import evaluate as run
        from harvest.evaluation import read_class_names, table
        from harvest.model.folder import load_head
        from harvest.model.pretrained import load_any
        from harvest.progress import bar
        from harvest.tokens import see

        examples = read_manifest(data, videos=videos)
        loaded, tokenizer, _ = load_any(model)
        has_head = (Path(model) / "head.json").is_file() and not zero_shot
        with bar("encoding") as progress:
            result = run(
                loaded,
                tokenizer,
                examples,
                task=task,
                mode="image" if image else "video",
                num_frames=num_frames,
                selection=see(budget, keep),
                dim=dim,
                batch_size=batch_size,
                precision=precision,
                workers=workers,
                progress=progress,
                class_names=read_class_names(classes) if classes else None,
                templates=templates,
                head=load_head(Path(model))
                if task == "classification" or (task == "qa" and has_head)
                else None,
                num_clips=num_clips,
                num_crops=num_crops,
                with_dual_softmax=dual_softmax,
                rerank_top_k=rerank_top_k,
                with_matching=matching,
            )
        console = Console()
        console.print(table([result]))
        for name, reason in list(result.missing.items())[:10]:
            console.print(f"not evaluated: {name}: {reason}", markup=False)
        _write_result(result, out)

    _run(evaluate, args)


def benchmark_command(args: list[str]) -> None:
    if not args:
        from harvest.data.benchmarks import BENCHMARKS

        for known in BENCHMARKS.values():
            print(f"{known.name:<16} {known.task:<12} {known.title}: {', '.join(known.splits)}")
        return
    import tyro

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
        image: bool = False,
        zero_shot: bool = False,
        num_frames: int | None = None,
        num_clips: int = 1,
        num_crops: int = 1,
        dual_softmax: bool = False,
        rerank_top_k: int = 0,
        matching: bool = False,
        batch_size: int = 32,
        precision: Literal["fp32", "bf16"] = "fp32",
        workers: int = 2,
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
            image: The image baseline: each frame encoded alone, embeddings averaged.
            zero_shot: Leave the head of a fine-tuned model aside.
            num_frames: Frames a clip; without it the model's own number.
            num_clips: With a head: views in time, whose probabilities are averaged.
            num_crops: With a head: views along the picture's longer side.
            dual_softmax: Of retrieval: beside the plain figures those after dual softmax, which needs all queries at once.
            rerank_top_k: Of retrieval: re-order the so many items nearest to each query by the matching head, as columns of their own.
            matching: Of choice: beside the cosines the matching head, and its mixture with them.
            out: Write the result as JSON to this file.
        """
        from rich.console import Console

        from harvest.data.benchmarks import missing, read, widen, write_training
        from harvest.interfaces import HarvestError

        data = read(name, annotations, split=split, videos=videos)
        if span_s is not None:
            data = widen(data, span_s)
        for count, number in data.counts.items():
            published = data.published.counts.get(count)
            beside = "" if published is None else f" (published: {published:,}, {data.published.source})"
            print(f"{count.replace('_', ' ')}: {number:,}{beside}")
        if videos is None:
            if model is not None:
                raise HarvestError("scoring a model needs --videos")
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
        from harvest.evaluation import table
        from harvest.evaluation.benchmark import check_complete, score_benchmark
        from harvest.evaluation.detection import read_boxes
        from harvest.model.folder import load_head
        from harvest.model.pretrained import load_any
        from harvest.progress import bar

        check_complete(data, allow_missing=allow_missing)  # before the model is loaded
        loaded, tokenizer, _ = load_any(model)
        has_head = (Path(model) / "head.json").is_file() and not zero_shot
        with bar("encoding") as progress:
            result = score_benchmark(
                loaded,
                tokenizer,
                data,
                allow_missing=allow_missing,
                head=load_head(Path(model)) if has_head else None,
                detected=None if boxes is None else read_boxes(boxes),
                num_clips=num_clips,
                num_crops=num_crops,
                with_dual_softmax=dual_softmax,
                rerank_top_k=rerank_top_k,
                with_matching=matching,
                mode="image" if image else "video",
                num_frames=num_frames,
                batch_size=batch_size,
                precision=precision,
                workers=workers,
                progress=progress,
            )
        console = Console()
        console.print(table([result]))
        console.print(result.protocol, markup=False)
        _write_result(result, out)

    _run(benchmark, args)


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
            classes: Class names in the order of the labels, one a line or a JSON list.
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
        from rich.console import Console

        from harvest.data.benchmarks import read
        from harvest.data.labels import read_class_names
        from harvest.data.manifest import read_manifest
        from harvest.evaluation import table
        from harvest.evaluation.benchmark import probe_benchmark
        from harvest.evaluation.probe import probe as run
        from harvest.interfaces import HarvestError
        from harvest.model.pretrained import load_any
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
        if benchmark is not None and annotations is not None and videos is not None:
            splits = [
                read(benchmark, annotations, split=split, videos=videos)
                for split in (train_split, test_split)
            ]
            loaded = load_any(model)[0]
            with bar("encoding") as progress:
                result = probe_benchmark(
                    loaded, *splits, allow_missing=allow_missing, progress=progress, **how
                )
        elif benchmark is None and train is not None and test is not None and classes is not None:
            sets = [read_manifest(path, videos=videos) for path in (train, test)]
            names = read_class_names(classes)
            loaded = load_any(model)[0]
            with bar("encoding") as progress:
                result = run(loaded, *sets, class_names=names, progress=progress, **how)
        else:
            raise HarvestError(
                "probe needs --train, --test and --classes, or --benchmark with --annotations and --videos"
            )
        console = Console()
        console.print(table([result]))
        console.print(result.protocol, markup=False)
        _write_result(result, out)

    _run(probe, args)


# ---- searching one's own videos ----------------------------------------------------------------------------------


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
        keep: Literal["random", "tube", "motion"] | None = None,
        background: Path | None = None,
        store: str | None = None,
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
            budget: Tubelets of a moment that the encoder sees; without it all.
            keep: Which tubelets those are; new libraries take motion.
            background: File of sentences that nothing in the library matches, one a line, to calibrate scores against.
            store: Address of a Qdrant server for the vectors, http://HOST:6333/NAME; without it the library's folder.
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
        named |= {"budget": budget, "keep": keep}
        given = {name: value for name, value in named.items() if value is not None}
        with world() as here, bar("indexing") as progress:
            made = harvest.Index.build(
                folders,
                out=out,
                model=model,
                cutting=dataclasses.replace(Cutting(), **given) if given else None,  # type: ignore[arg-type]
                background=background,
                store=store,
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

    _run(index, args)


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
        rerank: int = 0,
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
            rerank: Let the model's matching head order the first so many again.
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
                _print_json(answer)
            else:
                _print_answer(index, answer, pictures=pictures)

    _run(search, args)


def _print_json(value: object) -> None:
    import dataclasses
    import json

    print(json.dumps(dataclasses.asdict(value), indent=1, ensure_ascii=False))  # type: ignore[call-overload]


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
                _print_json(curve)
            else:
                print(text)
                print(
                    f"  {blocks(curve.scores, width=72)}  {min(curve.scores):.2f} to {max(curve.scores):.2f}"
                )
                for best in curve.intervals:
                    print(f"  {clock(best.start_s)} to {clock(best.end_s)}  score {best.score:.3f}")
            if picture is not None:
                file = picture if len(texts) == 1 else picture.with_stem(f"{picture.stem}-{number}")
                file.write_text(svg(curve), encoding="utf-8")
                if not json:
                    print(f"picture: {file}")

    _run(moments, args)


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

    _run(serve, args)


def convert_command(args: list[str]) -> None:
    import tyro

    def convert(
        source: Annotated[str, tyro.conf.Positional],
        out: Annotated[Path, tyro.conf.Positional],
        /,
        vocabulary: Path | None = None,
        image_size: int | None = None,
        num_frames: int | None = None,
        head_width: int = 64,
        classes: Path | None = None,
    ) -> None:
        """Write a Harvest model folder from other weights, and say what was used, ignored and new.

        $ harvest convert openai/clip-vit-base-patch16 models/clip-b16
        $ harvest convert ViT-B-16.pt models/clip-b16 --vocabulary bpe_simple_vocab_16e6.txt.gz
        $ harvest convert b16_25m.pth models/umt-b16 --vocabulary vocab.txt --num-frames 12
        $ harvest convert b16_ptk710_ftk710_ftk400_f8_res224.pth models/umt-k400 --classes k400.txt

        Args:
            source: A hub name, a folder (transformers, OpenCLIP, Harvest), or a state-dict file (OpenAI, OpenCLIP, ViCLIP, UMT).
            out: The model folder to write.
            vocabulary: The vocabulary of CLIP or BERT, for state dicts that come without a tokenizer.
            image_size: Another picture size than the model's: positions are resized (bicubic), and the report says so.
            num_frames: Frames a clip, for UMT's files, whose positions go on or are resized.
            head_width: Width of an attention head, for state dicts, which do not say.
            classes: What a fine-tuned classifier of UMT tells apart, in its order: one a line or a JSON list.
        """
        from harvest.model.folder import save_model
        from harvest.model.pretrained import load_any
        from harvest.model.pretrained_umt import convert_classifier

        sizes: dict[str, Any] = {"image_size": image_size, "num_frames": num_frames, "head_width": head_width}
        if classes is not None:
            from harvest.data.labels import read_class_names

            model, head, report = convert_classifier(source, names=read_class_names(classes), **sizes)
            save_model(out, model, None, head=head, notes={"started_from": source})
        else:
            model, tokenizer, report = load_any(source, vocabulary=vocabulary, **sizes)
            save_model(out, model, tokenizer, notes={"started_from": source})
        print(report)
        print(f"model: {out}")

    _run(convert, args)


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
    ) -> None:
        """Look at every clip of a manifest once; what is wrong goes on a page, what is not into clean.jsonl.

        $ harvest check clips.jsonl
        $ harvest check results_10M_train.csv --videos /data/webvid --workers 32 --out checks/webvid
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
        """
        from harvest.data.check import CheckConfig, write_report
        from harvest.data.check import check as run
        from harvest.data.manifest import columns_of, read_manifest
        from harvest.interfaces import HarvestError
        from harvest.progress import bar

        if min_similarity is not None and caption_model is None:
            raise HarvestError("--min-similarity needs --caption-model, which measures it")
        examples = read_manifest(manifest, videos=videos, captions_required=False)
        similarities = None
        if caption_model is not None:
            from harvest.evaluation.caption_quality import caption_similarities
            from harvest.model.pretrained import load_pretrained

            model, tokenizer, _ = load_pretrained(caption_model)
            with bar("comparing clips and captions") as progress:
                similarities = caption_similarities(
                    model, tokenizer, examples, workers=workers, progress=progress
                )
        config = CheckConfig(min_s, min_words, min_similarity, video_limit_s)
        with bar("looking at clips") as progress:
            found = run(
                examples,
                config,
                columns=columns_of(manifest),
                similarities=similarities,
                workers=workers,
                progress=progress,
            )
        folder = out or Path(f"check-{manifest.stem}")
        write_report(folder, manifest.name, examples, found)
        print(f"{found.num_rows:,} rows of {found.num_clips:,} clips, {found.hours:.1f} hours")
        for word in ("missing", "broken", "duplicate", "short", "silent", "unlike"):
            rows = getattr(found, word)
            first = next(iter(rows.items()), None)
            print(f"{word:<10} {len(rows):>9,}" + (f"   first: {first[0]}: {first[1]}" if first else ""))
        if found.licence_column is None:
            print("no column tells the licence (licence, license, rights)")
        print(f"page: {folder / 'check.html'}")
        print(f"{found.num_rows - len(found.useless):,} rows with nothing wrong: {folder / 'clean.jsonl'}")

    _run(check, args)


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
        print(f"--data.train {out}")

    _run(prepare, args)


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

    _run(miniworld, args)


def demo_command(args: list[str]) -> None:
    def demo(out: Path = Path("runs/demo"), seed: int = 0) -> None:
        """Watch an image model that cannot tell left from right become a video model that can.

        $ harvest demo
        $ harvest demo --out /tmp/demo

        Args:
            out: Folder for the mini-world, the run, report.html, demo.json and the model. Goes on if it was stopped.
            seed: Seed of the training run.
        """
        from harvest.demo import run_demo

        run_demo(out, seed=seed)

    _run(demo, args)


def bench_command(args: list[str]) -> None:
    from harvest.bench.step import step_command
    from harvest.bench.tokens import tokens_command
    from harvest.bench.umt import umt_command
    from harvest.interfaces import HarvestError

    commands: dict[str, Callable[..., None]] = {
        "step": step_command,
        "tokens": tokens_command,
        "umt": umt_command,
        "library": library_bench,
        "vectors": vectors_bench,
    }
    if not args or args[0] not in commands:
        print(
            "usage: harvest bench step [options]        the training step, with and without dropping patches"
        )
        print(
            "       harvest bench tokens [options]      ways of choosing tokens x budgets x batches, with a plot"
        )
        print(
            "       harvest bench umt [options]         the steps of UMT's two stages, and of the teacher's cache"
        )
        print(
            "       harvest bench library MODEL         what search finds, and refuses, in videos of the mini-world"
        )
        print("       harvest bench vectors               search among a million made-up vectors")
        if args and args[0] not in ("-h", "--help"):
            raise HarvestError(f"nothing to bench called {args[0]!r}: {', '.join(commands)}")
        return
    _run(commands[args[0]], args[1:], prog=f"harvest bench {args[0]}")


def library_bench(
    model: str,
    /,
    out: Path = Path("runs/library"),
    videos: int = 200,
    false_accept: float = 0.05,
    rerank: int = 0,
    seed: int = 7,
) -> None:
    """What search finds, and refuses, in long videos of the mini-world, ten clips each.

    Args:
        model: Model folder, or any source that `harvest convert` takes.
        out: Folder for the videos and their library.
        videos: How many.
        false_accept: Share of nonsense queries that may be answered.
        rerank: Let the model's matching head order the first so many again.
    """
    from harvest.progress import bar
    from harvest.search.measure import measure_library

    with bar("indexing") as progress:
        figures = measure_library(
            model,
            out,
            num_videos=videos,
            false_accept=false_accept,
            rerank=rerank,
            seed=seed,
            progress=progress,
        )
    _print_json(figures)


def vectors_bench(out: Path = Path("runs/vectors"), count: int = 1_000_000, width: int = 512) -> None:
    """Search among made-up vectors: times, recall@10 against exact search, memory. Run twice: see --out.

    Args:
        out: Folder for the library. One that is filled already is only asked: its memory is then that of searching.
        count: Vectors.
        width: Of each.
    """
    from harvest.progress import bar
    from harvest.search.measure import measure_vectors

    with bar("filling") as progress:
        figures = measure_vectors(out, count=count, width=width, progress=progress)
    _print_json(figures)


def _write_result(result: "Result", out: Path | None) -> None:
    """Scores as JSON, where asked for; whole or not at all."""
    from rich.console import Console

    from harvest.report import write_whole

    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, result.to_json())
        Console().print(f"written: {out}", markup=False)


def _run(function: Callable[..., None], args: list[str], *, prog: str | None = None) -> None:
    import tyro

    tyro.cli(function, args=args, prog=prog or f"harvest {function.__name__}")


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "demo": demo_command,
    "recipes": recipes_command,
    "check": check_command,
    "prepare": prepare_command,
    "train": train_command,
    "evaluate": evaluate_command,
    "benchmark": benchmark_command,
    "probe": probe_command,
    "index": index_command,
    "search": search_command,
    "moments": moments_command,
    "serve": serve_command,
    "convert": convert_command,
    "miniworld": miniworld_command,
    "bench": bench_command,
}
