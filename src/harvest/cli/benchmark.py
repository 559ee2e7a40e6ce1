"""`harvest benchmark`: what a benchmark's files lack, and a score on it by its protocol."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from harvest.cli.options import ScoreOptions
from harvest.cli.parsing import asks_help, run, take_option
from harvest.progress import say

if TYPE_CHECKING:
    from harvest.data.benchmarks import BenchmarkData
    from harvest.data.sampling import FrameOrder
    from harvest.evaluation.result import Result
    from harvest.evaluation.settings import EvalSettings
    from harvest.evaluation.task import Task
    from harvest.evaluation.text_protocols import TextProtocol
    from harvest.interfaces import OnProgress

HELP = """usage: harvest benchmark
       harvest benchmark NAME --annotations FOLDER [--videos FOLDER]
           [--model MODEL] [options]

Lists the benchmarks; or reads one's official files, says what is missing, and
scores a model on it by its protocol.

  harvest benchmark                the benchmarks and their splits
  harvest benchmark msrvtt --annotations anns/msrvtt --videos /data/msrvtt
  harvest benchmark msrvtt --annotations anns/msrvtt --videos /data/msrvtt \\
      --model runs/webvid/model
  harvest benchmark msrvtt-qa --split train --annotations anns/qa \\
      --videos /data/msrvtt --manifest qa-train.jsonl

  --annotations FOLDER  its official annotation files
  --videos FOLDER       its videos; without it only the annotations are read
  --model MODEL         run or model folder, hub name, or what harvest convert
                        takes; without it nothing is scored
  --split NAME          by default its first one
  --allow-missing       score what is there, and say the share of the rows
  --manifest FILE       write the rows as a manifest to train on (.jsonl)
  --num-frames N        frames of a clip; by default the model's own number
  --workers N           processes that decode (default 2)
  --json                print the result as JSON
  --out FILE            write the result as JSON to a file
  --card FOLDER         write every number with what decides it

Every option, with those of its task: harvest benchmark NAME --help-all
"""


@dataclass(frozen=True)
class BenchmarkOptions:
    """Which benchmark, and what becomes of it."""

    name: Annotated[str, tyro.conf.Positional]
    """The benchmark (docs/benchmarks.md)."""
    annotations: Path
    """Folder of its official annotation files."""
    videos: Path | None = None
    """Folder of its videos, or of folders of pictures; without it only the annotations are read."""
    model: str | None = None
    """A run or model folder, mini-image, or any source that `harvest convert` takes; without it nothing is scored."""
    split: str | None = None
    """One of the benchmark's splits; without it its first one."""
    allow_missing: bool = False
    """Score what is there, and give the share of the rows beside it."""
    missing_list: Path | None = None
    """File for the list of missing videos; without it missing-NAME-SPLIT.txt here."""
    manifest: Path | None = None
    """Write the rows as a manifest to train on (.jsonl), and its classes or answers beside it (.names.json)."""
    span_s: float | None = None
    """Of action detection: seconds of video shown around a picture; without it what annotators saw."""


def main(args: list[str]) -> None:
    if asks_help(args, HELP):
        return
    from harvest.cli.results import refuse
    from harvest.data.benchmarks import BENCHMARKS
    from harvest.evaluation.settings import EvalSettings
    from harvest.evaluation.text_protocols import TextProtocol

    if not args:
        for known in BENCHMARKS.values():
            print(f"{known.name:<16} {known.task:<12} {known.title}: {', '.join(known.splits)}")
        return
    kind = _task_of(args)
    plain, plain_settings = kind(), EvalSettings(workers=2)

    def benchmark(
        options: BenchmarkOptions,
        texts: TextProtocol = "model",
        of_task: Any = plain,
        settings: EvalSettings = plain_settings,
        scoring: ScoreOptions = ScoreOptions(),  # noqa: B008  # frozen
    ) -> None:
        """Read a benchmark's official files, say what is missing, and score a model on it by its protocol.

        harvest benchmark                         lists the benchmarks and their splits
        harvest benchmark msrvtt --help-all       the options of this benchmark's task
        harvest benchmark msrvtt --annotations anns/msrvtt --videos /data/msrvtt
        harvest benchmark msrvtt --annotations anns/msrvtt --videos /data/msrvtt --model runs/webvid/model
        harvest benchmark msrvtt-qa --split train --annotations anns/qa --videos /data/msrvtt --manifest qa-train.jsonl
        harvest benchmark ucf101 --split test2 --annotations ucfTrainTestlist --videos UCF-101 --model runs/webvid/model

        Args:
            texts: model: cleaned and cut as the model does, with CLIP's prompts. umt: cleaned and cut as in UMT's tests.
                viclip, viclip-16: as in ViCLIP's, with its 28 prompts, or the 16 of its published test.
        """
        if options.model is None:
            flags = {
                f"--{f.name.replace('_', '-')}": getattr(scoring, f.name) != f.default
                for f in fields(scoring)
            }
            flags |= {"--texts": texts != "model", f"options of {kind.name}": of_task != plain}
            flags["options of what a model sees"] = settings != plain_settings
            refuse(flags, "needs --model, without which nothing is scored")
        data = _read(options, tell=say if scoring.json else print)
        if options.model is not None and options.videos is not None:
            _score(data, options, texts, of_task, settings, scoring, typed=args)

    benchmark.__annotations__["of_task"] = kind
    run(benchmark, args, prog="harvest benchmark")


def _task_of(args: list[str]) -> "type[Task]":
    """The task that will score the benchmark, whose settings are options of the command."""
    from harvest.cli.results import has_head
    from harvest.data.benchmarks import BENCHMARKS
    from harvest.evaluation.benchmark import task_for
    from harvest.evaluation.tasks import TASKS

    known = BENCHMARKS.get(args[0])
    model, _ = take_option(args, "--model")
    if known is None or not any(known.task in task.benchmarks for task in TASKS):
        return TASKS[0]
    zero_shot = "--zero-shot" in args
    return task_for(known.task, has_head=model is not None and has_head(model, zero_shot=zero_shot))


def _read(options: BenchmarkOptions, *, tell: Callable[[str], None]) -> "BenchmarkData":
    """A split and what is missing of it, told; its manifest is written where asked for."""
    from harvest.cli.results import refuse
    from harvest.data.benchmarks import missing, read, widen, write_training

    if options.videos is None:
        flags = {
            "--model": options.model,
            "--manifest": options.manifest,
            "--missing-list": options.missing_list,
        }
        refuse(flags, "needs --videos, without which only the annotations are read")
    data = read(options.name, options.annotations, split=options.split, videos=options.videos)
    if options.span_s is not None:
        data = widen(data, options.span_s)
    for count, number in data.counts.items():
        published = data.published.counts.get(count)
        beside = "" if published is None else f" (published: {published:,}, {data.published.source})"
        tell(f"{count.replace('_', ' ')}: {number:,}{beside}")
    if options.videos is None:
        return data
    absent = missing(data)
    tell(str(absent) if absent else f"{data.name} {data.split}: nothing is missing")
    if absent.videos:
        listed = options.missing_list or Path(f"missing-{data.name}-{data.split}.txt")
        absent.write(listed)
        tell(f"missing videos: {listed}")
    if options.manifest is not None:
        write_training(data, options.manifest, allow_missing=options.allow_missing)
        tell(f"manifest: {options.manifest}")
    return data


def _score(
    data: "BenchmarkData",
    options: BenchmarkOptions,
    texts: "TextProtocol",
    task: "Task",
    settings: "EvalSettings",
    scoring: ScoreOptions,
    *,
    typed: list[str],
) -> None:
    from harvest.cli.results import open_model, score_and_give
    from harvest.evaluation.benchmark import check_complete, score_benchmark
    from harvest.evaluation.card import ScoredRows
    from harvest.evaluation.text_protocols import texts_of

    assert options.model is not None
    check_complete(data, allow_missing=options.allow_missing)  # before the model is loaded
    read_as = texts_of(texts, data.name)
    model, tokenizer, head = open_model(
        options.model,
        zero_shot=scoring.zero_shot,
        context_length=read_as.context_length,
        clean=read_as.clean,
    )

    def score(frame_order: "FrameOrder", progress: "OnProgress") -> "Result":
        return score_benchmark(
            model,
            tokenizer,
            data,
            task=task,
            texts=texts,
            allow_missing=options.allow_missing,
            head=head,
            settings=settings,
            frame_order=frame_order,
            progress=progress,
        )

    score_and_give(
        score,
        model,
        head,
        scoring,
        with_motion_truth=scoring.motion_truth == "yes",
        split=ScoredRows(f"{data.name} {data.split}", data.digest, len(data.examples), {}),
        source=options.model,
        typed=["benchmark", *typed],
    )
