"""Stretches of videos and their sentences: clips to be retrieved (YouCook2, EPIC-KITCHENS), moments to be found."""

from __future__ import annotations

from typing import Any

from harvest.data.benchmarks.files import Files, split
from harvest.data.benchmarks.record import Benchmark, BenchmarkRow, SplitRows


def youcook2(files: Files, split: str) -> SplitRows:
    """Clips cut out of videos by their times. The retrieval set lacks videos that were gone by 2019."""
    rows: dict[tuple[str, float, float], list[str]] = {}
    count = 0

    def add(place: str, video: str, start: Any, end: Any, text: Any) -> None:
        nonlocal count
        count += 1
        key = (video, files.number(place, "start", start), files.number(place, "end", end))
        rows.setdefault(key, []).append(str(text).strip())

    if split == "val":
        path = files.path()
        for place, row in files.table(path, ["video_id", "start", "end", "text"]):
            add(place, row["video_id"], row["start"], row["end"], row["text"])
    else:
        part = "training" if split == "train" else "validation"
        path = files.path()
        value = files.json(path)
        if isinstance(value, dict) and "database" in value:
            for video, record in value["database"].items():
                for said in record["annotations"] if record["subset"] == part else []:
                    start, end = said["segment"]
                    add(f"{path}, {video!r}", video, start, end, said["sentence"])
        else:
            for place, record in files.records(path, ["timestamps", "sentences"]):
                video = place.rpartition(", ")[2].strip("'").removeprefix("v_")
                for (start, end), sentence in zip(record["timestamps"], record["sentences"], strict=True):
                    add(place, video, start, end, sentence)
    return SplitRows(
        rows=[
            BenchmarkRow(
                f"{video}_{start:g}_{end:g}", (video, f"v_{video}"), tuple(texts), start_s=start, end_s=end
            )
            for (video, start, end), texts in rows.items()
        ],
        protocol="each clip, a stretch of a video, has its sentence",
        counts={"sentences": count},
    )


def charades_sta(files: Files, split: str) -> SplitRows:
    """`VIDEO START END##SENTENCE` a line. The stretch is the answer: a moment to be found in the whole video."""
    path = files.path()
    rows = []
    for number, (place, line) in enumerate(files.lines(path)):
        where, mark, sentence = line.partition("##")
        parts = where.split()
        if not mark or len(parts) != 3:
            if number == 0:
                raise files.wrong(path, "lines VIDEO START END##SENTENCE", f"{line!r:.80}")
            raise files.error(place, f"expected VIDEO START END##SENTENCE, got {line!r:.80}")
        start, end = files.number(place, "start", parts[1]), files.number(place, "end", parts[2])
        if end <= start:
            raise files.error(place, f"the end {end:g} is not after the start {start:g}")
        rows.append(
            BenchmarkRow(f"{split}-{number}", (parts[0],), (sentence.strip(),), start_s=start, end_s=end)
        )
    return SplitRows(
        rows=rows,
        protocol="the moment of a sentence is to be found in its video: recall at intersection over union 0.5 and 0.7",
        unscored="no evaluation finds moments yet; the stretch of a row is its answer",
    )


def epic100_mir(files: Files, split: str) -> SplitRows:
    """Multi-instance retrieval of EPIC-KITCHENS-100: every action clip with its narration."""
    columns = ["narration_id", "video_id", "participant_id", "start_timestamp", "stop_timestamp", "narration"]
    table = files.table(files.path(0), columns)
    sentences = files.table(files.path(1), ["narration_id", "narration"])
    rows = []
    for place, row in table:
        start, end = (_clock_s(files, place, row[name]) for name in ("start_timestamp", "stop_timestamp"))
        names = (f"{row['participant_id']}/videos/{row['video_id']}.MP4",)
        rows.append(BenchmarkRow(row["narration_id"], names, (row["narration"],), start_s=start, end_s=end))
    known = {row.id for row in rows}
    for place, sentence in sentences:
        if sentence["narration_id"] not in known:
            raise files.error(place, f"no clip {sentence['narration_id']}: files of different sets?")
    return SplitRows(
        rows=rows,
        protocol="clips against the distinct sentences by mAP and nDCG, relevance graded by shared verbs and nouns",
        counts={"sentences": len(sentences)},
        unscored="no evaluation has graded relevance yet",
    )


def _clock_s(files: Files, place: str, written: str) -> float:
    """Seconds of "00:05:27.28"."""
    parts = [files.number(place, "time", part) for part in written.split(":")]
    if len(parts) != 3:
        raise files.error(place, f"expected a time H:M:S, got {written!r}")
    return parts[0] * 3600 + parts[1] * 60 + parts[2]


# ---------------------------------------------------------------------------------------------------------------

_YOUCOOK = "Zhou et al. 2018"


BENCHMARKS = [
    Benchmark(
        "youcook2",
        "YouCook2, clips",
        "retrieval",
        "https://github.com/antoine77340/MIL-NCE_HowTo100M (csv); http://youcook2.eecs.umich.edu",
        r"[\w-]{11}",
        {
            "val": split("validation_youcook.csv", "Miech et al. 2020", sentences=3350),
            "val-all": split(
                "youcookii_annotations_trainval.json | yc2_val.json", _YOUCOOK, videos=457, sentences=3492
            ),
            "train": split("youcookii_annotations_trainval.json", _YOUCOOK, videos=1333, sentences=10_337),
        },
        youcook2,
        (
            "Two of the 3,350 sentences are of one stretch, so that there are 3,349 clips; so it is with the 3,492 of"
            " val-all and its 3,491.",
        ),
    ),
    Benchmark(
        "charades-sta",
        "Charades-STA",
        "moments",
        "https://github.com/jiyanggao/TALL",
        r"\w{5}",
        {
            "test": split("charades_sta_test.txt", "Gao et al. 2017", rows=3720, videos=1334),
            "train": split("charades_sta_train.txt", "Gao et al. 2017", rows=12_408, videos=5338),
        },
        charades_sta,
    ),
    Benchmark(
        "epic100-mir",
        "EPIC-KITCHENS-100, multi-instance retrieval",
        "retrieval",
        "https://github.com/epic-kitchens/epic-kitchens-100-annotations",
        r"P\d\d_\d+",
        {
            "test": split(
                (
                    "EPIC_100_retrieval_test.csv | EPIC_100_validation.csv",
                    "EPIC_100_retrieval_test_sentence.csv",
                ),
                "Damen et al. 2022",
                rows=9668,
                sentences=3842,
            )
        },
        epic100_mir,
    ),
]
