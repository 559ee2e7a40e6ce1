"""Readers of annotation files: small files in every form and every bad input; every real file at hand, whole.

The real files are in ../shared/annotations of the project; those tests skip themselves where it is absent.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from harvest.data import benchmarks
from harvest.data.benchmarks import (
    BENCHMARKS,
    ActingBox,
    BenchmarkData,
    looks_like,
    missing,
    read,
)
from harvest.data.benchmarks.files import Files, check_class_order
from harvest.data.manifest import read_manifest, write_manifest
from harvest.data.video_folder import VideoFolder
from harvest.interfaces import HarvestError

ANNOTATIONS = Path(__file__).parents[3] / "shared/annotations"
real = pytest.mark.skipif(not ANNOTATIONS.exists(), reason="the real annotation files are not here")


def files_of(name: str, folder: Path, split: str) -> Files:
    benchmark = BENCHMARKS[name]
    return Files(folder, name, benchmark.origin, benchmark.splits[split])


def write(folder: Path, **files: Any) -> Path:
    """Files by name with `__` for a dot: text as it is, anything else as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return folder


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def refused(call: Callable[[], object], *says: str) -> str:
    with pytest.raises(HarvestError) as caught:
        call()
    for part in says:
        assert part in str(caught.value)
    return str(caught.value)


JSFUSION = (
    'key,vid_key,video_id,sentence\nret0,msr9770,video9770,a man\nret1,msr9771,video9771,"a girl, dancing"\n'
)


# ---- retrieval ---------------------------------------------------------------------------------------------------


def test_msrvtt_1k_a_in_both_forms(tmp_path: Path) -> None:
    table = read("msrvtt", write(tmp_path / "csv", MSRVTT_JSFUSION_test__csv=JSFUSION))
    rows = [
        {"video": "video9770.mp4", "caption": "a man"},
        {"video": "video9771.mp4", "caption": "a girl, dancing"},
    ]
    listed = read("msrvtt", write(tmp_path / "json", msrvtt_ret_test1k__json=rows), split="1k-a")
    assert [(e.id, e.video, e.texts) for e in table.examples] == [
        ("video9770", "video9770.mp4", ("a man",)),
        ("video9771", "video9771.mp4", ("a girl, dancing",)),
    ]
    assert table.examples == listed.examples and table.digest == listed.digest
    assert (
        table.split == "1k-a" and table.task == "retrieval" and table.protocol.startswith("MSR-VTT, 1k-a: ")
    )
    assert table.counts == {"rows": 2, "videos": 2, "captions": 2} and table.published.counts["rows"] == 1000


@pytest.mark.parametrize("form", ["official", "list", "lavis", "object"])
def test_captions_in_every_form_they_are_passed_round_in(tmp_path: Path, form: str) -> None:
    captions = {"video7": ["one", "two"], "video8": ["three", "two"], "video9": ["of another split"]}
    pairs = [(video, text) for video, texts in captions.items() for text in texts]
    content: Any = {
        "official": {
            "info": {},
            "videos": [{"video_id": "video7", "category": 1, "url": ""}],
            "sentences": [{"caption": text, "video_id": video, "sen_id": 0} for video, text in pairs],
        },
        "list": [{"video": f"{video}.mp4", "caption": texts} for video, texts in captions.items()],
        "lavis": {str(n): {"video": video, "caption": text} for n, (video, text) in enumerate(pairs)},
        "object": captions,
    }[form]
    folder = write(tmp_path, MSRVTT_train__9k__csv="video_id\nvideo8\nvideo7\n", MSRVTT_data__json=content)
    data = read("msrvtt", folder, split="train-9k")
    assert [(e.id, e.texts) for e in data.examples] == [
        ("video8", ("three", "two")),
        ("video7", ("one", "two")),
    ]
    assert data.counts["captions"] == 4


def test_msvd_in_both_names(tmp_path: Path) -> None:
    listed = write(
        tmp_path / "list",
        test_list__txt="abcdefghijk_1_5\n",
        captions_msvd__json={"abcdefghijk_1_5": ["a dog", "a dog"], "bbbbbbbbbbb_0_9": ["a cat"]},
        youtube_mapping__txt="abcdefghijk_1_5 vid1301\n",
    )
    sentences = write(
        tmp_path / "sentences",
        sents_test_lc_nopunc__txt="vid1301\ta dog\nvid1301\ta dog\n",
        youtube_mapping__txt="abcdefghijk_1_5 vid1301\n",
    )
    by_number, by_name = touch(tmp_path / "n", "vid1301.avi"), touch(tmp_path / "y", "abcdefghijk_1_5.avi")
    for folder in (listed, sentences):
        for videos in (by_number, by_name):
            data = read("msvd", folder, split="test", videos=videos)
            assert data.examples[0].texts == ("a dog", "a dog") and not missing(data).videos
    # repeated captions of a video stay, as the published count has them
    assert read("msvd", listed).counts["captions"] == 2


def test_didemo_one_video_under_two_suffixes(tmp_path: Path) -> None:
    def entry(number: int, video: str, text: str) -> dict[str, Any]:
        return {"annotation_id": number, "video": video, "description": text, "num_segments": 6, "times": []}

    folder = write(
        tmp_path,
        test_data__json=[
            entry(1, "12@N01_34_ab.mov", "first "),
            entry(2, "56@N02_78_cd.", "alone"),
            entry(3, "12@N01_34_ab.mp4", "second"),
        ],
        test_list__txt="12@N01_34_ab.mp4\n56@N02_78_cd.\n",
    )
    whole = read("didemo", folder, split="test")
    assert [e.texts for e in whole.examples] == [("first second",), ("alone",)]
    assert whole.counts["sentences"] == 3
    listed = read("didemo", folder, split="test-list")
    assert {e.id: e.texts for e in listed.examples} == {
        "12@N01_34_ab": ("second",),
        "56@N02_78_cd": ("alone",),
    }
    for names in (
        ("12@N01_34_ab.mp4", "56@N02_78_cd.mp4"),
        ("12@N01_34_ab.mov", "56@N02_78_cd."),
        ("12@N01_34_ab.avi", "56@N02_78_cd..mp4"),
    ):
        data = read("didemo", folder, split="test", videos=touch(tmp_path / names[0], *names))
        assert not missing(data).videos and [Path(e.video).name for e in data.examples] == list(names)


def test_activitynet_paragraphs(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "a",
        val_1__json={
            "v_aaaaaaaaaaa": {"duration": 9, "timestamps": [[0, 4], [4, 9]], "sentences": ["One.", " Two. "]}
        },
    )
    data = read("activitynet", folder, videos=touch(tmp_path / "v", "aaaaaaaaaaa.mkv"))
    assert data.examples[0].texts == ("One. Two.",) and data.counts["sentences"] == 2
    assert data.examples[0].video == str(tmp_path / "v/aaaaaaaaaaa.mkv")


def test_lsmdc(tmp_path: Path) -> None:
    clip = "0001_American_Beauty_00.00.51.926-00.00.54.129"
    line = f'{clip}\t00:00:51\t00:00:54\t00:00:51\t00:00:54\t"SOMEONE looks up.'
    folder = write(tmp_path / "a", LSMDC16_challenge_1000_publictect__csv=line + "\n")
    videos = touch(tmp_path / "v", f"0001_American_Beauty/{clip}.avi")
    data = read("lsmdc", folder, videos=videos)
    assert data.examples[0].texts == ('"SOMEONE looks up.',)
    assert data.examples[0].video == str(videos / f"0001_American_Beauty/{clip}.avi")
    assert read("lsmdc", folder).examples[0].video == f"0001_American_Beauty/{clip}.avi"


def test_vatex(tmp_path: Path) -> None:
    ids = [f"{letter * 11}_000001_000011" for letter in "abc"]
    rows = [{"videoID": id, "enCap": [f"{id} one", "two"], "chCap": ["一"]} for id in ids]
    folder = write(tmp_path, vatex_validation_v1__0__json=rows, test_list__txt="\n".join(ids[1:]))
    (folder / "vatex_validation_v1.0.json").write_text(json.dumps(rows))
    assert [e.id for e in read("vatex", folder, split="test").examples] == ids[1:]
    assert read("vatex", folder, split="validation").counts["captions"] == 6


def test_ssv2_templates_have_several_videos(tmp_path: Path) -> None:
    shared = [
        {"caption": "Holding [something]", "video": ["1.webm", "2.webm"]},
        {"caption": "Folding [something]", "video": ["3.webm"]},
    ]
    own = [{"caption": "holding a cup", "video": "1.webm"}, {"caption": "folding paper", "video": "2.webm"}]
    folder = write(tmp_path, ssv2_ret_template_val_small__json=shared, ssv2_ret_label_val_small__json=own)
    template, label = read("ssv2-template", folder), read("ssv2-label", folder)
    assert [(e.id, e.texts) for e in template.examples] == [
        ("1", ("Holding something",)),
        ("2", ("Holding something",)),
        ("3", ("Folding something",)),
    ]
    assert template.counts["captions"] == 2 and template.shared_captions and template.unscored is None
    assert not label.shared_captions and label.examples[0].video == "1.webm"


def test_youcook2_in_its_three_forms(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "csv",
        validation_youcook__csv="end,start,task,text,video_id\n60,47,226,pick,aaaaaaaaaaa\n60,47,226,cut,aaaaaaaaaaa\n",
    )
    data = read("youcook2", folder)
    assert [(e.id, e.texts, e.start_s, e.end_s) for e in data.examples] == [
        ("aaaaaaaaaaa_47_60", ("pick", "cut"), 47.0, 60.0)
    ]
    dense = {"v_aaaaaaaaaaa": {"duration": 99, "timestamps": [[47, 60]], "sentences": ["pick"]}}
    official = {
        "database": {
            "aaaaaaaaaaa": {
                "subset": "validation",
                "recipe_type": "1",
                "annotations": [{"id": 0, "segment": [47, 60], "sentence": "pick"}],
            },
            "bbbbbbbbbbb": {
                "subset": "training",
                "recipe_type": "1",
                "annotations": [{"id": 0, "segment": [1, 2], "sentence": "cut"}],
            },
        }
    }
    one = read("youcook2", write(tmp_path / "dense", yc2_val__json=dense), split="val-all")
    folder = write(tmp_path / "official", youcookii_annotations_trainval__json=official)
    assert one.examples == read("youcook2", folder, split="val-all").examples
    assert [e.id for e in read("youcook2", folder, split="train").examples] == ["bbbbbbbbbbb_1_2"]


def test_moments_of_charades_and_clips_of_epic(tmp_path: Path) -> None:
    folder = write(
        tmp_path, charades_sta_test__txt="AMT7R 4.3 12.5##a person is putting.\nAMT7R 4.3 12.5##again.\n"
    )
    data = read("charades-sta", folder)
    assert [(e.id, e.start_s, e.end_s) for e in data.examples] == [
        ("test-0", 4.3, 12.5),
        ("test-1", 4.3, 12.5),
    ]
    assert data.task == "moments" and data.unscored
    header = "narration_id,participant_id,video_id,start_timestamp,stop_timestamp,narration"
    folder = write(
        tmp_path / "e",
        EPIC_100_validation__csv=f"{header}\nP01_11_0,P01,P01_11,00:01:00.50,01:00:01.89,take plate\n",
        EPIC_100_retrieval_test_sentence__csv="narration_id,narration\nP01_11_0,take plate\n",
    )
    data = read("epic100-mir", folder, videos=touch(tmp_path / "v", "P01/videos/P01_11.MP4"))
    assert (data.examples[0].start_s, data.examples[0].end_s) == (60.5, 3601.89) and not missing(data).videos
    write(folder, EPIC_100_retrieval_test_sentence__csv="narration_id,narration\nP09_1_0,take plate\n")
    refused(lambda: read("epic100-mir", folder), "no clip P09_1_0")


# ---- questions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["official", "singularity", "lavis", "jsonl"])
def test_msrvtt_qa_in_every_form(tmp_path: Path, form: str) -> None:
    asked = [("what is it?", "Couch"), ("who sits?", "dinosaur")]
    vocabulary = {"train_ans2label__json": {"man": 1, "couch": 0}}
    if form == "official":
        rows: Any = [
            {"answer": a, "category_id": 1, "id": n, "question": q, "video_id": 7}
            for n, (q, a) in enumerate(asked)
        ]
        files = {"val_qa__json": rows}
    elif form == "singularity":
        rows = [
            {"question_id": n, "question": q, "answer": a, "video": "video7.mp4"}
            for n, (q, a) in enumerate(asked)
        ]
        files = {"msrvtt_qa_val__json": rows}
        vocabulary = {"msrvtt_qa_answer_list__json": ["couch", "man"]}
    elif form == "lavis":
        rows = {
            f"{n}": {"question_id": f"{n}", "question": q, "answer": a, "video": "video7"}
            for n, (q, a) in enumerate(asked)
        }
        files = {"qa_val__json": rows}
    else:
        lines = [json.dumps({"question": q, "answer": a, "video_id": "video7"}) for q, a in asked]
        files = {"val__jsonl": "\n".join(lines) + "\n"}
    data = read(
        "msrvtt-qa",
        write(tmp_path, **files, **vocabulary),
        split="val",
        videos=touch(tmp_path / "v", "video7.webm"),
    )
    assert [(e.id, e.question, e.answer) for e in data.examples] == [
        ("0", "what is it?", "couch"),
        ("1", "who sits?", "dinosaur"),
    ]
    assert data.answers == ("couch", "man")
    assert data.counts["unlisted_answers"] == 1 and data.counts["answers"] == 2
    assert not missing(data).videos


def test_msvd_qa_names_videos_by_number(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "a",
        test_qa__json=[{"answer": "man", "id": 4, "question": "who?", "video_id": 1301, "category_id": 0}],
        train_ans2label__json=["man"],
        youtube_mapping__txt="abcdefghijk_1_5 vid1301\n",
    )
    for name in ("vid1301.mp4", "abcdefghijk_1_5.avi"):
        assert not missing(read("msvd-qa", folder, videos=touch(tmp_path / name, name))).videos


def test_activitynet_qa_and_its_vocabulary(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        test_q__json=[{"video_name": "aaaaaaaaaaa", "question": "is it?", "question_id": "v_aaaaaaaaaaa_3"}],
        test_a__json=[{"answer": "no", "type": 3, "question_id": "v_aaaaaaaaaaa_3"}],
    )
    alone = read("activitynet-qa", folder)
    assert alone.answers is None and "easier" in alone.protocol
    assert (alone.examples[0].id, alone.examples[0].video) == ("v_aaaaaaaaaaa_3", "v_aaaaaaaaaaa.mp4")
    times = [("yes", 2), ("no", 3), ("red", 1)]
    write(
        folder,
        train_a__json=[{"answer": a, "question_id": f"{a}{n}"} for a, count in times for n in range(count)],
    )
    assert read("activitynet-qa", folder).answers == ("no", "yes")
    write(folder, test_a__json=[{"answer": "no", "type": 3, "question_id": "v_other"}])
    refused(lambda: read("activitynet-qa", folder), "1 questions", "no answer")


def test_tgif_four_tasks(tmp_path: Path) -> None:
    options = "\t".join(f"a{n}" for n in range(1, 6))
    folder = write(
        tmp_path / "a",
        Test_action_question__csv=f'gif_name\tquestion\t{options}\tanswer\tvid_id\tkey\ntumblr_a_250\tWhat 3 times ?\trun\t"say ""no"""\tsit\tgo\tup\t1\tACTION4\t2\n',
        Test_count_question__csv="gif_name\tquestion\tanswer\tvid_id\tkey\ntumblr_a_250\tHow many ?\t10\tCOUNT1\t2\n",
        Test_frameqa_question__csv="gif_name\tquestion\tanswer\ttype\tvid_id\tkey\tdescription\ntumblr_a_250\twhat ?\tcat\t0\tFRAMEQA1\t2\ta cat .\n",
    )
    videos = touch(tmp_path / "v", "tumblr_a_250.gif")
    action = read("tgif-action", folder, videos=videos)
    assert action.examples[0].texts[:2] == ("What 3 times ? run", 'What 3 times ? say "no"')
    assert action.examples[0].label == 1 and action.task == "choice" and not missing(action).videos
    assert read("tgif-count", folder).examples[0].label == 10
    assert read("tgif-frame", folder).answers is None
    write(
        folder,
        Train_frameqa_question__csv="gif_name\tquestion\tanswer\tvid_id\ntumblr_b_1\tq ?\tdog\tFRAMEQA9\n",
    )
    frame = read("tgif-frame", folder)
    assert frame.answers == ("dog",) and frame.counts["unlisted_answers"] == 1
    refused(lambda: read("tgif-transition", folder), "Test_transition_question.csv", "TGIF-QA")


def test_msrvtt_mc_in_both_forms(tmp_path: Path) -> None:
    options = ["a", "b", "c", "d", "e"]
    one = write(
        tmp_path / "1", msrvtt_mc_test__json=[{"video": "video7.mp4", "caption": options, "answer": 4}]
    )
    two = write(
        tmp_path / "2",
        msrvtt_mc_test__jsonl=json.dumps({"qid": 0, "clip_name": "video7", "options": options, "answer": 4}),
    )
    for folder in (one, two):
        example = read("msrvtt-mc", folder).examples[0]
        assert (example.id, example.video, example.texts, example.label) == (
            "0",
            "video7.mp4",
            tuple(options),
            4,
        )
    write(one, msrvtt_mc_test__json=[{"video": "video7.mp4", "caption": options[:4], "answer": 3}])
    refused(lambda: read("msrvtt-mc", one), "expected 5 options, got 4")


# ---- recognition -------------------------------------------------------------------------------------------------


def kinetics_table(classes: Iterable[str]) -> str:
    rows = [f"{name},{number:011d},4,14,val" for number, name in enumerate(classes)]
    return "label,youtube_id,time_start,time_end,split\n" + "\n".join(rows) + "\n"


def test_kinetics(tmp_path: Path) -> None:
    classes = [f"class {number:03d}" for number in range(400)]
    folder = write(tmp_path / "a", validate__csv=kinetics_table(reversed(classes)))
    videos = touch(tmp_path / "v", "class 399/00000000000_000004_000014.mp4", "00000000001.mkv")
    data = read("k400", folder, split="val", videos=videos)
    assert data.class_names == tuple(classes)
    assert [e.label for e in data.examples[:2]] == [399, 398]
    assert [os.path.relpath(e.video, videos) for e in data.examples[:3]] == [
        "class 399/00000000000_000004_000014.mp4",
        "00000000001.mkv",
        "00000000002_000004_000014.mp4",
    ]
    assert missing(data).rows == 398
    # names decide, so a list in another order gives other numbers and the same classes
    write(folder, label_map_k400__txt="\n".join(reversed(classes)))
    data = read("k400", folder, split="val")
    assert data.class_names is not None and data.class_names[data.examples[0].label or 0] == "class 399"
    write(folder, label_map_k400__txt="\n".join([*classes[:399], "another"]))
    refused(lambda: read("k400", folder, split="val"), "'class 399'")
    write(folder, label_map_k400__txt="\n".join(classes[:399]))
    refused(lambda: read("k400", folder, split="val"), "expected 400 classes, found 399")
    write(folder, label_map_k400__txt="\n".join([*classes[:399], classes[0]]))
    refused(lambda: read("k400", folder, split="val"), "'class 000' is there more than once")


def test_two_clips_of_one_kinetics_video_are_not_one_file(tmp_path: Path) -> None:
    table = kinetics_table(f"class {number:03d}" for number in range(400))
    folder = write(tmp_path / "a", val__csv=table + "class 001,00000000000,30,40,val\n")
    data = read(
        "k400", folder, split="val", videos=touch(tmp_path / "v", "00000000000.mp4", "00000000001.mp4")
    )
    assert missing(data).rows == 400 and not Path(data.examples[0].video).exists()


def test_kinetics_test_has_no_labels(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        **{"kinetics-400_test__csv": "youtube_id,time_start,time_end,split\naaaaaaaaaaa,1,11,test\n"},
    )
    refused(lambda: read("k400", folder, split="test"), "label_map_k400.txt")
    write(folder, label_map_k400__txt="\n".join(f"c{number}" for number in range(400)))
    data = read("k400", folder, split="test")
    assert data.examples[0].label is None and data.unscored == "the official test file has no labels"


def test_zero_shot_classes_are_held_against_the_official_labels(tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(160)]
    folder = write(
        tmp_path,
        ZS_split1_K600__csv="id,name\n" + "".join(f"{n},{name}\n" for n, name in enumerate(names)),
        ZS_split1_K600_eval__txt="val/aaaaaaaaaaa_000004_000014.mp4 0\ntrain/bbbbbbbbbbb_000000_000010.mp4 159\n",
        **{
            "kinetics-600_val__csv": "label,youtube_id,time_start,time_end,split\nclass 0,aaaaaaaaaaa,4,14,val\n"
        },
    )
    data = read("k600-zero-shot", folder, split="1")
    assert [(e.id, e.label) for e in data.examples] == [
        ("aaaaaaaaaaa_000004_000014", 0),
        ("bbbbbbbbbbb_000000_000010", 159),
    ]
    names[0], names[1] = names[1], names[0]
    write(folder, ZS_split1_K600__csv="id,name\n" + "".join(f"{n},{name}\n" for n, name in enumerate(names)))
    refused(
        lambda: read("k600-zero-shot", folder, split="1"),
        "another order",
        "'class 1' in the list",
        "number 1 in",
    )
    write(
        folder, ZS_split1_K600__csv="id,name\n" + "".join(f"{n},{names[n]}\n" for n in reversed(range(160)))
    )
    refused(lambda: read("k600-zero-shot", folder, split="1"), "has id 159, expected 0", "another order")


def test_ssv2_official_and_lists(tmp_path: Path) -> None:
    classes = [f"Doing {number} with something" for number in range(174)]
    labels = {name: str(number) for number, name in enumerate(classes)}
    folder = write(tmp_path / "a", **{"something-something-v2-labels__json": labels})
    for line in ("5.webm 3", "5 0 57 3", "5 3"):
        write(folder, validation__txt=line + "\n")
        example = read("ssv2", folder).examples[0]
        assert (example.id, example.video, example.label) == ("5", "5.webm", 3)
    entry = {
        "id": "5",
        "template": "Doing 3 with [something]",
        "label": "doing 3 with a cup",
        "placeholders": ["a cup"],
    }
    write(folder, validation__json=[entry])
    data = read("ssv2", folder, videos=touch(tmp_path / "v/5", "img_00001.jpg").parent)
    assert data.examples[0].label == 3 and data.examples[0].video == str(tmp_path / "v/5")
    write(folder, validation__txt="5.webm 4\n")
    refused(lambda: read("ssv2", folder), "another order", "5 has label 4", "(1 of 1 rows disagree)")
    write(folder, validation__txt="5.webm 174\n")
    refused(lambda: read("ssv2", folder), "'174' is none of the 174 classes, which go from 0 to 173")


def test_moments_in_time(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "a",
        moments_categories__txt="clapping,1\nadult+female+singing,0\n",
        validationSet__csv="clapping/yt-a_1.mp4,clapping,3,0\nadult+female+singing/b.mp4,adult+female+singing,3,1\n",
    )
    data = read(
        "mit",
        folder,
        split="val",
        videos=touch(tmp_path / "v", "validation/clapping/yt-a_1.mp4", "training/clapping/yt-a_1.mp4"),
    )
    assert data.class_names == ("adult female singing", "clapping") and [e.label for e in data.examples] == [
        1,
        0,
    ]
    assert data.examples[0].video == str(tmp_path / "v/validation/clapping/yt-a_1.mp4")
    write(folder, validationSet__csv="jumping/a.mp4,jumping,3,0\n")
    refused(lambda: read("mit", folder), "'jumping'")


UCF = [f"Class{chr(65 + number // 26)}{chr(97 + number % 26)}Do" for number in range(101)]


def ucf_folder(folder: Path, classes: list[str], **more: str) -> Path:
    listed = "".join(f"{number} {name}\n" for number, name in enumerate(classes, 1))
    return write(folder, classInd__txt=listed, **more)


def test_ucf101(tmp_path: Path) -> None:
    clip = f"{UCF[1]}/v_{UCF[1]}_g01_c01.avi"
    folder = ucf_folder(tmp_path / "a", UCF, testlist01__txt=clip + "\n", trainlist01__txt=clip + " 2\n")
    for split in ("test1", "train1"):
        data = read("ucf101", folder, split=split, videos=touch(tmp_path / "v", clip))
        assert data.examples[0].label == 1 and data.examples[0].video == str(tmp_path / "v" / clip)
        assert data.class_names is not None and data.class_names[1] == "Class Ab Do"
    ucf_folder(folder, [UCF[1], UCF[0], *UCF[2:]])
    message = refused(
        lambda: read("ucf101", folder, split="train1"), "classInd.txt is in another order than the labels"
    )
    assert f"is {UCF[0]!r} in the list, but its class is {UCF[1]!r}, number 0 in the list" in message
    write(folder, trainlist01__txt=clip + " 102\n")
    refused(lambda: read("ucf101", folder, split="train1"), "line 1: label '102' is none", "from 1 to 101")
    refused(lambda: read("ucf101", ucf_folder(folder, UCF[:100])), "expected 101 classes, found 100")
    ucf_folder(folder, UCF, testlist01__txt=clip + "\nBowling/v_Bowling_g01_c01.avi\n")
    refused(lambda: read("ucf101", folder), "line 2", "'Bowling' is no class")


def test_hmdb51(tmp_path: Path) -> None:
    names = [f"do_{chr(97 + number // 26)}{chr(97 + number % 26)}" for number in range(51)]
    folder = tmp_path / "a"
    for name in names:
        write(
            folder,
            **{f"{name}_test_split1__txt": f"Odd name!_{name}_#1.avi 2 \n{name}_2.avi 1\n{name}_3.avi 0\n"},
        )
    data = read("hmdb51", folder, videos=touch(tmp_path / "v", f"{names[3]}/Odd name!_{names[3]}_#1.avi"))
    assert len(data.examples) == 51 and data.class_names is not None and data.class_names[0] == "do aa"
    assert data.examples[3].id == f"Odd name!_{names[3]}_#1" and missing(data).rows == 50
    assert read("hmdb51", folder, split="train1").examples[3].label == 3
    write(folder, do_aa_test_split1__txt="x.avi 3\n")
    refused(lambda: read("hmdb51", folder), "lines FILE.avi 0, 1 or 2")
    (folder / "do_aa_test_split1.txt").unlink()
    refused(lambda: read("hmdb51", folder), "it has 50")
    refused(lambda: read("hmdb51", folder, split="test2"), "51 files CLASS_test_split2.txt")


# ---- detection ---------------------------------------------------------------------------------------------------

PBTXT = 'item {\n  name: "stand"\n  id: 12\n}\nitem {\n  name: "carry/hold (an object)"\n  id: 17\n}\n'
BOX = "0.031,0.162,0.670,0.995"


def ava_folder(folder: Path, boxes: str, excluded: str = "bbbbbbbbbbb,0903\n", actions: str = PBTXT) -> Path:
    return write(
        folder,
        ava_val_v2__2__csv=boxes,
        ava_val_excluded_timestamps_v2__2__csv=excluded,
        ava_action_list_v2__2_for_activitynet_2019__pbtxt=actions,
    )


def test_ava(tmp_path: Path) -> None:
    rows = [
        f"aaaaaaaaaaa,0902,{BOX},12,0",
        f"aaaaaaaaaaa,0902,{BOX},17,0",
        "aaaaaaaaaaa,0902,0.5,0.5,1,1,79,1",  # an action that is not scored: the person is there without one
        f"aaaaaaaaaaa,0903,{BOX},12,0",
        f"bbbbbbbbbbb,0903,{BOX},12,4",  # excluded
    ]
    data = read("ava", ava_folder(tmp_path, "\n".join(rows) + "\n"))
    assert data.actions == {12: "stand", 17: "carry/hold (an object)"}
    first, second = data.key_frames
    assert (first.id, first.video, first.time_s) == ("aaaaaaaaaaa,0902", "aaaaaaaaaaa.mp4", 902.0)
    assert first.boxes == (
        ActingBox((0.031, 0.162, 0.670, 0.995), (12, 17), 0),
        ActingBox((0.5, 0.5, 1.0, 1.0), (), 1),
    )
    assert len(second.boxes) == 1 and [e.id for e in data.examples] == [first.id, second.id]
    assert data.counts == {
        "rows": 2,
        "videos": 1,
        "boxes": 3,
        "labels": 3,
        "labels_excluded": 1,
        "excluded": 1,
        "actions": 2,
    }


@pytest.mark.parametrize(
    "box", ["-0.1,0,0.5,0.5", "0,0,1.2,0.5", "0.5,0,0.5,0.5", "0.6,0,0.5,0.5", "nan,0,1,1"]
)
def test_boxes_outside_the_picture(tmp_path: Path, box: str) -> None:
    folder = ava_folder(tmp_path, f"aaaaaaaaaaa,0902,{BOX},12,0\naaaaaaaaaaa,0903,{box},12,0\n")
    refused(lambda: read("ava", folder), "line 2", "not inside the picture")


def test_ava_label_map_with_label_ids_and_repeated_actions(tmp_path: Path) -> None:
    other = 'label {\n  name: "stand"\n  label_id: 12\n  label_type: PERSON_MOVEMENT\n}\n'
    assert read("ava", ava_folder(tmp_path, f"aaaaaaaaaaa,0902,{BOX},12,0\n", actions=other)).actions == {
        12: "stand"
    }
    refused(
        lambda: read("ava", ava_folder(tmp_path, f"aaaaaaaaaaa,0902,{BOX},12,0\n" * 2)),
        "action 12",
        "more than once",
    )
    refused(
        lambda: read("ava", ava_folder(tmp_path, f"aaaaaaaaaaa,0902,{BOX},12,0\n", actions="stand 12\n")),
        "name:",
    )


# ---- what is wrong with files ------------------------------------------------------------------------------------


def test_missing_files_say_what_was_expected_and_where_it_comes_from(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        test_data__json=[
            {"num_segments": 6, "description": "x", "times": [], "video": "a", "annotation_id": 1}
        ],
    )
    refused(
        lambda: read("msrvtt", folder),
        "msrvtt needs MSRVTT_JSFUSION_test.csv or",
        "https://github.com/ArrowLuo/CLIP4Clip",
        "The folder holds test_data.json (DiDeMo).",
    )
    refused(lambda: read("ava", tmp_path / "nowhere"), "does not exist", "research.google.com/ava")
    refused(lambda: read("ava", folder / "test_data.json"), "should be a folder and is a file")
    refused(lambda: read("msr-vtt", folder), "no benchmark 'msr-vtt': did you mean 'msrvtt'?", "lsmdc")
    refused(lambda: read("msrvtt", folder, split="9k"), "no split '9k'", "train-9k")


def test_every_benchmark_names_the_files_it_misses(tmp_path: Path) -> None:
    for name, benchmark in BENCHMARKS.items():
        for split in benchmark.splits:
            message = refused(lambda n=name, s=split: read(n, tmp_path, split=s), benchmark.origin)
            assert "The folder holds no files." in message
            assert benchmark.splits[split].files[0].split(" | ")[0].replace(" + ", " and ") in message


@pytest.mark.parametrize(
    "name, files, likely",
    [
        ("msrvtt-qa", {"qa_test__json": {"0": {"question": "who?", "answer": "man", "video": "abcdefghijk_1_5"}}, "qa_ans2label__json": {"man": 0}}, "MSVD-QA"),
        ("msvd-qa", {"qa_test__json": {"0": {"question": "who?", "answer": "man", "video": "video7"}}, "qa_ans2label__json": {"man": 0}}, "MSRVTT-QA"),
        ("didemo", {"test_data__json": [{"videoID": "aaaaaaaaaaa_000001_000011", "enCap": ["a"]}]}, "VATEX"),
        ("activitynet", {"val_1__json": [{"id": "1", "template": "x", "label": "x", "placeholders": []}]}, "Something-Something V2"),
        ("msrvtt", {"MSRVTT_JSFUSION_test__csv": "label,youtube_id,time_start,time_end,split\na,b,1,2,val\n"}, "Kinetics"),
        ("tgif-action", {"Test_action_question__csv": "gif_name\tquestion\tanswer\tvid_id\tkey\na\tb\t1\tc\t2\n"}, "TGIF-QA Count"),
        ("tgif-count", {"Test_count_question__csv": JSFUSION}, "MSR-VTT 1k-A"),
        ("youcook2", {"validation_youcook__csv": "narration_id,narration\na,b\n"}, "EPIC-KITCHENS-100"),
        ("charades-sta", {"charades_sta_test__txt": "video7010\nvideo7011\n"}, "ids of MSR-VTT"),
        ("lsmdc", {"LSMDC16_challenge_1000_publictect__csv": "3MSZA 24.3 30.4##person turn a light on.\n"}, "Charades-STA"),
        ("msvd", {"test_list__txt": "video7010\n", "captions_msvd__json": {"video7010": ["a"]}}, "ids of MSR-VTT"),
        ("msvd", {"test_list__txt": JSFUSION, "captions_msvd__json": {"x": ["a"]}}, "MSR-VTT 1k-A"),
        ("ava", {"ava_val_v2__2__csv": "aaaaaaaaaaa,0902\n", "ava_val_excluded_timestamps_v2__2__csv": "aaaaaaaaaaa,0902\n", "ava_action_list_v2__2__pbtxt": PBTXT}, "AVA (excluded timestamps)"),
        ("mit", {"moments_categories__txt": "clapping,0\n", "validationSet__csv": f"aaaaaaaaaaa,0902,{BOX},12,0\n"}, "AVA (boxes)"),
        ("ucf101", {"classInd__txt": "".join(f"{n} {c}\n" for n, c in enumerate(UCF, 1)), "testlist01__txt": "Ab_brush_hair_u_nm_np1_ba_goo_0.avi 1\n"}, "HMDB51"),
        ("ssv2", {"labels__json": [{"video_name": "a", "question": "b", "question_id": "c"}]}, "ActivityNet-QA"),
        ("ssv2-label", {"ssv2_ret_label_val_small__json": [{"video": "12@N01_34_ab.mov", "caption": "a"}]}, "DiDeMo"),
    ],
)  # fmt: skip
def test_a_file_of_another_benchmark_is_recognised(
    tmp_path: Path, name: str, files: dict, likely: str
) -> None:
    refused(lambda: read(name, write(tmp_path, **files)), f"{name}:", likely)


def test_ids_that_come_twice(tmp_path: Path) -> None:
    folder = write(tmp_path / "csv", MSRVTT_JSFUSION_test__csv=JSFUSION + "ret2,msr9770,video9770,again\n")
    refused(lambda: read("msrvtt", folder), "'video9770' is there more than once (3 rows, 2 distinct)")
    folder = write(
        tmp_path / "list", test_list__txt="video1\nvideo1\n", captions_msvd__json={"video1": ["a"]}
    )
    refused(lambda: read("msvd", folder), "test_list.txt: 'video1' is there more than once")
    rows = [{"videoID": "a", "enCap": ["b"]}] * 2
    folder = write(tmp_path / "v")
    (folder / "vatex_validation_v1.0.json").write_text(json.dumps(rows))
    refused(lambda: read("vatex", folder, split="validation"), "'a' is there more than once")
    record = {"question_id": "7", "question": "who?", "answer": "man", "video": "video7.mp4"}
    folder = write(
        tmp_path / "qa", msrvtt_qa_test__json=[record, record], msrvtt_qa_answer_list__json=["man"]
    )
    refused(lambda: read("msrvtt-qa", folder), "'7' is there more than once")


def test_text_that_is_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / "MSRVTT_JSFUSION_test.csv").write_bytes(
        JSFUSION.encode() + "r,m,video1,café\n".encode("latin-1")
    )
    refused(lambda: read("msrvtt", tmp_path), "line 4: not UTF-8 text (byte 0xe9)", "save it as UTF-8")
    (tmp_path / "MSRVTT_JSFUSION_test.csv").write_bytes(
        b"\xef\xbb\xbf" + JSFUSION.encode()
    )  # a byte order mark is fine
    assert len(read("msrvtt", tmp_path).examples) == 2


@pytest.mark.parametrize(
    "files, says",
    [
        ({"MSRVTT_JSFUSION_test__csv": JSFUSION + "ret3,msr1\n"}, "line 4: expected 4 columns, got 2"),
        ({"MSRVTT_JSFUSION_test__csv": JSFUSION + "r,m,video3, \n"}, "a text of 'video3' is blank"),
        ({"MSRVTT_JSFUSION_test__csv": "key,vid_key,video_id,sentence\n"}, "holds no rows"),
        ({"MSRVTT_JSFUSION_test__csv": ""}, "holds no rows"),
        ({"msrvtt_test1k__json": "[{"}, "is not JSON"),
        ({"msrvtt_test1k__json": []}, "holds no rows"),
        ({"msrvtt_test1k__json": ["video1"]}, "expected entries with video, caption, found 'video1'"),
        ({"msrvtt_test1k__json": [{"video": "video1", "caption": "a"}, {"video": "video2"}]}, "entry 1: expected entries with video, caption"),
        ({"msrvtt_test1k__json": [{"video": "video1", "caption": "a"}] * 2}, "'video1' is there more than once"),
    ],
)  # fmt: skip
def test_broken_files(tmp_path: Path, files: dict, says: str) -> None:
    refused(lambda: read("msrvtt", write(tmp_path, **files)), says)


def test_captions_of_another_split(tmp_path: Path) -> None:
    folder = write(
        tmp_path, test_list__txt="abcdefghijk_1_5\n", captions_msvd__json={"bbbbbbbbbbb_1_5": ["a"]}
    )
    refused(lambda: read("msvd", folder), "1 of the 1 videos of the list have no captions", "abcdefghijk_1_5")


def test_a_vocabulary_that_is_none(tmp_path: Path) -> None:
    question = {"qa_test__json": [{"question": "who?", "answer": "man", "video": "video7"}]}
    for vocabulary, says in (
        ({"man": 0, "dog": 2}, "numbers are not 0 to 1"),
        ({"man": "person"}, "from answers to numbers"),
        (["man", " Man"], "'man' is there more than once"),
        ([1, 2], "a list of answers"),
    ):
        folder = write(tmp_path, **question, qa_ans2label__json=vocabulary)
        refused(lambda f=folder: read("msrvtt-qa", f), says)


def test_pickles_are_not_read(tmp_path: Path) -> None:
    """A pickle under an annotation's name is text that is none; nothing of it runs."""
    (tmp_path / "captions_msvd.json").write_bytes(b"\x80\x04c__builtin__\nprint\n.")
    (tmp_path / "test_list.txt").write_text("abcdefghijk_1_5\n")
    refused(lambda: read("msvd", tmp_path), "not UTF-8")
    for path in Path(benchmarks.__file__).parent.glob("*.py"):
        assert "pickle" not in path.read_text(encoding="utf-8").replace("nothing is unpickled", "")


# ---- videos ------------------------------------------------------------------------------------------------------


def msrvtt_of(folder: Path, count: int) -> Path:
    lines = "".join(f"r{n},m{n},video{n},caption {n}\n" for n in range(count))
    return write(folder, MSRVTT_JSFUSION_test__csv="key,vid_key,video_id,sentence\n" + lines)


def test_where_videos_may_lie(tmp_path: Path) -> None:
    videos = touch(
        tmp_path / "v",
        *("video0.mp4", "TestVideo/video1.avi", "video2.webm", "a/b/c/video3.MKV", "a/b/c/d/video4.mp4"),
        *("video5/0001.jpg", "video6", "video7.txt", "video8.json"),
    )
    data = read("msrvtt", msrvtt_of(tmp_path / "a", 9), videos=videos)
    assert [os.path.relpath(e.video, videos) for e in data.examples] == [
        *("video0.mp4", "TestVideo/video1.avi", "video2.webm", "a/b/c/video3.MKV", "video4.mp4"),
        *("video5", "video6", "video7.mp4", "video8.mp4"),
    ]
    absent = missing(data)
    assert [Path(path).name for path in absent.videos] == ["video4.mp4", "video7.mp4", "video8.mp4"]
    assert (absent.rows, absent.num_rows, absent.num_videos) == (3, 9, 9)
    assert data.unresolved is not None and data.unresolved == set(absent.videos)


def test_of_several_files_of_one_name_the_choice_is_the_same_everywhere(tmp_path: Path) -> None:
    videos = touch(
        tmp_path / "v",
        "sub/video0.mp4",
        "video0.webm",
        "video1.mkv",
        "video1.avi",
        "b/video2.mp4",
        "a/video2.mp4",
    )
    data = read("msrvtt", msrvtt_of(tmp_path / "a", 3), videos=videos)
    assert [os.path.relpath(e.video, videos) for e in data.examples] == [
        "video0.webm",
        "video1.avi",
        "a/video2.mp4",
    ]


def test_a_folder_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    videos = touch(tmp_path / "v", *(f"video{n}.mp4" for n in range(50)), "sub/x.mp4", "video60/1.jpg")
    (videos / "sub/loop").symlink_to(videos, target_is_directory=True)
    calls: list[str] = []
    listed, looked = os.scandir, os.stat

    def scandir(path: Any) -> Any:
        calls.append(f"list {path}")
        return listed(path)

    def stat(path: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(f"stat {path}")
        return looked(path, *args, **kwargs)

    folder = msrvtt_of(tmp_path / "a", 61)
    rows = BENCHMARKS["msrvtt"].reader(files_of("msrvtt", folder, "1k-a"), "1k-a").rows
    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(os, "stat", stat)
    found = VideoFolder(videos, [name for row in rows for name in row.names])
    paths = [found.find(row.names) for row in rows]
    monkeypatch.undo()
    assert sum(path is not None for path in paths) == 51
    assert [call for call in calls if call.startswith("list")] == [
        f"list {videos}",
        f"list {videos / 'sub'}",
    ]
    assert len(calls) <= 6  # and a look at each folder, not at each video


def test_what_is_missing_is_said_and_listed(tmp_path: Path) -> None:
    videos = touch(tmp_path / "v", "video0.mp4")
    data = read("msrvtt", msrvtt_of(tmp_path / "a", 2), videos=videos)
    absent = missing(data)
    assert absent and absent.share == 0.001 and absent.rows_not_annotated == 998
    assert str(absent) == (
        "msrvtt 1k-a: 1 of 2 videos are missing, with them 1 of 2 rows; the annotation files hold 2 rows, published are"
        " 1,000 (Yu et al. 2018 (JSFusion))"
    )
    absent.write(tmp_path / "lists/missing.txt")
    assert (tmp_path / "lists/missing.txt").read_text() == f"{videos}/video1.mp4\n"
    refused(lambda: absent.write(videos), "cannot be written")
    whole = read(
        "msrvtt",
        msrvtt_of(tmp_path / "b", 1000),
        videos=touch(tmp_path / "w", *(f"video{n}.mp4" for n in range(1000))),
    )
    assert not missing(whole) and missing(whole).share == 1.0
    refused(lambda: missing(read("msrvtt", tmp_path / "a")), "without a folder of videos")
    refused(
        lambda: read("msrvtt", tmp_path / "a", videos=tmp_path / "nowhere"),
        "folder of videos",
        "does not exist",
    )


def test_a_benchmark_becomes_a_manifest(tmp_path: Path) -> None:
    data = read("msrvtt", msrvtt_of(tmp_path / "a", 3), videos=touch(tmp_path / "v", "video0.mp4"))
    write_manifest(tmp_path / "m.jsonl", data.examples)
    assert tuple(read_manifest(tmp_path / "m.jsonl")) == data.examples


def test_the_digest_is_of_the_rows_and_not_of_the_place(tmp_path: Path) -> None:
    folder = msrvtt_of(tmp_path / "a", 3)
    digest = read("msrvtt", folder).digest
    assert digest == read("msrvtt", folder, videos=touch(tmp_path / "v", "video0.avi")).digest
    assert digest != read("msrvtt", msrvtt_of(tmp_path / "b", 2)).digest


# ---- the real files ----------------------------------------------------------------------------------------------

# Benchmark, split, folder of ../shared/annotations, files there that go by another name here, and what its counts
# are where the published ones do not say.
REAL: list[tuple[str, str, str, dict[str, str], dict[str, int]]] = [
    ("msrvtt", "1k-a", "msrvtt", {}, {}),
    ("msrvtt", "test-full", "msrvtt", {}, {}),
    ("msrvtt", "val-full", "msrvtt", {"cap_val.json": "mallm_cap_val.json"}, {}),
    *[("msvd", split, "msvd", {}, {}) for split in ("test", "val", "train")],
    *[("didemo", split, "didemo", {}, {}) for split in ("test", "val")],
    ("didemo", "test-list", "didemo", {}, {"sentences": 4021 - 89, "sentences_in_file": 4021}),
    ("didemo", "val-list", "didemo", {}, {"sentences": 4180 - 71}),
    *[("activitynet", split, "activitynet", {}, {}) for split in ("val_1", "val_2", "train")],
    ("youcook2", "val", "youcook2", {}, {"rows": 3349, "videos": 436}),
    ("youcook2", "val-all", "youcook2", {}, {"rows": 3491}),
    ("charades-sta", "test", "charades", {}, {}),
    ("epic100-mir", "test", "epic100", {}, {"videos": 138}),
    ("msrvtt-qa", "val", "msrvtt_qa", {}, {"videos": 497, "unlisted_answers": 859}),
    ("msvd-qa", "test", "msvd_qa", {}, {"videos": 504, "unlisted_answers": 0}),
    ("msvd-qa", "val", "msvd_qa", {}, {"videos": 245, "unlisted_answers": 0}),
    ("activitynet-qa", "test", "activitynet", {}, {}),
    ("tgif-action", "test", "tgif_qa", {}, {}),
    ("tgif-transition", "test", "tgif_qa", {}, {"videos": 3116}),
    ("tgif-frame", "test", "tgif_qa", {}, {"videos": 7132}),
    ("tgif-count", "test", "tgif_qa", {}, {}),
    *[(name, split, "kinetics", {}, {}) for name in ("k400", "k600") for split in ("val", "test")],
    *[("k600-zero-shot", fold, "kinetics", {}, {}) for fold in "123"],
    ("ssv2", "validation", "ssv2", {}, {}),
    *[("ucf101", f"{part}{fold}", "ucf101/official_splits", {}, {}) for part in ("test", "train") for fold in "123"],
    *[("hmdb51", f"{part}{fold}", "hmdb51/official_splits", {}, {}) for part in ("test", "train") for fold in "123"],
]  # fmt: skip


def linked(folder: Path, source: str, names: dict[str, str], only: bool = False) -> Path:
    """A folder of links to the real files, some under the names their sources give them."""
    folder.mkdir(exist_ok=True)
    for path in () if only else (ANNOTATIONS / source).iterdir():
        if path.is_file():
            (folder / path.name).symlink_to(path)
    for name, path in names.items():
        (folder / name).symlink_to(ANNOTATIONS / source / path)
    return folder


def real_data(tmp_path: Path, name: str, split: str, source: str, names: dict[str, str]) -> BenchmarkData:
    return read(name, linked(tmp_path / "links", source, names), split=split)


@real
@pytest.mark.parametrize(
    "name, split, source, names, more", REAL, ids=[f"{case[0]}-{case[1]}" for case in REAL]
)
def test_real_files_hold_what_is_published(
    tmp_path: Path, name: str, split: str, source: str, names: dict[str, str], more: dict[str, int]
) -> None:
    data = real_data(tmp_path, name, split, source, names)
    expected = {**data.published.counts, **more}
    assert expected and {key: data.counts.get(key) for key in expected} == expected
    assert len(data.examples) == data.counts["rows"] == len({example.id for example in data.examples})
    assert len({example.video for example in data.examples}) == data.counts["videos"]
    if data.class_names is not None and data.unscored is None:
        assert {example.label for example in data.examples} == set(range(len(data.class_names)))


@real
def test_real_forms_of_one_set_say_the_same(tmp_path: Path) -> None:
    def texts(folder: str, name: str, split: str, source: str, names: dict[str, str]) -> dict[str, Any]:
        data = read(name, linked(tmp_path / folder, source, names, only=True), split=split)
        return {example.id: (example.texts, example.question, example.answer) for example in data.examples}

    table = texts("1", "msrvtt", "1k-a", "msrvtt", {"MSRVTT_JSFUSION_test.csv": "MSRVTT_JSFUSION_test.csv"})
    assert table == texts("2", "msrvtt", "1k-a", "msrvtt", {"msrvtt_test.json": "msrvtt_test.json"})

    listed = texts(
        "3",
        "msvd",
        "test",
        "msvd",
        {"test_list.txt": "test_list.txt", "captions_msvd.json": "captions_msvd.json"},
    )
    sentences = texts("4", "msvd", "test", "msvd", {"sents_test_lc_nopunc.txt": "sents_test_lc_nopunc.txt"})
    mapping = dict(
        line.split() for line in (ANNOTATIONS / "msvd/youtube_mapping.txt").read_text().splitlines()
    )
    plain = {mapping[id]: sorted(text.strip(" .") for text in row[0]) for id, row in listed.items()}
    assert plain.keys() == sentences.keys()
    assert sum(plain[id] == sorted(row[0]) for id, row in sentences.items()) == 670

    lavis = texts(
        "5",
        "msrvtt-qa",
        "val",
        "msrvtt_qa",
        {"qa_val.json": "qa_val.json", "qa_ans2label.json": "qa_ans2label.json"},
    )
    lines = texts(
        "6",
        "msrvtt-qa",
        "val",
        "msrvtt_qa",
        {"val.jsonl": "val.jsonl", "train_ans2label.json": "train_ans2label.json"},
    )
    assert list(lavis.values()) == list(lines.values())

    vocabulary = {"qa_ans2label.json": "qa_ans2label.json"}
    lavis = texts("7", "msvd-qa", "test", "msvd_qa", {"qa_test.json": "qa_test.json", **vocabulary})
    plain_form = texts(
        "8", "msvd-qa", "test", "msvd_qa", {"chatunivi_msvd_qa.json": "chatunivi_msvd_qa.json", **vocabulary}
    )
    assert list(lavis.values()) == list(plain_form.values())


@real
def test_a_form_that_lacks_rows_is_noticed(tmp_path: Path) -> None:
    """LAVIS's test set of ActivityNet-QA lacks 40 questions of four videos."""
    folder = linked(tmp_path / "links", "activitynet", {"qa_test.json": "qa_test.json"}, only=True)
    absent = missing(read("activitynet-qa", folder, videos=tmp_path))
    assert absent.rows_not_annotated == 40 and absent.num_videos == 796
    assert "7,960 rows, published are 8,000" in str(absent)


@real
def test_the_order_of_classes_of_other_lists(tmp_path: Path) -> None:
    """Lists of the same clips with other numbers: labels agree by name, or are found to disagree."""
    ucf = real_data(tmp_path, "ucf101", "test1", "ucf101/official_splits", {})
    with open(ANNOTATIONS / "ucf101/uniformer_split1_test.csv", encoding="utf-8") as file:
        others = dict(line.rsplit(" ", 1) for line in file)
    assert {e.video: e.label for e in ucf.examples} == {path: int(label) for path, label in others.items()}

    with open(ANNOTATIONS / "hmdb51/hmdb_51_labels.csv", encoding="utf-8") as file:
        names = [row["name"] for row in csv.DictReader(file)]
    hmdb = read("hmdb51", ANNOTATIONS / "hmdb51/official_splits")
    assert hmdb.class_names is not None and sorted(names) == sorted(hmdb.class_names)
    moved = [a for a, b in zip(names, hmdb.class_names, strict=True) if a != b]
    assert moved == ["kick ball", "kick", "sword exercise", "sword"]

    k400 = real_data(tmp_path, "k400", "val", "kinetics", {})
    with open(ANNOTATIONS / "kinetics/uniformer_k400_val.csv", encoding="utf-8") as file:
        numbers = {path.removesuffix(".mp4"): int(label) for path, label in csv.reader(file)}
    assert k400.class_names is not None
    said = {
        example.id: (numbers[example.id[:11]], k400.class_names[example.label or 0])
        for example in k400.examples
        if example.id[:11] in numbers
    }
    classes = k400.class_names
    message = refused(lambda: check_class_order("k400", classes, said, where="of mmaction2"), "another order")
    assert (
        "0wR5jVB-WPk_000417_000427 has label 341" in message
        and "its class is 'abseiling', number 0" in message
    )


@real
def test_official_entries_of_ssv2_agree_with_the_lists(tmp_path: Path) -> None:
    """The few-shot files are official entries, of training and validation clips; the list is of validation clips."""
    folder = linked(tmp_path / "links", "ssv2", {"validation.json": "base_validation_set.json"})
    data = read("ssv2", folder, split="validation")  # checks the 1,340 that are in both
    assert len(data.examples) == 12_467
    listed = read("ssv2", linked(tmp_path / "list", "ssv2", {}), split="validation")
    both = {e.id: e.label for e in listed.examples}
    assert sum(both.get(e.id) == e.label for e in data.examples) == 1340
    (folder / "validation.txt").unlink()
    (folder / "validation.txt").symlink_to(
        ANNOTATIONS / "ssv2/something-something-v2-validation-processed.txt"
    )
    assert read("ssv2", folder, split="validation").examples == data.examples


@real
def test_vatex_entries_and_lists(tmp_path: Path) -> None:
    folder = linked(tmp_path / "a", "vatex", {"vatex_validation_v1.0.json": "videocap5data.json"})
    data = read("vatex", folder, split="validation")
    assert data.counts["rows"] == 5 and data.counts["captions"] == 50
    refused(lambda: read("vatex", folder, split="test"), "of the 1500 videos of the list have no captions")
    files = files_of("vatex", folder, "test")
    assert [len(files.ids(folder / f"{part}_list.txt")) for part in ("train", "val", "test")] == [
        25_991,
        1500,
        1500,
    ]


@real
def test_lists_of_msrvtt(tmp_path: Path) -> None:
    files = files_of("msrvtt", ANNOTATIONS / "msrvtt", "1k-a")
    sizes = {
        "MSRVTT_train.9k.csv": 9000,
        "MSRVTT_train.7k.csv": 7010,
        "MSRVTT_train.full.csv": 6513,
        "train_list_jsfusion.txt": 9000,
    }
    assert {name: len(files.ids(files.folder / name)) for name in sizes} == sizes
    for part in ("train", "val", "test"):
        assert set(files.ids(files.folder / f"MSRVTT_{part}.full.csv")) == set(
            files.ids(files.folder / f"{part}_list_full.txt")
        )
    refused(lambda: read("msrvtt", ANNOTATIONS / "msrvtt", split="train-9k"), "MSRVTT_data.json")


@real
def test_ava_sample_exclusions_and_actions(tmp_path: Path) -> None:
    names = {
        "ava_val_v2.2.csv": "ava_sample.csv",
        "ava_action_list_v2.2_for_activitynet_2019.pbtxt": "ava_action_list_v2.1_for_activitynet_2018.pbtxt.txt",
    }
    data = read("ava", linked(tmp_path / "links", "ava", names))
    assert data.counts["actions"] == 60 and data.counts["excluded"] == data.published.counts["excluded"] == 37
    assert {key: data.counts[key] for key in ("rows", "boxes", "labels")} == {
        "rows": 3,
        "boxes": 3,
        "labels": 8,
    }
    folder = tmp_path / "links"
    (folder / "ava_val_excluded_timestamps_v2.2.csv").unlink()
    (folder / "ava_val_excluded_timestamps_v2.2.csv").symlink_to(
        ANNOTATIONS / "ava/ava_excluded_timestamps_sample.csv"
    )
    data = read("ava", folder)
    assert data.counts["rows"] == 1 and data.counts["labels_excluded"] == 5


@real
def test_real_files_are_recognised() -> None:
    likely = {
        "msrvtt/MSRVTT_JSFUSION_test.csv": "MSR-VTT 1k-A",
        "msrvtt/msrvtt_caption_test.json": "captions of MSR-VTT",
        "msrvtt/val_list_full.txt": "ids of MSR-VTT",
        "msrvtt_qa/qa_val.json": "MSRVTT-QA",
        "msrvtt_qa/val.jsonl": "MSRVTT-QA",
        "msvd/captions_msvd.json": "captions of MSVD",
        "msvd/sents_val_lc_nopunc.txt": "captions of MSVD",
        "msvd_qa/qa_test.json": "MSVD-QA",
        "msvd_qa/chatunivi_msvd_qa.json": "MSVD-QA",
        "didemo/test_data.json": "DiDeMo",
        "didemo/val_list.txt": "ids of DiDeMo",
        "activitynet/val_1.json": "ActivityNet Captions or YouCook2 (captions with timestamps)",
        "activitynet/activitynet_qa.json": "ActivityNet-QA",
        "activitynet/qa_test.json": "ActivityNet-QA",
        "vatex/videocap5data.json": "VATEX",
        "vatex/test_list.txt": "ids of VATEX",
        "tgif_qa/Test_action_question.csv": "TGIF-QA Action or Transition",
        "tgif_qa/Test_frameqa_question.csv": "TGIF-QA FrameQA",
        "tgif_qa/Test_count_question.csv": "TGIF-QA Count",
        "webvid/results_2M_val.csv": "WebVid",
        "ucf101/official_splits/testlist01.txt": "UCF101",
        "hmdb51/official_splits/run_test_split1.txt": "HMDB51",
        "kinetics/kinetics-400_val.csv": "Kinetics",
        "ssv2/train.json": "Something-Something V2",
        "ssv2/something-something-v2-labels.json": "the class list of Something-Something V2",
        "ava/ava_sample.csv": "AVA (boxes)",
        "ava/ava_val_excluded_timestamps_v2.2.csv": "AVA (excluded timestamps)",
        "ava/action_list.txt": "AVA (action list)",
        "charades/charades_sta_test.txt": "Charades-STA",
        "charades/Charades_v1_test.csv": "Charades",
        "youcook2/validation_youcook.csv": "YouCook2 (retrieval)",
        "epic100/EPIC_100_validation.csv": "EPIC-KITCHENS-100",
        "ntu/label_map_ntu60.txt": None,
    }
    assert {name: looks_like(ANNOTATIONS / name) for name in likely} == likely


# ---- the page ----------------------------------------------------------------------------------------------------


def rows_of_the_page() -> dict[tuple[str, str], list[str]]:
    """docs/benchmarks.md: (benchmark, split) to the cells files, published, read."""
    page = (Path(__file__).parents[2] / "docs/benchmarks.md").read_text(encoding="utf-8")
    tables = [part.partition("\n\n")[0] for part in page.split("| benchmark | split |")[1:]]
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in "\n".join(tables).splitlines()
        if line.startswith("| `")
    ]
    return {(row[0].strip("`"), row[1].strip("`")): row[2:] for row in cells}


def said(counts: dict[str, int]) -> list[str]:
    return [f"{number:,} {name.replace('_', ' ')}" for name, number in counts.items()]


def test_the_page_has_every_split_with_its_files_and_counts() -> None:
    page = rows_of_the_page()
    assert page.keys() == {
        (name, split) for name, benchmark in BENCHMARKS.items() for split in benchmark.splits
    }
    for (name, split), (files, published, found) in page.items():
        known = BENCHMARKS[name].splits[split]
        assert files == ", ".join(
            form.replace(" | ", " or ").replace(" + ", " with ") for form in known.files
        )
        assert (
            published == f"{', '.join(said(dict(known.published.counts))) or '–'} ({known.published.source})"
        )
        case = next((case for case in REAL if case[:2] == (name, split)), None)
        if case is not None and "¹" not in found:
            assert found.split(", ")[: len(known.published.counts)] == said(dict(known.published.counts))
            assert set(found.split(", ")) <= {*said(dict(known.published.counts)), *said(case[4])}
        elif case is None and "¹" not in found:
            assert found == "–"
