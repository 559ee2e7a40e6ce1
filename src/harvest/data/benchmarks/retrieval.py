"""Text-video retrieval of whole videos: MSR-VTT, MSVD, DiDeMo, ActivityNet, LSMDC, VATEX, Something-Something.

A video with several captions is one row with several texts; a paragraph is one text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harvest.data.benchmarks.files import Files, split
from harvest.data.benchmarks.record import Benchmark, BenchmarkRow, SplitRows
from harvest.interfaces import HarvestError


def msrvtt(files: Files, split: str) -> SplitRows:
    path = files.path(0)
    if split == "1k-a":
        rows: list[tuple[str, tuple[str, ...]]]
        if path.suffix == ".csv":
            table = files.table(path, ["video_id", "sentence"])
            rows = [(row["video_id"], (row["sentence"].strip(),)) for _, row in table]
        else:
            rows = list(_captions(files, path).items())
        return _of_captions(
            rows, "each of the 1,000 videos has one caption, and that video alone is right for it"
        )
    rows = _chosen(files, files.ids(path), _captions(files, files.path(1)))
    return _of_captions(rows, "each of a video's 20 captions is a query of its own")


def msvd(files: Files, split: str) -> SplitRows:
    """The YouTube names of `youtube_mapping.txt` and of the lists, or `vid1` to `vid1970`, whichever files have."""
    path, *more = files.need()
    if more:
        rows = _chosen(files, files.ids(path), _captions(files, more[0]))
    elif path.suffix == ".txt":
        rows = list(_sentences(files, path).items())
    else:
        rows = list(_captions(files, path).items())
    other_name = msvd_names(files)
    return _of_captions(
        rows,
        "each of a video's captions, about 41, is a query of its own; a paragraph of them would be another task",
        names={id: (id, other_name[id]) if id in other_name else (id,) for id, _ in rows},
    )


def msvd_names(files: Files) -> dict[str, str]:
    """From the YouTube name of an MSVD clip to `vid1` … `vid1970` and back, where `youtube_mapping.txt` is there."""
    path = files.optional("youtube_mapping.txt")
    names: dict[str, str] = {}
    for place, line in files.lines(path) if path else []:
        pair = line.split()
        if len(pair) != 2:
            raise files.error(place, f"expected a YouTube name and vidN, got {line!r:.80}")
        names[pair[0]], names[pair[1]] = pair[1], pair[0]
    return names


def didemo(files: Files, split: str) -> SplitRows:
    """A video's descriptions in the order of the file, joined by spaces.

    The files name 33 test and 29 validation videos in two ways, `X.mov` and `X.mp4`. That is one video with all its
    descriptions; the published lists (splits `-list`) have one of the names, and so only its descriptions.
    """
    part = split.removesuffix("-list")
    path = files.path(0)
    records = files.records(path, ["video", "description", "annotation_id"])
    files.distinct([str(record["annotation_id"]) for _, record in records], f"{path}, annotation_id")
    listed = set(files.ids(files.path(1))) if split != part else None
    captions: dict[str, list[str]] = {}
    names: dict[str, tuple[str, ...]] = {}
    for _, record in records:
        video = str(record["video"])
        if listed is None or video in listed:
            id = video.rpartition(".")[0] or video
            captions.setdefault(id, []).append(str(record["description"]).strip())
            names[id] = tuple(dict.fromkeys([*names.get(id, ()), video]))
    absent = (listed or set()) - {name for several in names.values() for name in several}
    if absent:
        raise HarvestError(
            f"didemo: {len(absent)} videos of {part}_list.txt are not in {path}: {min(absent)}, …"
        )
    found = _of_captions(
        [(id, (" ".join(texts),)) for id, texts in captions.items()],
        "a video's descriptions, joined in the order of the file, are one paragraph",
        names=names,
    )
    return _with(found, {"sentences": sum(map(len, captions.values())), "sentences_in_file": len(records)})


def activitynet(files: Files, split: str) -> SplitRows:
    path = files.path()
    rows = []
    num_sentences = 0
    for place, record in files.records(path, ["duration", "timestamps", "sentences"]):
        id = place.rpartition(", ")[2].strip("'")
        sentences = [str(sentence).strip() for sentence in record["sentences"]]
        num_sentences += len(sentences)
        rows.append((id, (" ".join(sentences),)))
    names = {id: (id, id.removeprefix("v_")) for id, _ in rows}
    found = _of_captions(
        rows, "a video's sentences are one paragraph, and the whole video is looked at", names=names
    )
    return _with(found, {"sentences": num_sentences})


def lsmdc(files: Files, split: str) -> SplitRows:
    """Tab-separated without a header; of the training clips some come with several sentences."""
    columns = ["clip", "start_aligned", "end_aligned", "start_extracted", "end_extracted", "sentence"]
    path = files.path()
    captions: dict[str, list[str]] = {}
    for place, line in files.lines(path):  # a sentence may begin with a quotation mark and not end with one
        cells = line.split("\t")
        if len(cells) != len(columns):
            if not captions:
                raise files.wrong(
                    path, f"{len(columns)} columns parted by tabs ({', '.join(columns)})", f"{line!r:.80}"
                )
            raise files.error(place, f"expected {len(columns)} columns parted by tabs, got {len(cells)}")
        captions.setdefault(cells[0], []).append(cells[-1])
    rows = [(id, tuple(texts)) for id, texts in captions.items()]
    names = {id: (f"{id.rpartition('_')[0]}/{id}.avi",) for id in captions}
    return _of_captions(rows, "each clip has one sentence, names replaced by SOMEONE", names=names)


def vatex(files: Files, split: str) -> SplitRows:
    """English captions. The retrieval split of HGR cuts the official validation set in two halves."""
    records = files.records(files.path(0), ["videoID", "enCap"])
    ids = files.distinct([str(record["videoID"]) for _, record in records], str(files.path(0)))
    captions = {
        str(record["videoID"]): [str(text).strip() for text in record["enCap"]] for _, record in records
    }
    if len(files.split.files) > 1:
        ids = files.ids(files.path(1))
    return _of_captions(
        _chosen(files, ids, captions), "each of a video's 10 English captions is a query of its own"
    )


def ssv2_retrieval(files: Files, split: str) -> SplitRows:
    """Label: a sentence of its own a video. Template: 174 sentences with "something", twelve videos each."""
    path = files.path()
    rows: list[BenchmarkRow] = []
    captions = set()
    for _, record in files.records(path, ["video", "caption"]):
        caption = str(record["caption"]).replace("[something]", "something").strip()
        captions.add(caption)
        several = record["video"] if isinstance(record["video"], list) else [record["video"]]
        rows += [
            BenchmarkRow(id=Path(str(video)).stem, names=(str(video),), texts=(caption,)) for video in several
        ]
    is_shared = len(captions) < len(rows)
    protocol = (
        "of a caption's videos the best ranked counts, and of a video its one caption"
        if is_shared
        else "each video has a caption of its own"
    )
    counts = {"captions": len(captions)}
    return SplitRows(rows=rows, protocol=protocol, counts=counts, shared_captions=is_shared)


# ---------------------------------------------------------------------------------------------------------------


def _captions(files: Files, path: Path) -> dict[str, tuple[str, ...]]:
    """Video to its captions, from any of the forms captions are passed round in.

    The official {"videos", "sentences"} of MSR-VTT, an object of lists, or entries with video and caption (one or
    a list) as Singularity, VindLU, UMT and LAVIS have them. Captions of one video are in the order of the file.
    """
    value = files.json(path)
    if isinstance(value, dict) and isinstance(value.get("sentences"), list):
        value = value["sentences"]
        if not value or not {"video_id", "caption"} <= value[0].keys():
            raise files.wrong(path, "sentences with video_id and caption", f"{value[:1]!r:.100}")
        pairs = [(str(said["video_id"]), said["caption"]) for said in value]
    elif isinstance(value, dict) and all(isinstance(texts, list) for texts in value.values()):
        pairs = [(str(video), texts) for video, texts in value.items()]
    else:
        records = files.records(path, ["video", "caption"])
        pairs = [(str(record["video"]), record["caption"]) for _, record in records]
        if isinstance(value, list):
            files.distinct([video for video, _ in pairs], str(path))
    captions: dict[str, list[str]] = {}
    for video, texts in pairs:
        several = texts if isinstance(texts, list) else [texts]
        captions.setdefault(_without_suffix(video), []).extend(str(text).strip() for text in several)
    return {video: tuple(texts) for video, texts in captions.items()}


def _sentences(files: Files, path: Path) -> dict[str, tuple[str, ...]]:
    """`vid1<tab>sentence` a line."""
    captions: dict[str, list[str]] = {}
    for place, line in files.lines(path):
        video, tab, sentence = line.partition("\t")
        if not tab:
            if not captions:
                raise files.wrong(path, "lines vidN<tab>sentence", f"{line!r:.80}")
            raise files.error(place, f"expected vidN<tab>sentence, got {line!r:.80}")
        captions.setdefault(video, []).append(sentence.strip())
    return {video: tuple(texts) for video, texts in captions.items()}


def _chosen(files: Files, ids: list[str], captions: Mapping[str, Any]) -> list[tuple[str, tuple[str, ...]]]:
    """The captions of the videos of a list; every one must have some."""
    absent = [id for id in ids if not captions.get(id)]
    if absent:
        raise HarvestError(
            f"{files.name}: {len(absent)} of the {len(ids)} videos of the list have no captions (first:"
            f" {absent[0]}): the captions are those of another split"
        )
    return [(id, tuple(captions[id])) for id in ids]


def _of_captions(
    captions: Sequence[tuple[str, tuple[str, ...]]],
    protocol: str,
    *,
    names: Mapping[str, tuple[str, ...]] | None = None,
) -> SplitRows:
    rows = [BenchmarkRow(id, (id,) if names is None else names[id], texts) for id, texts in captions]
    return SplitRows(rows=rows, protocol=protocol)


def _with(found: SplitRows, counts: Mapping[str, int]) -> SplitRows:
    return SplitRows(rows=found.rows, protocol=found.protocol, counts=counts)


def _without_suffix(video: str) -> str:
    stem, dot, suffix = video.rpartition(".")
    return stem if dot and suffix in ("mp4", "avi", "webm") else video


# ---------------------------------------------------------------------------------------------------------------

_FULL = "Xu et al. 2016"
_VATEX = "Wang et al. 2019; retrieval split: Chen et al. 2020 (HGR)"
_DIDEMO = "Hendricks et al. 2017, the released files"
_DIDEMO_LIST = "Liu et al. 2019 (Collaborative Experts), the released lists"
_ANET = "Krishna et al. 2017, the released files"


_MSRVTT_CAPTIONS = "MSRVTT_data.json | train_val_videodatainfo.json"

BENCHMARKS = [
    Benchmark(
        "msrvtt",
        "MSR-VTT",
        "retrieval",
        "https://github.com/ArrowLuo/CLIP4Clip (MSRVTT_data.json and the lists)",
        r"video\d+",
        {
            "1k-a": split(
                "MSRVTT_JSFUSION_test.csv | msrvtt_test1k.json | msrvtt_ret_test1k.json | msrvtt_test.json",
                "Yu et al. 2018 (JSFusion)",
                rows=1000,
                videos=1000,
                captions=1000,
            ),
            "train-9k": split(
                ("MSRVTT_train.9k.csv | train_list_jsfusion.txt", _MSRVTT_CAPTIONS),
                "Gabeur et al. 2020",
                rows=9000,
                videos=9000,
                captions=180_000,
            ),
            "train-7k": split(
                ("MSRVTT_train.7k.csv", _MSRVTT_CAPTIONS),
                "Miech et al. 2019: training and validation of the full split",
                rows=7010,
                videos=7010,
                captions=140_200,
            ),
            "test-full": split(
                (
                    "MSRVTT_test.full.csv | test_list_full.txt",
                    "MSRVTT_data.json | test_videodatainfo.json | msrvtt_caption_test.json",
                ),
                _FULL,
                rows=2990,
                videos=2990,
                captions=59_800,
            ),
            "val-full": split(
                ("MSRVTT_val.full.csv | val_list_full.txt", _MSRVTT_CAPTIONS + " | cap_val.json"),
                _FULL,
                rows=497,
                videos=497,
                captions=9_940,
            ),
            "train-full": split(
                ("MSRVTT_train.full.csv | train_list_full.txt", _MSRVTT_CAPTIONS),
                _FULL,
                rows=6513,
                videos=6513,
                captions=130_260,
            ),
        },
        msrvtt,
        (
            "1k-A has 1,000 captions but 995 different ones: captions of several videos count for their own only.",
            "Training with 9k or 7k videos changes fine-tuned numbers; 7k is the train and val of the full split.",
        ),
    ),
    Benchmark(
        "msvd",
        "MSVD",
        "retrieval",
        "https://github.com/layer6ai-labs/xpool (data/MSVD)",
        r"[\w-]{11}_\d+_\d+|vid\d+",
        {
            part: split(
                f"{part}_list.txt + captions_msvd.json | sents_{part}_lc_nopunc.txt | msvd_ret_{part}.json"
                f" | msvd_caption_{part}.json",
                "videos: Venugopalan et al. 2015; captions: the released files of sentences",
                rows=rows,
                videos=rows,
                captions=captions,
            )
            for part, rows, captions in (("test", 670, 27_763), ("val", 100, 4_290), ("train", 1200, 48_774))
        },
        msvd,
        (
            "Several captions a video: scoring the paragraph of them instead inflates R@1 from about 49 to 72.",
            "Of the 27,763 test captions 24,033 are different within their video; all are queries, as in the published numbers.",
        ),
    ),
    Benchmark(
        "didemo",
        "DiDeMo, paragraphs",
        "retrieval",
        "https://github.com/LisaAnne/LocalizingMoments; lists: https://github.com/albanie/collaborative-experts",
        r"\d+@N\d\d_\d+_\w+",
        {
            "test": split("test_data.json", _DIDEMO, rows=1004, videos=1004, sentences=4021),
            "val": split("val_data.json", _DIDEMO, rows=1065, videos=1065, sentences=4180),
            "train": split("train_data.json", _DIDEMO, rows=8395, videos=8395, sentences=33_005),
            "test-list": split(("test_data.json", "test_list.txt"), _DIDEMO_LIST, rows=1004, videos=1004),
            "val-list": split(("val_data.json", "val_list.txt"), _DIDEMO_LIST, rows=1065, videos=1065),
        },
        didemo,
        (
            "The test file has 1,037 names for 1,004 videos: 33 come with two suffixes. Read by the published list,"
            " which has one name of each, 89 of the 4,021 descriptions are lost (split test-list), and of the 4,180 of val 71 (val-list).",
            "Only the first 30 s of a video are annotated; some models look at no more, some at all of it.",
        ),
    ),
    Benchmark(
        "activitynet",
        "ActivityNet Captions, paragraphs",
        "retrieval",
        "https://cs.stanford.edu/people/ranjaykrishna/densevid",
        r"v_[\w-]{11}",
        {
            "val_1": split("val_1.json", _ANET, rows=4917, videos=4917, sentences=17_505),
            "val_2": split("val_2.json", _ANET, rows=4885, videos=4885, sentences=17_031),
            "train": split(
                "train.json | train_modified.json", _ANET, rows=10_009, videos=10_009, sentences=37_421
            ),
        },
        activitynet,
        ("Numbers are on val_1; val_2 has other annotators' sentences of nearly the same videos.",),
    ),
    Benchmark(
        "lsmdc",
        "LSMDC 2016",
        "retrieval",
        "https://sites.google.com/site/describingmovies (on request)",
        r"\d{4}_.+",
        {
            "test": split(
                "LSMDC16_challenge_1000_publictect.csv",
                "Rohrbach et al. 2016, the public 1,000",
                rows=1000,
                videos=1000,
                captions=1000,
            ),
            "val": split("LSMDC16_annos_val.csv", "Rohrbach et al. 2016", captions=7408),
            "train": split("LSMDC16_annos_training.csv", "Rohrbach et al. 2016"),
        },
        lsmdc,
        (
            "Published code leaves out the clip 1012_Unbreakable_00.05.16.065-00.05.21.941; here it is read, and named"
            " where its video is missing.",
        ),
        is_tested=False,
    ),
    Benchmark(
        "vatex",
        "VATEX, English",
        "retrieval",
        "https://eric-xw.github.io/vatex-website; lists: https://github.com/CryhanFang/CLIP2Video",
        r"[\w-]{11}_\d{6}_\d{6}",
        {
            "test": split(
                ("vatex_validation_v1.0.json", "test_list.txt"),
                _VATEX,
                rows=1500,
                videos=1500,
                captions=15_000,
            ),
            "val": split(
                ("vatex_validation_v1.0.json", "val_list.txt"),
                _VATEX,
                rows=1500,
                videos=1500,
                captions=15_000,
            ),
            "train": split("vatex_training_v1.0.json", _VATEX, rows=25_991, videos=25_991, captions=259_910),
            "validation": split(
                "vatex_validation_v1.0.json", _VATEX, rows=3000, videos=3000, captions=30_000
            ),
            "public-test": split(
                "vatex_public_test_english_v1.1.json", _VATEX, rows=6000, videos=6000, captions=60_000
            ),
        },
        vatex,
        (
            "Retrieval papers report on 1,500 videos of the official validation set, captioning papers on the"
            " public test set.",
            "Several lists of 1,500 go round (of `test1k5_sec_list.txt` 724 are in `test_list.txt`).",
        ),
        is_tested=False,
    ),
    *(
        Benchmark(
            f"ssv2-{kind}",
            f"Something-Something V2, {kind}s as captions",
            "retrieval",
            "https://github.com/jayleicn/singularity (annotations of the downstream tasks)",
            r"\d+",
            {
                "val": split(
                    f"ssv2_ret_{kind}_val_small.json",
                    "Lei et al. 2022 (Singularity)",
                    rows=2088,
                    videos=2088,
                    **more,
                ),
                "train": split(
                    f"ssv2_ret_{kind}_train.json",
                    "Lei et al. 2022 (Singularity)",
                    rows=168_913,
                    videos=168_913,
                ),
            },
            ssv2_retrieval,
            (
                "The template set asks 174 captions of 2,088 videos, twelve each: R@1 there is over 174 queries.",
            )
            if kind == "template"
            else (),
            is_tested=False,
        )
        for kind, more in (("label", {}), ("template", {"captions": 174}))
    ),
]
