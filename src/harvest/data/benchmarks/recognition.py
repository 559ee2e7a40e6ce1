"""Action recognition: clips and the official class list in the order of the labels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from harvest.data.benchmarks.files import Files, SplitFiles, check_class_order, split
from harvest.data.benchmarks.record import Benchmark, BenchmarkRow, SplitRows
from harvest.interfaces import HarvestError

_PROTOCOL = "a clip's class among {} is to be named: top-1 and top-5"


def kinetics(files: Files, split: str) -> SplitRows:
    """DeepMind's tables: label,youtube_id,time_start,time_end,split. The test tables have no labels.

    A clip is a file of its own cut to its ten seconds, `ID_000012_000022.mp4` or, where one clip is of that
    video, `ID.mp4`.
    """
    number = files.name.removeprefix("k")
    path = files.path(0)
    columns = ["youtube_id", "time_start", "time_end"]
    table = files.table(path, columns if split == "test" else ["label", *columns])
    has_labels = "label" in table[0][1] and split != "test"
    listed = files.optional(f"label_map_k{number}.txt", f"kinetics_{number}_labels.csv")
    if listed is not None:
        class_names = _class_names(files, listed, int(number))
    elif has_labels:
        class_names = tuple(sorted({row["label"] for _, row in table}))
        if len(class_names) != int(number):
            raise files.wrong(path, f"{number} classes", f"{len(class_names)}")
    else:  # needed where there are no labels
        class_names = _class_names(files, files.path(1), int(number))
    place_of = {name: place for place, name in enumerate(class_names)}
    times = Counter(row["youtube_id"] for _, row in table)
    rows = []
    for place, row in table:
        start, end = (int(files.number(place, name, row[name])) for name in ("time_start", "time_end"))
        id = f"{row['youtube_id']}_{start:06d}_{end:06d}"
        label = None
        if has_labels:
            if row["label"] not in place_of:
                other = f"; the list is {listed}" if listed else ""
                raise files.wrong(path, f"one of the {number} classes{other}", f"{row['label']!r} ({place})")
            label = place_of[row["label"]]
        names = (id, row["youtube_id"]) if times[row["youtube_id"]] == 1 else (id,)
        rows.append(BenchmarkRow(id, names, label=label))
    return SplitRows(
        rows,
        _PROTOCOL.format(number),
        class_names=class_names,
        counts={"classes": len(class_names)},
        unscored=None if has_labels else "the official test file has no labels",
    )


def k600_zero_shot(files: Files, split: str) -> SplitRows:
    """Three draws of 160 of the classes that Kinetics-600 has and Kinetics-400 has not."""
    class_names = _class_names(files, files.path(0), 160)
    listed = _labelled_list(files, files.path(1), len(class_names))
    rows = [BenchmarkRow(Path(path).stem, (path,), label=label) for path, label in listed.items()]
    name_of: dict[str, str] = {}
    for official in (files.optional(f"kinetics-600_{part}.csv") for part in ("train", "val")):
        for place, row in files.table(official, ["label", "youtube_id", "time_start"]) if official else []:
            start = int(files.number(place, "time_start", row["time_start"]))
            name_of[f"{row['youtube_id']}_{start:06d}"] = row["label"]
    said = {row.id: (row.label or 0, name_of[row.id[:18]]) for row in rows if row.id[:18] in name_of}
    check_class_order("k600-zero-shot", class_names, said, where=str(files.path(0)))
    return SplitRows(
        rows,
        _PROTOCOL.format("160 that Kinetics-400 does not have") + "; the mean of three splits is reported",
        class_names=class_names,
        counts={"classes": len(class_names)},
    )


def ssv2(files: Files, split: str) -> SplitRows:
    """The official JSON, or a list `ID[.webm] [START END] LABEL` a line as mmaction2 and VideoMAE write it."""
    value = files.json(files.path(0))
    labels: dict[str, int] = {}
    if isinstance(value, dict) and all(str(label).isdigit() for label in value.values()):
        labels = {str(name): int(label) for name, label in value.items()}
    if sorted(labels.values()) != list(range(174)):
        raise files.wrong(
            files.path(0), "174 sentences with their numbers, 0 to 173", f"{len(value)} entries"
        )
    class_names = tuple(sorted(labels, key=labels.__getitem__))
    path = files.path(1)
    if path.suffix == ".txt":
        rows = [
            BenchmarkRow(Path(video).stem, (video if "." in video else f"{video}.webm",), label=label)
            for video, label in _labelled_list(files, path, len(class_names)).items()
        ]
    else:
        rows = []
        for place, record in files.records(path, ["id", "template"]):
            name = str(record["template"]).replace("[", "").replace("]", "")
            if name not in labels:
                raise files.error(place, f"no class {name!r} in the list of classes")
            rows.append(BenchmarkRow(str(record["id"]), (f"{record['id']}.webm",), label=labels[name]))
        other = files.optional(f"{split}.txt")
        if other is not None:
            listed = {Path(k).stem: v for k, v in _labelled_list(files, other, len(class_names)).items()}
            said = {row.id: (listed[row.id], class_names[row.label or 0]) for row in rows if row.id in listed}
            check_class_order("ssv2", class_names, said, where=f"of {other}")
    return SplitRows(
        rows,
        _PROTOCOL.format("174"),
        class_names=class_names,
        counts={"classes": len(class_names)},
        view_places="leading",
    )


def mit(files: Files, split: str) -> SplitRows:
    """Moments in Time: `CLASS/FILE.mp4,CLASS,AGREE,DISAGREE` a line, classes with their numbers in their own file."""
    listed = files.path(0)
    labels: dict[str, int] = {}
    for place, row in files.table(listed, ["name", "number"], header=False):
        labels[row["name"]] = int(files.number(place, "the class's number", row["number"]))
    if sorted(labels.values()) != list(range(len(labels))):
        raise files.error(listed, f"the classes' numbers are not 0 to {len(labels) - 1}, each once")
    folder = {"train": "training", "val": "validation"}[split]
    path = files.path(1)
    rows = []
    for place, row in files.table(path, ["path", "label", "agree", "disagree"], header=False, optional=2):
        if row["label"] not in labels:
            raise files.wrong(
                path, f"one of the {len(labels)} classes of {listed.name}", f"{row['label']!r} ({place})"
            )
        rows.append(
            BenchmarkRow(
                row["path"].removesuffix(".mp4"),
                (f"{folder}/{row['path']}", row["path"]),
                label=labels[row["label"]],
            )
        )
    class_names = tuple(name.replace("+", " ") for name in sorted(labels, key=labels.__getitem__))
    return SplitRows(
        rows,
        _PROTOCOL.format(f"{len(class_names)}"),
        class_names=class_names,
        counts={"classes": len(class_names)},
    )


def ucf101(files: Files, split: str) -> SplitRows:
    """The official lists. `classInd.txt` counts from 1; the test lists have no labels, their folders are classes."""
    path = files.path(0)
    folders: list[str] = []
    for place, line in files.lines(path):
        number, _, name = line.partition(" ")
        if number != str(len(folders) + 1) or not name.strip():
            raise files.wrong(path, "lines `1 ApplyEyeMakeup` counted from 1", f"{line!r:.80} ({place})")
        folders.append(name.strip())
    if len(set(folders)) != 101:
        raise files.wrong(path, "101 classes", f"{len(set(folders))}")
    source = files.path(1)
    rows: list[BenchmarkRow] = []
    said: dict[str, tuple[int, str]] = {}
    for place, line in files.lines(source):
        name, _, written = line.partition(" ")
        folder, slash, file = name.partition("/")
        if not slash or folder not in folders:
            if not rows:
                raise files.wrong(source, "lines CLASS/FILE.avi", f"{line!r:.80}")
            raise files.error(place, f"{folder!r} is no class of {path.name}")
        if written:
            said[file] = (files.label(place, written, classes=101, first=1), folder)
        rows.append(BenchmarkRow(Path(file).stem, (name,), label=folders.index(folder)))
    check_class_order("ucf101", folders, said, where=str(path))
    return SplitRows(
        rows,
        _PROTOCOL.format("101") + "; the mean of three splits is reported",
        class_names=tuple(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name) for name in folders),
        counts={"classes": 101},
    )


def hmdb51(files: Files, split: str) -> SplitRows:
    """The official files CLASS_test_splitN.txt: 1 trains, 2 tests, 0 is left out. Classes in alphabetical order."""
    part, fold = split[:-1], split[-1]
    ending = f"_test_split{fold}.txt"
    sources = {path.name.removesuffix(ending): path for path in files.folder.glob(f"*{ending}")}
    classes = sorted(sources)
    if len(classes) != 51:
        raise files.lacks(f"{files.split.files[0]} (it has {len(classes)})")
    wanted = {"train": "1", "test": "2"}[part]
    rows = []
    for label, name in enumerate(classes):
        for place, line in files.lines(sources[name]):
            file, _, mark = line.rpartition(" ")
            if not file or mark not in ("0", "1", "2"):
                raise files.wrong(sources[name], "lines FILE.avi 0, 1 or 2", f"{line!r:.80} ({place})")
            if mark == wanted:
                rows.append(BenchmarkRow(Path(file.strip()).stem, (f"{name}/{file.strip()}",), label=label))
    return SplitRows(
        rows,
        _PROTOCOL.format("51") + "; the mean of three splits is reported",
        class_names=tuple(name.replace("_", " ") for name in classes),
        counts={"classes": 51},
    )


# ---------------------------------------------------------------------------------------------------------------


def _class_names(files: Files, path: Path, number: int) -> tuple[str, ...]:
    """Names in the order of their labels: one a line, or a table id,name whose ids are 0, 1, …"""
    if path.suffix == ".csv":
        table = files.table(path, ["id", "name"])
        for place, row in enumerate(table):
            if row[1]["id"] != str(place):
                raise HarvestError(
                    f"{files.name}: {row[0]}: class {row[1]['name']!r} has id {row[1]['id']}, expected {place}:"
                    " the class list is in another order than the labels"
                )
        names = [row["name"] for _, row in table]
    else:
        names = [line for _, line in files.lines(path)]
    if len(names) != number:
        raise files.wrong(path, f"{number} classes", f"{len(names)}")
    return tuple(files.distinct(names, str(path)))


def _labelled_list(files: Files, path: Path, classes: int) -> Mapping[str, int]:
    """`PATH [START END] LABEL` a line: path to label. Paths may have spaces where no times stand between."""
    labels: dict[str, int] = {}
    for place, line in files.lines(path):
        name, _, written = line.rpartition(" ")
        times = re.fullmatch(r"(\S+) \d+ \d+", name)
        name = times[1] if times else name
        if not name:
            raise files.wrong(path, "lines PATH LABEL", f"{line!r:.80} ({place})")
        label = files.label(place, written, classes=classes)
        if name in labels:
            raise files.error(place, f"{name!r} is there more than once")
        labels[name] = label
    return labels


# ---------------------------------------------------------------------------------------------------------------

_FOLDS = ("1", "2", "3")
_KINETICS = "https://github.com/cvdfoundation/kinetics-dataset; https://github.com/activitynet/ActivityNet"


def _kinetics(
    number: int, splits: Mapping[str, SplitFiles], *notes: str, is_tested: bool = True
) -> Benchmark:
    return Benchmark(
        f"k{number}",
        f"Kinetics-{number}",
        "recognition",
        _KINETICS,
        r"[\w-]{11}_\d{6}_\d{6}",
        splits,
        kinetics,
        notes,
        is_tested,
    )


BENCHMARKS = [
    _kinetics(
        400,
        {
            "val": split(
                "kinetics-400_val.csv | val.csv | validate.csv",
                "the released table",
                rows=19_906,
                classes=400,
            ),
            "train": split("kinetics-400_train.csv | train.csv", "Kay et al. 2017", classes=400),
            "test": split(
                "kinetics-400_test.csv | test.csv & label_map_k400.txt", "the released table", rows=38_685
            ),
        },
        "Videos vanish: mmaction2's copy has 19,796 of the 19,906 validation clips, UniFormer's list 19,787.",
        "UniFormer's lists number the classes in another order than the alphabetical one of mmaction2 and X-CLIP.",
    ),
    _kinetics(
        600,
        {
            "val": split(
                "kinetics-600_val.csv | val.csv | validate.csv",
                "Carreira et al. 2018",
                rows=30_000,
                classes=600,
            ),
            "train": split("kinetics-600_train.csv | train.csv", "Carreira et al. 2018", classes=600),
            "test": split(
                "kinetics-600_test.csv | test.csv & label_map_k600.txt", "the released table", rows=72_924
            ),
        },
        "The 30,000 validation clips are of 29,994 videos.",
    ),
    _kinetics(
        700,
        {
            "val": split(
                "kinetics-700_val.csv | val.csv | validate.csv", "Carreira et al. 2019", classes=700
            ),
            "train": split("kinetics-700_train.csv | train.csv", "Carreira et al. 2019", classes=700),
        },
        is_tested=False,
    ),
    Benchmark(
        "k600-zero-shot",
        "Kinetics-600, zero-shot splits",
        "recognition",
        "https://github.com/muzairkhattak/ViFi-CLIP (labels and datasets_splits/k600_splits)",
        r"[\w-]{11}_\d{6}_\d{6}",
        {
            fold: split(
                f"ZS_split{fold}_K600.csv & ZS_split{fold}_K600_eval.txt",
                "Chen and Huang 2021; the released lists",
                rows=rows,
                classes=160,
            )
            for fold, rows in zip(_FOLDS, (14_084, 13_978, 14_136), strict=True)
        },
        k600_zero_shot,
        (
            "With kinetics-600_train.csv beside the lists, the order of the classes is checked against it. (None of the"
            " listed clips is in the released validation table.)",
        ),
    ),
    Benchmark(
        "ssv2",
        "Something-Something V2",
        "recognition",
        "https://www.qualcomm.com/developer/software/something-something-v-2-dataset",
        r"\d+",
        {
            "validation": split(
                "something-something-v2-labels.json | labels.json"
                " & something-something-v2-validation.json | validation.json | validation.txt",
                "Goyal et al. 2017, release 2",
                rows=24_777,
                videos=24_777,
                classes=174,
            ),
            "train": split(
                "something-something-v2-labels.json | labels.json"
                " & something-something-v2-train.json | train.json | train.txt",
                "Goyal et al. 2017, release 2",
                rows=168_913,
                videos=168_913,
                classes=174,
            ),
        },
        ssv2,
        ("No prompts are published for it; the class sentence is its own prompt.",),
    ),
    Benchmark(
        "mit",
        "Moments in Time v1",
        "recognition",
        "http://moments.csail.mit.edu (on request)",
        r".+",
        {
            "val": split(
                "moments_categories.txt & validationSet.csv", "Monfort et al. 2019", rows=33_900, classes=339
            ),
            "train": split(
                "moments_categories.txt & trainingSet.csv", "Monfort et al. 2019", rows=802_264, classes=339
            ),
        },
        mit,
        ("Version 2 has 305 classes; its files have the same form and other counts.",),
        is_tested=False,
    ),
    Benchmark(
        "ucf101",
        "UCF101",
        "recognition",
        "https://www.crcv.ucf.edu/data/UCF101.php",
        r"v_\w+_g\d\d_c\d\d",
        {
            f"{part}{fold}": split(
                f"classInd.txt & {part}list0{fold}.txt",
                "Soomro et al. 2012",
                rows=rows,
                videos=rows,
                classes=101,
            )
            for part, sizes in (("test", (3783, 3734, 3696)), ("train", (9537, 9586, 9624)))
            for fold, rows in zip(_FOLDS, sizes, strict=True)
        },
        ucf101,
        (
            "CLIP's class list has Hammer Throw before Hammering and Jump Rope before Jumping Jack, classInd.txt has"
            " them the other way round: the names here are those of classInd.txt, in its order.",
        ),
    ),
    Benchmark(
        "hmdb51",
        "HMDB51",
        "recognition",
        "https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database",
        r".+",
        {
            f"{part}{fold}": split(
                f"51 files CLASS_test_split{fold}.txt",
                "Kuehne et al. 2011",
                rows=rows,
                videos=rows,
                classes=51,
            )
            for part, rows in (("test", 1530), ("train", 3570))
            for fold in _FOLDS
        },
        hmdb51,
        (
            "Lists of classes go round in two orders: alphabetical, and with kick_ball before kick and"
            " sword_exercise before sword.",
            "No prompts are published with CLIP for it; those for Kinetics are used.",
        ),
    ),
]
