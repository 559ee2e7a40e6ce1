from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvest.data.cells import label_of, labels_of, span_of, text_list, texts_of, time_of, video_of_cell
from harvest.interfaces import HarvestError

captions = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20).map(lambda t: f"a{t}z")


@given(st.lists(captions, min_size=1, max_size=4))
def test_a_list_of_texts_is_read_however_it_was_written(texts: list[str]) -> None:
    assert text_list(json.dumps(texts)) == texts
    assert text_list(str(texts)) == texts  # pandas
    assert text_list(repr(tuple(texts)).replace("(", "[", 1)[::-1].replace(")", "]", 1)[::-1]) == texts


@given(
    st.lists(st.text("ab '\"\\,[]", min_size=1, max_size=8).map(lambda t: f"a{t}z"), min_size=1, max_size=4)
)
def test_a_list_of_numpy_is_read(texts: list[str]) -> None:
    assert text_list(str(np.array(texts, dtype=object))) == texts


@given(captions)
def test_a_caption_is_itself(text: str) -> None:
    assert texts_of(text) == (text.strip(),) == texts_of(text.encode())


@pytest.mark.parametrize(
    "text", ["[music] a dog", "[1] a dog", "['] quoted", "['a dog'] he says", "(a) dog", "[[["]
)
def test_a_caption_may_begin_with_a_bracket(text: str) -> None:
    assert texts_of(text) == (text,)


@pytest.mark.parametrize(
    "value",
    [
        5,
        1.5,
        True,
        {"en": "a"},
        [{"caption": "a"}],
        [["a"]],
        ["a", 1],
        b"\xff",
        "['a', 'b' ... 'c']",
        "[1, 2]",
        "x" * 2**21,
    ],
)
def test_what_is_no_text_is_refused(value: object) -> None:
    with pytest.raises(HarvestError):
        texts_of(value)


@pytest.mark.parametrize("value", [None, float("nan"), " ", "nan", "None", [], [None, ""], "[]"])
def test_nothing_is_nothing(value: object) -> None:
    assert texts_of(value) == ()


@pytest.mark.parametrize(
    "value, seconds",
    [
        ("00:03:10.567", 190.567),
        ("1:30:42", 5442),
        ("0:00:13.600", 13.6),
        ("01:20", 80),
        (12, 12),
        ("1e1", 10),
        ("12.5", 12.5),
        ("", None),
    ],
)
def test_times(value: object, seconds: float | None) -> None:
    assert time_of(value, "start") == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("value", [True, "soon", -1, "1_0", "١٢", "00:61:00", "inf", [1], b"1"])
def test_what_is_no_time_is_refused(value: object) -> None:
    with pytest.raises(HarvestError, match="HH:MM:SS"):
        time_of(value, "start")


def test_spans() -> None:
    assert span_of("['0:00:10.260', '0:00:17.100']", "timestamp") == (10.26, 17.1)
    for wrong in ("[1]", "[2, 1]", "[1, 1]", "x", "__import__('os')", [1, None]):
        with pytest.raises(HarvestError):
            span_of(wrong, "timestamp")


def test_labels() -> None:
    assert [label_of(value) for value in (3, 3.0, "3.0", " 7 ", None)] == [3, 3, 3, 7, None]
    assert labels_of("[2, 0, 2]") == (0, 2)
    for wrong in (True, -1, 1.5, "dog", 2**40, "1_0"):
        with pytest.raises(HarvestError, match="label"):
            label_of(wrong)
    for wrong_list in (5, "x", [10**9]):
        with pytest.raises(HarvestError):
            labels_of(wrong_list)


@pytest.mark.parametrize(
    "value",
    [
        b"mp4",
        {"bytes": b"", "path": "a"},
        ["a"],
        1.5,
        "a\0.mp4",
        "https://www.youtube.com/watch?v=x",
        "https://youtu.be/x",
    ],
)
def test_what_is_no_path_is_refused(value: object) -> None:
    with pytest.raises(HarvestError):
        video_of_cell(value)
