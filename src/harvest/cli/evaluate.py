"""`harvest evaluate`: scores of a model on a manifest."""

from pathlib import Path
from typing import Annotated, Any

from harvest.cli.parsing import asks_help, run, take_option

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


def main(args: list[str]) -> None:
    if asks_help(args, HELP):
        return
    import tyro

    from harvest.cli.results import MotionTruth, open_model, score_and_give
    from harvest.data.labels import read_class_names
    from harvest.data.miniworld import directions
    from harvest.data.rows import read_rows
    from harvest.data.sampling import FrameOrder
    from harvest.evaluation.card import split_of
    from harvest.evaluation.motion_truth import by_direction
    from harvest.evaluation.result import Result
    from harvest.evaluation.settings import EvalSettings
    from harvest.evaluation.tasks import TASKS, task_named
    from harvest.evaluation.tasks import evaluate as score_task
    from harvest.interfaces import OnProgress
    from harvest.model.text_cleaning import Clean
    from harvest.progress import bar

    kind = task_named(take_option(args, "--task")[0] or TASKS[0].name)
    of_kind, plain = kind(), EvalSettings(workers=2)

    def evaluate(
        model: Annotated[str, tyro.conf.Positional],
        /,
        data: str,
        task: str = TASKS[0].name,
        videos: Path | None = None,
        form: str = "",
        columns: tuple[str, ...] = (),
        classes: Path | None = None,
        zero_shot: bool = False,
        context_length: int | None = None,
        clean: Clean | None = None,
        motion_truth: MotionTruth = "auto",
        of_task: Any = of_kind,
        settings: EvalSettings = plain,
        card: Path | None = None,
        json: bool = False,
        out: Path | None = None,
    ) -> None:
        """Scores of a model on a manifest, as a table and, with --out, as JSON.

        $ harvest evaluate runs/demo/model --data runs/demo/world/retrieval.jsonl
        $ harvest evaluate openai/clip-vit-base-patch16 --image --data msrvtt.jsonl --videos /data/msrvtt
        $ harvest evaluate runs/webvid/model --data 'shards-{000..009}.tar'
        $ harvest evaluate runs/webvid/model --data k400.csv --task recognition --classes k400.txt
        $ harvest evaluate --task choice --help-all                          the options of another task

        Args:
            model: A run or model folder, mini-image, or any source that `harvest convert` takes.
            data: Manifest (.jsonl, .csv, .parquet): video, caption(s), optional start_s, end_s, label, question, answer.
                Or tar shards, in their order: a folder, 'shards-{000..009}.tar', or such an address in a bucket.
            task: retrieval: text to video and back. choice: texts are options, label the right one. recognition: label
                is the class. qa: question and answer. masked_words: words filled with the right and another clip.
                classification: by the head of a fine-tuned model; detection: actions in boxes, likewise. qa uses a
                head too, where there is one.
            videos: Folder that video paths are relative to; without it the manifest's own.
            form: Name of the training set that `data` is (harvest dataset), where it is not to be recognised.
            columns: What a column is, where its name does not say: caption=long_text video=file start=t0.
            classes: Class names or answers: one a line, a JSON list, a JSON object of names and numbers, or a .csv with
                the columns id and name.
            zero_shot: Leave the head of a fine-tuned model aside.
            context_length: Ids of a text, at most those of the text tower; longer texts are cut, and counted.
            clean: How texts are cleaned before they become ids (umt: UMT's `pre_text`); without it as the model does.
            motion_truth: yes: score again with the frames reversed, shuffled, and one frame alone, as columns of their
                own. auto: on manifests of the mini-world.
            card: Write the benchmark card into this folder: every number with what decides it; for `harvest compare`.
            json: Print the result as JSON.
            out: Write the result as JSON to this file.
        """
        with bar("reading captions") as progress:
            examples, left_out = read_rows(data, videos=videos, form=form, columns=columns, progress=progress)
        loaded, tokenizer, head = open_model(
            model, zero_shot=zero_shot, context_length=context_length, clean=clean
        )
        names = read_class_names(classes) if classes else None
        is_miniworld = (Path(data).parent / "world.json").is_file()
        asks_again = motion_truth == "yes" or (motion_truth == "auto" and is_miniworld and not settings.image)

        def score(frame_order: FrameOrder, progress: OnProgress) -> Result:
            return score_task(
                loaded,
                tokenizer,
                examples,
                task=of_task,
                settings=settings,
                names=names,
                groups=by_direction(directions(Path(data))) if kind.reads_groups else None,
                head=head,
                frame_order=frame_order,
                left_out=left_out,
                progress=progress,
            )

        score_and_give(
            score,
            loaded,
            head,
            with_motion_truth=asks_again,
            out=out,
            json=json,
            card=card,
            split=split_of(examples, Path(data).name, names),
            source=model,
            typed=["evaluate", *args],
        )

    evaluate.__annotations__["of_task"] = kind
    run(evaluate, args, prog="harvest evaluate")
