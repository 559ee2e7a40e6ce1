"""Action detection: AVA 2.2. Who does what where in one picture a second.

The files are those of the official evaluation (ActivityNet/Evaluation/ava): boxes, timestamps to leave out, and
the list of the 60 of 80 actions that are scored.
"""

from __future__ import annotations

import re
from pathlib import Path

from harvest.data.benchmarks.files import Files, Published, SplitFiles
from harvest.data.benchmarks.record import ActingBox, Benchmark, BenchmarkRow, SplitRows

_HALF_S = 1.5  # annotators saw a second and a half on either side of the picture (Gu et al. 2018)


def ava(files: Files, split: str) -> SplitRows:
    """Boxes of one picture are one row; a person with several actions is one box. Excluded pictures are left out.

    Boxes whose actions are all outside the list stay without actions, as persons who are there.
    """
    path, excluded_path = files.path(0), files.path(1)
    actions = _actions(files, files.path(2))
    excluded = {
        (row["video"], int(files.number(place, "the timestamp", row["second"])))
        for place, row in files.table(excluded_path, ["video", "second"], header=False)
    }
    columns = ["video", "second", "left", "top", "right", "bottom", "action", "person"]
    pictures: dict[tuple[str, int], dict[tuple[tuple[float, ...], str], list[int]]] = {}
    left_out = labels = 0
    for place, row in files.table(path, columns, header=False, optional=1):
        second = int(files.number(place, "the timestamp", row["second"]))
        box = tuple(files.number(place, "a box", row[side]) for side in columns[2:6])
        left, top, right, bottom = box
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise files.error(
                place,
                f"the box {box} is not inside the picture: expected shares from 0 to 1, left before"
                " right, top before bottom",
            )
        if (row["video"], second) in excluded:
            left_out += 1
            continue
        boxes = pictures.setdefault((row["video"], second), {})
        done = boxes.setdefault((box, row.get("person", "")), [])
        action = int(files.number(place, "an action", row["action"]))
        if action in done:
            raise files.error(place, f"action {action} of this box is there more than once")
        if action in actions:
            done.append(action)
            labels += 1
    rows, boxes_of = [], {}
    for (video, second), boxes in pictures.items():
        id = f"{video},{second:04d}"
        rows.append(BenchmarkRow(id, (video,), start_s=second - _HALF_S, end_s=second + _HALF_S))
        boxes_of[id] = tuple(_acting(files, id, *seen, done) for seen, done in boxes.items())
    return SplitRows(
        rows,
        f"frame-mAP at intersection over union 0.5, the mean over {len(actions)} actions; pictures of the exclusion"
        " list are left out",
        actions=actions,
        boxes=boxes_of,
        counts={
            "boxes": sum(len(boxes) for boxes in boxes_of.values()),
            "labels": labels,
            "labels_excluded": left_out,
            "excluded": len(excluded),
            "actions": len(actions),
        },
    )


def _acting(files: Files, id: str, box: tuple[float, ...], person: str, actions: list[int]) -> ActingBox:
    number = int(files.number(id, "a person's number", person)) if person else None
    return ActingBox((box[0], box[1], box[2], box[3]), tuple(actions), number)


def _actions(files: Files, path: Path) -> dict[int, str]:
    """Official id to name, from the text form of a label map (`name` with `id` or `label_id`)."""
    text = files.text(path)
    entries = re.findall(r'\{\s*name:\s*"([^"]*)"\s*(?:label_)?id:\s*(\d+)', text)
    if not entries or len(entries) != len(re.findall(r"\{", text)):
        raise files.wrong(path, 'entries { name: "…" id: … }', f"{text[:60]!r}")
    files.distinct([number for _, number in entries], str(path))
    return {int(number): name for name, number in entries}


BENCHMARKS = [
    Benchmark(
        "ava",
        "AVA 2.2",
        "detection",
        "https://research.google.com/ava/download.html",
        r"[\w-]{11}",
        {
            part: SplitFiles(
                (
                    f"ava_{part}_v2.2.csv",
                    f"ava_{part}_excluded_timestamps_v2.2.csv",
                    "ava_action_list_v2.2_for_activitynet_2019.pbtxt | ava_action_list_v2.2.pbtxt",
                ),
                Published(
                    {"videos": videos, "excluded": excluded}, "Gu et al. 2018; the released exclusions"
                ),
            )
            for part, videos, excluded in (("val", 64, 37), ("train", 235, 161))
        },
        ava,
        (
            "Numbers are over the 60 actions of the 2019 list, not all 80, and on detected boxes unless they say"
            " ground truth.",
        ),
        is_tested=False,
    )
]
