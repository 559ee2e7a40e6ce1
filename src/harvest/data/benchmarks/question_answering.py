"""Questions about videos: open answers (MSRVTT-QA, MSVD-QA, ActivityNet-QA, TGIF-QA FrameQA) and options.

The official answer vocabularies come from files. An answer that is not in its vocabulary can never be given: such
questions stay in the set, count as wrong, and are counted (`counts["unlisted_answers"]`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harvest.data.benchmarks.files import Files, split
from harvest.data.benchmarks.record import Benchmark, BenchmarkRow, BenchmarkTask, SplitRows
from harvest.data.benchmarks.retrieval import msvd_names
from harvest.interfaces import HarvestError


def msrvtt_qa(files: Files, split: str) -> SplitRows:
    questions, answers = _questions(files, files.path(0)), _vocabulary(files, files.path(1))
    return _open_ended(files, questions, answers, lambda video: (_numbered(video, "video"),))


def msvd_qa(files: Files, split: str) -> SplitRows:
    """The official files name videos by number, for which `youtube_mapping.txt` gives the other name."""
    other_name = msvd_names(files)

    def names(video: str) -> tuple[str, ...]:
        video = _numbered(video, "vid")
        return (video, other_name[video]) if video in other_name else (video,)

    questions, answers = _questions(files, files.path(0)), _vocabulary(files, files.path(1))
    return _open_ended(files, questions, answers, names)


def activitynet_qa(files: Files, split: str) -> SplitRows:
    """The vocabulary: a list, or the training answers that occur twice or more, which are 1,654."""
    path, *more = files.need()
    if more:
        answers = {
            r["question_id"]: r["answer"] for _, r in files.records(more[0], ["answer", "question_id"])
        }
        asked = files.records(path, ["question", "video_name", "question_id"])
        absent = [record["question_id"] for _, record in asked if record["question_id"] not in answers]
        if absent:
            raise HarvestError(
                f"activitynet-qa: {len(absent)} questions of {path} have no answer in {more[0]} (first: {absent[0]})"
            )
        records = [(place, {**r, "answer": answers[r["question_id"]]}) for place, r in asked]
    else:
        records = _questions(files, path)
    listed = files.optional("anet_qa_answer_list.json", "train_ans2label.json", "qa_ans2label.json")
    train = files.optional("train_a.json")
    vocabulary: tuple[str, ...] | None = None
    if listed is not None:
        vocabulary = _vocabulary(files, listed)
    elif train is not None:
        times = Counter(str(record["answer"]) for _, record in files.records(train, ["answer"]))
        vocabulary = tuple(sorted(answer for answer, count in times.items() if count > 1))

    def names(video: str) -> tuple[str, ...]:
        plain = video.removeprefix("v_")
        return f"v_{plain}", plain

    return _open_ended(files, records, vocabulary, names)


def tgif_frame(files: Files, split: str) -> SplitRows:
    """The vocabulary is that of the training answers, where the training file is there too."""
    columns = ["gif_name", "question", "answer", "vid_id"]
    rows = files.table(files.path(), columns, delimiter="\t")
    train = files.optional("Train_frameqa_question.csv")
    vocabulary = None
    if train is not None:
        vocabulary = tuple(sorted({row["answer"] for _, row in files.table(train, columns, delimiter="\t")}))
    records = [(place, {**row, "question_id": row["vid_id"]}) for place, row in rows]
    return _open_ended(files, records, vocabulary, lambda video: (f"{video}.gif",))


def tgif_choice(files: Files, split: str) -> SplitRows:
    """Action and Transition: five options. A text is the question and an option, in one sentence."""
    columns = ["gif_name", "question", "a1", "a2", "a3", "a4", "a5", "answer", "vid_id"]
    rows = []
    for place, row in files.table(files.path(), columns, delimiter="\t"):
        options = tuple(f"{row['question']} {row[f'a{number}']}" for number in range(1, 6))
        label = files.label(place, row["answer"], classes=5)
        rows.append(BenchmarkRow(row["vid_id"], (f"{row['gif_name']}.gif",), options, label=label))
    return SplitRows(
        rows, "of five options, each a text with the question before it, the right one is to be picked"
    )


def tgif_count(files: Files, split: str) -> SplitRows:
    """How often an action is repeated, 0 to 10: `label` is the number, and the numbers from 1 are the answers."""
    columns = ["gif_name", "question", "answer", "vid_id"]
    rows = []
    for place, row in files.table(files.path(), columns, delimiter="\t"):
        label = files.label(place, row["answer"], classes=11)
        names = (f"{row['gif_name']}.gif",)
        rows.append(
            BenchmarkRow(row["vid_id"], names, label=label, question=row["question"], answer=row["answer"])
        )
    return SplitRows(
        rows,
        "the number of repetitions is to be given: mean squared error of the rounded number, 1 to 10",
        answers=tuple(str(number) for number in range(1, 11)),
    )


def msrvtt_mc(files: Files, split: str) -> SplitRows:
    """Five captions, of which one is the video's."""
    path = files.path()
    rows = []
    for number, (place, record) in enumerate(
        files.records(path, ["video|clip_name", "caption|options", "answer"])
    ):
        video = str(record.get("video") or record["clip_name"])
        options = tuple(str(text).strip() for text in record.get("caption") or record["options"])
        if len(options) != 5:
            raise files.error(place, f"expected 5 options, got {len(options)}")
        label = files.label(place, record["answer"], classes=5)
        id = str(record.get("qid", record.get("question_id", number)))
        rows.append(BenchmarkRow(id, (video,), options, label=label))
    return SplitRows(rows, "of five captions the video's own is to be picked")


# ---------------------------------------------------------------------------------------------------------------


def _questions(files: Files, path: Path) -> list[tuple[str, dict[str, Any]]]:
    return files.records(path, ["question", "answer", "video|video_id|video_name"])


def _open_ended(
    files: Files,
    records: Sequence[tuple[str, dict[str, Any]]],
    answers: tuple[str, ...] | None,
    names: Callable[[str], tuple[str, ...]],
) -> SplitRows:
    """Rows of questions; without ids of their own they are numbered in the order of the file."""
    rows = []
    listed = None if answers is None else set(answers)
    for number, (place, record) in enumerate(records):
        video = next(
            str(record[key]) for key in ("video", "video_name", "video_id", "gif_name") if key in record
        )
        question, answer = str(record["question"]).strip(), str(record["answer"]).strip().lower()
        if not question or not answer:
            raise files.error(place, "the question or its answer is blank")
        id = str(record.get("question_id", record.get("id", number)))
        rows.append(BenchmarkRow(id, names(video), question=question, answer=answer))
    counts = {"questions": len(rows)}
    if answers is None or listed is None:
        protocol = (
            "one of the answers of this split is to be given, since no vocabulary is there: easier than the published"
            " task"
        )
    else:
        counts["answers"] = len(answers)
        counts["unlisted_answers"] = sum(row.answer not in listed for row in rows)
        protocol = f"one of {len(answers):,} answers is to be given; a right answer that is not among them is never hit"
    return SplitRows(rows, protocol + "; equal after lower case", answers=answers, counts=counts)


def _vocabulary(files: Files, path: Path) -> tuple[str, ...]:
    """Answers in the order of their labels, from a list or from an object answer to label."""
    value = files.json(path)
    if isinstance(value, dict):
        if not all(isinstance(label, int) for label in value.values()):
            raise files.wrong(
                path, "an object from answers to numbers", f"{next(iter(value.items()))!r:.100}"
            )
        if sorted(value.values()) != list(range(len(value))):
            raise files.error(path, f"the answers' numbers are not 0 to {len(value) - 1}, each once")
        value = sorted(value, key=value.__getitem__)
    if not all(isinstance(answer, str) for answer in value):
        raise files.wrong(path, "a list of answers", f"{value[:1]!r:.100}")
    return tuple(files.distinct([answer.strip().lower() for answer in value], str(path)))


def _numbered(video: str, prefix: str) -> str:
    """The official files have 6513 for video6513."""
    return prefix + video if video.isdigit() else video


# ---------------------------------------------------------------------------------------------------------------

_TGIF = "https://github.com/YunseokJANG/tgif-qa (dataset)"
_TGIF_PAPER = "Jang et al. 2019, the repository's table"
_UNLISTED = "Answers that are not in the vocabulary are wrong by the protocol, and counted."


def _qa_files(split: str, name: str, *more: str) -> str:
    answers = f"train_ans2label.json | qa_ans2label.json | {name}_answer_list.json"
    return (
        " | ".join([f"{split}_qa.json", f"{name}_{split}.json", f"qa_{split}.json", *more]) + " & " + answers
    )


def _tgif(
    kind: str,
    title: str,
    task: BenchmarkTask,
    reader: Callable[[Files, str], SplitRows],
    rows: tuple[int, int],
    *notes: str,
) -> Benchmark:
    file = "frameqa" if kind == "frame" else kind
    return Benchmark(
        f"tgif-{kind}",
        f"TGIF-QA {title}",
        task,
        _TGIF,
        r"tumblr_\w+",
        {
            part: split(f"{part.title()}_{file}_question.csv", _TGIF_PAPER, rows=count)
            for part, count in zip(("test", "train"), rows, strict=True)
        },
        reader,
        notes,
    )


BENCHMARKS = [
    Benchmark(
        "msrvtt-qa",
        "MSRVTT-QA",
        "qa",
        "https://github.com/xudejing/video-question-answering; answers: https://github.com/jpthu17/HBI",
        r"video\d+",
        {
            part: split(
                _qa_files(part, "msrvtt_qa", f"{part}.jsonl"),
                "Xu et al. 2017; 1,500 answers: ClipBERT",
                rows=rows,
                answers=1500,
            )
            for part, rows in (("test", 72_821), ("val", 12_278), ("train", 158_581))
        },
        msrvtt_qa,
        (_UNLISTED + " Of the 12,278 of val 859 are not.",),
    ),
    Benchmark(
        "msvd-qa",
        "MSVD-QA",
        "qa",
        "https://github.com/xudejing/video-question-answering; answers: https://github.com/boheumd/MA-LMM",
        r"[\w-]{11}_\d+_\d+|vid\d+",
        {
            part: split(
                _qa_files(part, "msvd_qa", *(["chatunivi_msvd_qa.json"] if part == "test" else [])),
                "Xu et al. 2017; 2,423 answers: ALPRO",
                rows=rows,
                answers=2423,
            )
            for part, rows in (("test", 13_157), ("val", 6_415), ("train", 30_933))
        },
        msvd_qa,
        (
            "None of the answers of val and test is missing from the 2,423.",
            "The split has 520 test videos, of which 504 are asked about.",
        ),
    ),
    Benchmark(
        "activitynet-qa",
        "ActivityNet-QA",
        "qa",
        "https://github.com/MILVLG/activitynet-qa",
        r"v_[\w-]{11}",
        {
            part: split(
                f"{part}_q.json + {part}_a.json | anet_qa_{part}.json"
                + (" | activitynet_qa.json" if part == "test" else "")
                + f" | qa_{part}.json",
                "Yu et al. 2019",
                rows=rows,
                videos=videos,
            )
            for part, rows, videos in (
                ("test", 8_000, 800),
                ("val", 18_000, 1800),
                ("train", 32_000, 3200),
            )
        },
        activitynet_qa,
        (
            "The LAVIS form of the test set (qa_test.json) lacks 40 questions of 4 videos.",
            "The vocabulary is not published as a file; the training answers that occur twice or more are 1,654.",
        ),
    ),
    _tgif(
        "action",
        "Action",
        "choice",
        tgif_choice,
        (2_274, 20_475),
        "The repository's training file has 20,471 rows, its table 20,475.",
    ),
    _tgif("transition", "Transition", "choice", tgif_choice, (6_232, 52_704)),
    _tgif(
        "frame",
        "FrameQA",
        "qa",
        tgif_frame,
        (13_691, 39_392),
        "Without the training file the vocabulary is that of the split, which is easier.",
    ),
    _tgif(
        "count",
        "Count",
        "count",
        tgif_count,
        (3_554, 26_843),
        "The repository's training file has 26,839 rows, its table 26,843.",
    ),
    Benchmark(
        "msrvtt-mc",
        "MSRVTT-MC",
        "choice",
        "https://github.com/jayleicn/singularity (annotations of the downstream tasks); Yu et al. 2018",
        r"video\d+",
        {"test": split("msrvtt_mc_test.json | msrvtt_mc_test.jsonl", "Yu et al. 2018", rows=2990)},
        msrvtt_mc,
        is_tested=False,
    ),
]
