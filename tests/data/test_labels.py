from __future__ import annotations

import json
from pathlib import Path

import pytest

from harvest.data.labels import (
    answered,
    check_equally_many,
    check_same_names,
    frequent_answers,
    labelled,
    read_answers,
    read_class_names,
)
from harvest.data.manifest import read_manifest, write_manifest
from harvest.interfaces import Example, HarvestError


def row(id: str, **of: object) -> Example:
    return Example(id, f"{id}.mp4", **of)


def test_rows_without_a_label_are_left_out_and_captions_dropped() -> None:
    rows = labelled([row("a", texts=("x",), label=1), row("b", texts=("y",))], 2)
    assert [(e.id, e.texts, e.label) for e in rows] == [("a", (), 1)]
    with pytest.raises(HarvestError, match="none of the rows"):
        labelled([row("b", texts=("y",))], 2)


def test_labels_outside_the_classes_are_refused() -> None:
    with pytest.raises(HarvestError, match="'a' has label 2, the classes go from 0 to 1"):
        labelled([row("a", label=2)], 2)
    with pytest.raises(HarvestError, match="'a' has label 5"):
        labelled([row("a", labels=(0, 5))], 2)
    with pytest.raises(HarvestError, match="1 of 2 rows have a list of labels"):
        labelled([row("a", labels=(0, 1)), row("b", label=1)], 2)


def test_another_class_list_is_refused() -> None:
    check_same_names(["a", "b"], ("a", "b"))
    with pytest.raises(
        HarvestError, match=r"another order.*class 0 is 'b', the model was trained with 'a' there"
    ):
        check_same_names(["a", "b"], ["b", "a"])
    with pytest.raises(HarvestError, match="trained on 2 classes, 3 are asked for, among them 'c'"):
        check_same_names(["a", "b"], ["a", "b", "c"])


def test_a_name_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "names.json").write_text(json.dumps(["a", "b", "a"]))
    with pytest.raises(HarvestError, match="'a' is there 2 times"):
        read_class_names(tmp_path / "names.json")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("a.txt", "red\n\nblue\n7\n"),
        ("a.json", '["red", "blue", "7"]'),
        ("a.json", '\ufeff ["red", "blue", "7"]'),
        ("a.json", '{"7": 2, "red": 0, "blue": 1}'),
        ("a.json", '{"7": "2", "red": "0", "blue": "1"}'),  # so Something-Something's labels.json
        ("a.json", '{"2": "7", "0": "red", "1": "blue"}'),
        ("a.csv", "id,name\n0,red\n1,blue\n2,7\n"),
        ("a.csv", "name,id,videos\n7,2,9\nred,0,9\nblue,1,9\n"),
    ],
)
def test_class_names_come_in_the_order_of_their_numbers(file: str, text: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(text, encoding="utf-8")
    assert read_class_names(tmp_path / file) == ["red", "blue", "7"]


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("a.json", '{"red": 0, "blue": 2}', "not 0 to 1, each once"),
        ("a.json", '{"red": 1, "blue": 1}', "not 0 to 1, each once"),
        ("a.json", '{"red": 0, "blue": true}', "not 0 to 1, each once"),
        ("a.json", '{"0": "red", "0": "blue"}', "not 0 to 1, each once"),
        ("a.json", '{"1": "red", "2": "blue"}', "not 0 to 1, each once"),
        ("a.json", '{"0": "red", "1": "red"}', "'red' is there 2 times"),
        ("a.json", '{"0": "red", "1": ["blue"]}', "not 0 to 1, each once"),
        ("a.json", '{"red": 0,', "begins as a JSON object and is none"),
        ("a.json", "{}", "expected a list of names"),
        ("a.csv", "id,name\n1,red\n2,blue\n", "not 0 to 1, each once"),
        ("a.csv", "id,name\n", "expected a list of names"),
        ("a.csv", "id,name\n0\n", "expected a list of names"),
        ("a.csv", "red\nblue\n", r"columns id and name, found red; names one a line belong in a \.txt"),
        ("a.csv", "", "columns id and name, found nothing"),
    ],
)
def test_class_names_with_wrong_numbers(file: str, text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(HarvestError, match=rf"{file}.*{said}"):
        read_class_names(tmp_path / file)


def test_lists_of_labels_in_manifests(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('video,labels\na.mp4,"[3, 1, 3]"\nb.mp4,[]\n')
    examples = read_manifest(tmp_path / "a.csv")
    assert [e.labels for e in examples] == [(1, 3), ()]
    write_manifest(tmp_path / "b.jsonl", examples[:1])
    assert [e.labels for e in read_manifest(tmp_path / "b.jsonl")] == [(1, 3)]
    (tmp_path / "c.csv").write_text("video,labels\na.mp4,3\n")
    with pytest.raises(HarvestError, match=r"c\.csv, line 2: labels must be a list of whole numbers"):
        read_manifest(tmp_path / "c.csv")


def asked(id: str, answer: str) -> Example:
    return row(id, question=f"what is {id}?", answer=answer)


def test_questions_become_texts_and_numbers() -> None:
    rows = [asked("a", "Dog"), asked("b", "cat "), asked("c", "bird"), asked("d", "dog")]
    assert frequent_answers(rows) == ["dog", "bird", "cat"] and frequent_answers(rows, 2) == ["dog", "bird"]
    learned = answered(rows, ["dog", "cat"])
    assert [(e.id, e.texts, e.label) for e in learned] == [
        ("a", ("what is a?",), 0),
        ("b", ("what is b?",), 1),
        ("d", ("what is d?",), 0),
    ]
    with pytest.raises(HarvestError, match="none of the answers"):
        answered(rows, ["horse", "cow"])
    with pytest.raises(HarvestError, match="'x' has no question"):
        answered([row("x", answer="dog")], ["dog"])


def test_official_vocabularies(tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    path.write_text(json.dumps({"a Dog": 1, "cat": 0}))
    assert read_answers(path) == ["cat", "a dog"]
    path.write_text(json.dumps(["Cat", "dog"]))
    assert read_answers(path) == ["cat", "dog"]
    path.write_text("cat\ndog\n")
    assert read_answers(path) == ["cat", "dog"]
    for wrong, said in (
        ('{"a": 0, "b": 2}', "0 to 1, each once"),
        ('["a", "A"]', "'a' is there more than once"),
        ("[1]", "expected a list"),
    ):
        path.write_text(wrong)
        with pytest.raises(HarvestError, match=said):
            read_answers(path)


def test_questions_have_equally_many_options() -> None:
    check_equally_many([row("a", texts=("x", "y"), label=1), row("b", texts=("x", "z"), label=0)])
    for wrong in (
        row("b", texts=("x",), label=0),
        row("b", texts=("x", "y", "z"), label=0),
        row("b", texts=("x", "y")),
    ):
        with pytest.raises(HarvestError, match=r"'b' has .* equally many options, here 2"):
            check_equally_many([row("a", texts=("x", "y"), label=1), wrong])
