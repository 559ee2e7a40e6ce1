"""`harvest benchmark`: what a benchmark's files lack, and a score on it by its protocol."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from harvest.cli.parsing import asks_help, run, take_option

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


def main(args: list[str]) -> None:
    if asks_help(args, HELP):
        return
    import tyro

    from harvest.cli.results import MotionTruth, refuse
    from harvest.data.benchmarks import BENCHMARKS, missing, read, widen, write_training
    from harvest.evaluation.benchmark import check_complete
    from harvest.evaluation.settings import EvalSettings
    from harvest.evaluation.text_protocols import TextProtocol, texts_of
    from harvest.progress import say

    if not args:
        for known in BENCHMARKS.values():
            print(f"{known.name:<16} {known.task:<12} {known.title}: {', '.join(known.splits)}")
        return
    kind = _task_of(args)
    plain, plain_settings = kind(), EvalSettings(workers=2)

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
        span_s: float | None = None,
        zero_shot: bool = False,
        texts: TextProtocol = "model",
        motion_truth: MotionTruth = "auto",
        of_task: Any = plain,
        settings: EvalSettings = plain_settings,
        card: Path | None = None,
        json: bool = False,
        out: Path | None = None,
    ) -> None:
        """Read a benchmark's official files, say what is missing, and score a model on it by its protocol.

        harvest benchmark                         lists the benchmarks and their splits
        harvest benchmark msrvtt --help-all       the options of this benchmark's task
        harvest benchmark msrvtt --annotations anns/msrvtt --videos /data/msrvtt
        harvest benchmark msrvtt --annotations anns/msrvtt --videos /data/msrvtt --model runs/webvid/model
        harvest benchmark msrvtt-qa --split train --annotations anns/qa --videos /data/msrvtt --manifest qa-train.jsonl
        harvest benchmark ucf101 --split test2 --annotations ucfTrainTestlist --videos UCF-101 --model runs/webvid/model

        Args:
            name: The benchmark (docs/benchmarks.md).
            annotations: Folder of its official annotation files.
            videos: Folder of its videos, or of folders of pictures; without it only the annotations are read.
            model: A run or model folder, mini-image, or any source that `harvest convert` takes; without it nothing is
                scored.
            split: One of the benchmark's splits; without it its first one.
            allow_missing: Score what is there, and give the share of the rows beside it.
            missing_list: File for the list of missing videos; without it missing-NAME-SPLIT.txt here.
            manifest: Write the rows as a manifest to train on (.jsonl), and its classes or answers beside it
                (.names.json).
            span_s: Of action detection: seconds of video shown around a picture; without it what annotators saw.
            zero_shot: Leave the head of a fine-tuned model aside.
            texts: model: cleaned and cut as the model does, with CLIP's prompts. umt: cleaned and cut as in UMT's tests.
                viclip, viclip-16: as in ViCLIP's, with its 28 prompts, or the 16 of its published test.
            motion_truth: yes: score again with the frames reversed, shuffled, and one frame alone, as columns of their
                own.
            card: Write the benchmark card into this folder: every number with what decides it; for `harvest compare`.
            json: Print the result as JSON, and what is missing on standard error.
            out: Write the result as JSON to this file.
        """
        if videos is None:
            flags: dict[str, Any] = {
                "--model": model,
                "--manifest": manifest,
                "--missing-list": missing_list,
            }
            refuse(flags, "needs --videos, without which only the annotations are read")
        if model is None:
            flags = {"--out": out, "--card": card, "--json": json}
            flags["--motion-truth"] = motion_truth != "auto"
            flags |= {"--zero-shot": zero_shot, "--texts": texts != "model"}
            flags[f"options of {kind.name}"] = of_task != plain
            flags["options of what a model sees"] = settings != plain_settings
            refuse(flags, "needs --model, without which nothing is scored")
        data = read(name, annotations, split=split, videos=videos)
        if span_s is not None:
            data = widen(data, span_s)
        tell: Callable[[str], None] = say if json else print
        for count, number in data.counts.items():
            published = data.published.counts.get(count)
            beside = "" if published is None else f" (published: {published:,}, {data.published.source})"
            tell(f"{count.replace('_', ' ')}: {number:,}{beside}")
        if videos is None:
            return
        absent = missing(data)
        tell(str(absent) if absent else f"{data.name} {data.split}: nothing is missing")
        if absent.videos:
            listed = missing_list or Path(f"missing-{data.name}-{data.split}.txt")
            absent.write(listed)
            tell(f"missing videos: {listed}")
        if manifest is not None:
            write_training(data, manifest, allow_missing=allow_missing)
            tell(f"manifest: {manifest}")
        if model is not None:
            check_complete(data, allow_missing=allow_missing)  # before the model is loaded
            texts_of(texts, data.name)
            _score(
                data,
                model,
                of_task,
                settings,
                zero_shot=zero_shot,
                texts=texts,
                allow_missing=allow_missing,
                motion_truth=motion_truth == "yes",
                card=card,
                out=out,
                json=json,
                args=args,
            )

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


def _score(
    data: "BenchmarkData",
    source: str,
    task: "Task",
    settings: "EvalSettings",
    *,
    zero_shot: bool,
    texts: "TextProtocol",
    allow_missing: bool,
    motion_truth: bool,
    card: Path | None,
    out: Path | None,
    json: bool,
    args: list[str],
) -> None:
    from harvest.cli.results import open_model, score_and_give
    from harvest.evaluation.benchmark import score_benchmark
    from harvest.evaluation.card import ScoredRows
    from harvest.evaluation.text_protocols import texts_of

    read_as = texts_of(texts, data.name)
    model, tokenizer, head = open_model(
        source, zero_shot=zero_shot, context_length=read_as.context_length, clean=read_as.clean
    )

    def score(frame_order: "FrameOrder", progress: "OnProgress") -> "Result":
        return score_benchmark(
            model,
            tokenizer,
            data,
            task=task,
            texts=texts,
            allow_missing=allow_missing,
            head=head,
            settings=settings,
            frame_order=frame_order,
            progress=progress,
        )

    score_and_give(
        score,
        model,
        head,
        with_motion_truth=motion_truth,
        out=out,
        json=json,
        card=card,
        split=ScoredRows(f"{data.name} {data.split}", data.digest, len(data.examples), {}),
        source=source,
        typed=["benchmark", *args],
    )
