"""`harvest evaluate`: scores of a model on a manifest."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from harvest.cli.options import RowOptions, ScoreOptions
from harvest.cli.parsing import asks_help, run, take_option
from harvest.model.text_cleaning import Clean

if TYPE_CHECKING:
    from harvest.data.sampling import FrameOrder
    from harvest.evaluation.result import Result
    from harvest.evaluation.settings import EvalSettings
    from harvest.evaluation.task import Task
    from harvest.interfaces import OnProgress

HELP = """usage: harvest evaluate MODEL --data FILE [--task TASK] [options]

Scores of a model on a manifest, as a table and, with --out, as JSON.

  harvest evaluate runs/demo/model --data runs/demo/world/retrieval.jsonl
  harvest evaluate openai/clip-vit-base-patch16 --image --data msrvtt.jsonl
  harvest evaluate runs/webvid/model --data 'shards-{000..009}.tar'
  harvest evaluate runs/webvid/model --data k400.csv --task recognition \\
      --classes k400.txt

  MODEL            run or model folder, hub name, or what harvest convert takes
  --data FILE      manifest (.jsonl, .csv, .parquet) or tar shards
  --task TASK      retrieval (default), choice, recognition, qa, masked_words,
                   classification, detection
  --videos FOLDER  folder that video paths are relative to
  --classes FILE   class names or answers, one a line
  --num-frames N   frames of a clip; by default the model's own number
  --image          image baseline: each frame alone, embeddings averaged
  --batch-size N   clips encoded at once (default 32)
  --workers N      processes that decode (default 2)
  --json           print the result as JSON
  --out FILE       write the result as JSON to a file
  --card FOLDER    write every number with what decides it, for harvest compare

Every option, with those of the task: harvest evaluate --task TASK --help-all
"""


@dataclass(frozen=True)
class EvaluateOptions:
    """What is scored."""

    model: Annotated[str, tyro.conf.Positional]
    """A run or model folder, mini-image, or any source that `harvest convert` takes."""
    data: str
    """Manifest (.jsonl, .csv, .parquet): video, caption(s), optional start_s, end_s, label, question, answer. Or tar
    shards, in their order: a folder, 'shards-{000..009}.tar', or such an address in a bucket."""
    task: str = "retrieval"
    """retrieval: text to video and back. choice: texts are options, label the right one. recognition: label is the
    class. qa: question and answer. masked_words: words filled with the right and another clip. classification: by the
    head of a fine-tuned model; detection: actions in boxes, likewise. qa uses a head too, where there is one."""
    classes: Path | None = None
    """Class names or answers: one a line, a JSON list, a JSON object of names and numbers, or a .csv with the columns
    id and name."""
    context_length: int | None = None
    """Ids of a text, at most those of the text tower; longer texts are cut, and counted."""
    clean: Clean | None = None
    """How texts are cleaned before they become ids (umt: UMT's `pre_text`); without it as the model does."""


def main(args: list[str]) -> None:
    if asks_help(args, HELP):
        return
    from harvest.evaluation.settings import EvalSettings
    from harvest.evaluation.tasks import task_named

    kind = task_named(take_option(args, "--task")[0] or "retrieval")

    def evaluate(
        options: EvaluateOptions,
        rows: RowOptions = RowOptions(),  # noqa: B008  # frozen, as the others
        of_task: Any = kind(),  # noqa: B008
        settings: EvalSettings = EvalSettings(workers=2),  # noqa: B008
        scoring: ScoreOptions = ScoreOptions(),  # noqa: B008
    ) -> None:
        """Scores of a model on a manifest, as a table and, with --out, as JSON.

        $ harvest evaluate runs/demo/model --data runs/demo/world/retrieval.jsonl
        $ harvest evaluate openai/clip-vit-base-patch16 --image --data msrvtt.jsonl --videos /data/msrvtt
        $ harvest evaluate runs/webvid/model --data 'shards-{000..009}.tar'
        $ harvest evaluate runs/webvid/model --data k400.csv --task recognition --classes k400.txt
        $ harvest evaluate --task choice --help-all                          the options of another task
        """
        _evaluate(options, rows, of_task, settings, scoring, typed=args)

    evaluate.__annotations__["of_task"] = kind
    run(evaluate, args, prog="harvest evaluate")


def _evaluate(
    options: EvaluateOptions,
    rows: RowOptions,
    task: "Task",
    settings: "EvalSettings",
    scoring: ScoreOptions,
    *,
    typed: list[str],
) -> None:
    from harvest.cli.results import open_model, score_and_give
    from harvest.data.labels import read_class_names
    from harvest.data.miniworld import directions
    from harvest.data.rows import read_rows
    from harvest.evaluation.card import split_of
    from harvest.evaluation.motion_truth import by_direction
    from harvest.evaluation.tasks import evaluate
    from harvest.progress import bar

    data = Path(options.data)
    with bar("reading captions") as progress:
        examples, left_out = read_rows(options.data, **vars(rows), progress=progress)
    model, tokenizer, head = open_model(
        options.model,
        zero_shot=scoring.zero_shot,
        context_length=options.context_length,
        clean=options.clean,
    )
    names = read_class_names(options.classes) if options.classes else None
    is_miniworld = (data.parent / "world.json").is_file()
    asked = scoring.motion_truth

    def score(frame_order: "FrameOrder", progress: "OnProgress") -> "Result":
        return evaluate(
            model,
            tokenizer,
            examples,
            task=task,
            settings=settings,
            names=names,
            groups=by_direction(directions(data)) if task.reads_groups else None,
            head=head,
            frame_order=frame_order,
            left_out=left_out,
            progress=progress,
        )

    score_and_give(
        score,
        model,
        head,
        scoring,
        with_motion_truth=asked == "yes" or (asked == "auto" and is_miniworld and not settings.image),
        split=split_of(examples, data.name, names),
        source=options.model,
        typed=["evaluate", *typed],
    )
