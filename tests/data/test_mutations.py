"""Manifests and shards changed in every way that people and tools change them: each row is right, or named.

Never a caption that is not in the file, and never a row that vanishes without a word.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from harvest.data.manifest import Rows, read_manifest
from harvest.data.rows import read_rows, video_of
from harvest.data.video import PackedVideo
from harvest.interfaces import HarvestError

NUM_EXAMPLES = int(os.environ.get("HARVEST_MUTATIONS", "120"))
CAPTIONS = ["a dog runs", "two cats, one grey", 'he says "go"', "ein Hund läuft", "狗在跑"]
Row = dict[str, Any]


def good_rows() -> list[Row]:
    return [
        {"video": f"{n}.mp4", "caption": text, "start": float(n), "end": n + 1.5}
        for n, text in enumerate(CAPTIONS)
    ]


def is_right(rows: Rows, num_rows: int) -> None:
    """Every row read says what the file says of that video; the others are named."""
    for row in rows:
        number = int(Path(row.video).stem)
        assert set(row.texts) <= {CAPTIONS[number]}
        if row.end_s is not None:
            assert (row.start_s, row.end_s) == (number, number + 1.5)
    assert len(rows) + len(rows.left_out) == rows.num_read == num_rows


# ---------------------------------------------------------------------------------------------------------------
# One value of one row is something else


ODD = [
    None,
    "",
    " ",
    "nan",
    float("nan"),
    float("inf"),
    -1,
    0,
    7,
    True,
    10**400,
    [],
    {},
    [None],
    [["a"]],
    [{"caption": "b"}],
    {"en": "b"},
    "['a', 'b' ... 'z']",
    "a\0b",
    "\ud800",
    "x" * 2**21,
    "00:00:99",
    "https://www.youtube.com/watch?v=abcdefghijk",
]


@settings(max_examples=NUM_EXAMPLES)
@given(
    st.integers(0, len(CAPTIONS) - 1),
    st.sampled_from(["video", "caption", "start", "end", "id", "label", "labels", "question", "boxes"]),
    st.sampled_from(ODD),
)
def test_an_odd_value_costs_its_row(tmp_path: Path, number: int, column: str, value: Any) -> None:
    rows = good_rows()
    rows[number][column] = value
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_manifest(path)
    assert len(read) >= len(CAPTIONS) - 1 and len(read) + len(read.left_out) == len(CAPTIONS)
    for row in read:
        if Path(row.video).stem.isdigit() and row.texts:
            own = CAPTIONS[int(Path(row.video).stem)] if row.video.endswith(".mp4") else None
            assert row.texts == (own,) or column in ("video", "caption") or row.texts[0] in CAPTIONS
        if column == "caption" and isinstance(value, str):
            assert all(text in (*CAPTIONS, value.strip(), "\ufffd") for text in row.texts)
    assert all("line" in place for place in read.left_out)


# ---------------------------------------------------------------------------------------------------------------
# Columns and formats


def as_csv(rows: list[Row], **how: Any) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, rows[0].keys(), **how)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def as_parquet(rows: list[Row]) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink, row_group_size=2)
    return sink.getvalue()


def as_lines(rows: list[Row]) -> bytes:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


FORMATS: dict[str, Callable[[list[Row]], bytes]] = {
    "m.csv": as_csv,
    "quoted.csv": lambda rows: as_csv(rows, quoting=csv.QUOTE_ALL),
    "semicolon.csv": lambda rows: as_csv(rows, delimiter=";"),
    "tabs.csv": lambda rows: as_csv(rows, delimiter="\t"),
    "m.tsv": lambda rows: as_csv(rows, delimiter="\t"),
    "old.csv": lambda rows: as_csv(rows, lineterminator="\r"),
    "m.csv.gz": lambda rows: gzip.compress(as_csv(rows)),
    "m.jsonl": as_lines,
    "m.ndjson": lambda rows: as_lines(rows) + b"\n\n",
    "m.jsonl.gz": lambda rows: gzip.compress(as_lines(rows)),
    "lines.json": as_lines,
    "m.json": lambda rows: json.dumps(rows).encode(),
    "indented.json": lambda rows: json.dumps(rows, indent=2).encode(),
    "keys.json": lambda rows: json.dumps({str(n): row for n, row in enumerate(rows)}).encode(),
    "columns.json": lambda rows: json.dumps({k: [row[k] for row in rows] for k in rows[0]}).encode(),
    "m.parquet": as_parquet,
}
ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "utf-8": lambda data: data,
    "mark": lambda data: b"\xef\xbb\xbf" + data,
    "utf-16": lambda data: data.decode().encode("utf-16"),
    "crlf": lambda data: data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_format_and_encoding(tmp_path: Path, name: str, encoding: str) -> None:
    if encoding != "utf-8" and name.endswith((".gz", ".parquet")):
        pytest.skip("not text")
    path = tmp_path / name
    path.write_bytes(ENCODINGS[encoding](FORMATS[name](good_rows())))
    rows = read_manifest(path)
    is_right(rows, len(CAPTIONS))
    assert [row.texts for row in rows] == [(text,) for text in CAPTIONS] and not rows.left_out


def written(value: float, how: str) -> Any:
    return {"clock": f"00:00:{value:06.3f}", "text": str(value), "number": value}[how]


@pytest.mark.parametrize("how", ["clock", "text", "number"])
def test_times_however_they_are_written(tmp_path: Path, how: str) -> None:
    rows = [row | {name: written(row[name], how) for name in ("start", "end")} for row in good_rows()]
    (tmp_path / "m.jsonl").write_bytes(as_lines(rows))
    is_right(read_manifest(tmp_path / "m.jsonl"), len(CAPTIONS))


TIMES = [
    *(
        "span_start",
        "Start_timestamp",
        "timestamp",
        "start_frame",
        "clip_start",
        "start_sec",
        "begin",
        "End Time",
    ),
    *("startTime", "t_start", "end_timestamp", "timestamps", "span", "stop", "offset", "timecode"),
]


@pytest.mark.parametrize("column", TIMES)
def test_columns_that_look_like_times_are_not_dropped(tmp_path: Path, column: str) -> None:
    rows = [{"video": row["video"], "caption": row["caption"], column: row["start"]} for row in good_rows()]
    path = tmp_path / "m.jsonl"
    path.write_bytes(as_lines(rows))
    with pytest.raises(HarvestError, match=f"{column} look like the times.*--columns"):
        read_manifest(path)
    assert [r.start_s for r in read_manifest(path, columns=[f"start={column}"])] == [0, 1, 2, 3, 4]
    assert [r.start_s for r in read_manifest(path, columns=[f"ignore={column}"])] == [0] * 5


@pytest.mark.parametrize(
    "column", ["duration", "fps", "frame", "seconds", "num_frames", "page_idx", "uploaded"]
)
def test_columns_that_are_no_times_of_clips(tmp_path: Path, column: str) -> None:
    rows = [{"video": row["video"], "caption": row["caption"], column: 3} for row in good_rows()]
    (tmp_path / "m.jsonl").write_bytes(as_lines(rows))
    is_right(read_manifest(tmp_path / "m.jsonl"), len(CAPTIONS))


@settings(max_examples=NUM_EXAMPLES)
@given(st.sampled_from(["m.csv", "m.tsv", "m.jsonl", "m.json", "quoted.csv"]), st.data())
def test_a_damaged_file_loses_no_row_in_silence(tmp_path: Path, name: str, data: st.DataObject) -> None:
    """A byte more, a byte less, another byte: what is read is in the file, and rows are read, named or the file refused."""
    good = FORMATS[name](good_rows())
    place = data.draw(st.integers(len(good) // 4, len(good) - 1))
    byte = data.draw(
        st.sampled_from([b"", b'"', b"\xff", b",", b"\n", b"\\", b"'", b"]", b"}", b"\t", b"\0"])
    )
    kept = data.draw(st.booleans())
    damaged = good[:place] + byte + good[place + (not kept) :]
    path = tmp_path / name
    path.write_bytes(damaged)
    try:
        rows = read_manifest(path)
    except HarvestError as error:
        assert str(path) in str(error)
        return
    content = damaged.decode("utf-8", "surrogateescape")
    for row in rows:
        for text in row.texts:
            pieces = (
                text,
                text.replace('"', '""'),
                json.dumps(text, ensure_ascii=False)[1:-1],
                json.dumps(text)[1:-1],
            )
            assert any(piece in content for piece in pieces) or "\ufffd" in text
    assert len(rows) + len(rows.left_out) >= len(CAPTIONS) - 1  # two rows may have become one that is named


# ---------------------------------------------------------------------------------------------------------------
# Columns renamed, types changed, nested, encoded otherwise: all at once


def as_shard(rows: list[Row]) -> bytes:
    """Each row as one sample: its caption as text or within JSON, its times in JSON."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for n, row in enumerate(rows):
            for name, content in ((f"{n}.mp4", b"video %d" % n), (f"{n}.json", json.dumps(row).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return sink.getvalue()


NAMES = {
    "video": ["video", "Video", "path", "file_name", "clip_path", "videoid", "blurb"],
    "caption": ["caption", "captions", "Text", "prompt", "sentence", "title", "recap", "x"],
    "start": ["start", "start_s", "start_time", "span_start", "Start_timestamp", "begin"],
    "end": ["end", "end_s", "end_time", "span_end", "End_timestamp", "stop"],
}
CAPTION_AS: dict[str, Callable[[str], Any]] = {
    "text": str,
    "list": lambda text: [text],
    "json": lambda text: json.dumps([text]),
    "python": lambda text: repr([text]),
    "numpy": lambda text: f"[{text!r}\n {text!r}]",
    "list in list": lambda text: [[text]],
    "object": lambda text: {"en": text},
    "objects": lambda text: [{"caption": text}],
    "spaces": lambda text: f"  {text}\n",
    "latin": lambda text: text.encode("utf-8").decode("latin-1"),
    "bytes": lambda text: text.encode(),
    "number": len,
}
VIDEO_AS: dict[str, Callable[[str], Any]] = {
    "path": str,
    "page": lambda name: f"https://www.youtube.com/watch?v={name[:1] * 11}",
    "struct": lambda name: {"path": name, "bytes": None},
    "backslashes": lambda name: f"clips\\{name}",
    "list": lambda name: [name],
    "bytes": lambda name: name.encode(),
}
TIME_AS: dict[str, Callable[[float], Any]] = {
    "number": float,
    "text": str,
    "clock": lambda value: f"00:00:{value:06.3f}",
    "nothing": lambda _: None,
}


def mostly(values: Iterable[str]) -> st.SearchStrategy[str]:
    """The first, as a right file has it, four times of five."""
    first, *others = values
    return st.sampled_from([first] * 4 * len(others) + others)


mutations = st.fixed_dictionaries(
    {
        **{f"{part} is called": mostly(names) for part, names in NAMES.items()},
        "caption as": st.sampled_from(list(CAPTION_AS)),
        "video as": mostly(VIDEO_AS),
        "times as": st.sampled_from(list(TIME_AS)),
        "rows": st.sampled_from(["all", "one"]),
        "written as": st.sampled_from([*FORMATS, "s.tar"]),
        "encoding": mostly(ENCODINGS),
    }
)


def mutated(how: dict[str, str]) -> bytes:
    rows = []
    for n, row in enumerate(good_rows()):
        other = how["rows"] == "all" or n == 2
        caption, video, time = (
            kinds[how[f"{part} as"] if other else first]
            for part, kinds, first in (
                ("caption", CAPTION_AS, "text"),
                ("video", VIDEO_AS, "path"),
                ("times", TIME_AS, "number"),
            )
        )
        rows.append(
            {
                how["video is called"]: video(row["video"]),
                how["caption is called"]: caption(row["caption"]),
                how["start is called"]: time(row["start"]),
                how["end is called"]: time(row["end"]),
            }
        )
    name = how["written as"]
    content = as_shard(rows) if name == "s.tar" else FORMATS[name](rows)
    is_text = not name.endswith((".gz", ".parquet", ".tar"))
    return ENCODINGS[how["encoding"]](content) if is_text else content


def test_a_mutated_file_is_read_rightly_or_its_rows_are_named(tmp_path: Path) -> None:
    """HARVEST_MUTATIONS=1000 is the campaign; what ran is printed."""
    seen: dict[str, str] = {}

    @settings(max_examples=NUM_EXAMPLES, deadline=None, database=None, derandomize=True)
    @given(mutations)
    def run(how: dict[str, str]) -> None:
        try:
            content = mutated(how)
        except (TypeError, pyarrow.ArrowException):
            reject()  # a format that cannot hold it
        path = tmp_path / how["written as"]
        path.write_bytes(content)
        try:
            rows, left_out = outcome(path)
        except HarvestError as error:
            assert path.name in str(error), error
            seen[json.dumps(how)] = "refused by name"
            return
        assert len(rows) + len(left_out) == len(CAPTIONS)
        for row in rows:
            number = number_of(row.video)
            assert set(row.texts) <= right_texts(how, number), (row.texts, how)
            if how["times as"] != "nothing" and how["written as"] != "s.tar":
                assert (row.start_s, row.end_s) == (number, number + 1.5), how
        seen[json.dumps(how)] = "right" if not left_out else "rows named"

    run()
    print(f"\n{len(seen)} different mutations: {dict(Counter(seen.values()))}")
    assert len(seen) >= min(200, NUM_EXAMPLES // 2)


def outcome(path: Path) -> tuple[list[Any], list[str]]:
    if path.suffix == ".tar":
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(path.parent / f"cache-{path.stat().st_mtime_ns}"))
            rows, gone = read_rows(str(path))
            return list(rows), list(gone)
    found = read_manifest(path)
    return list(found), list(found.left_out)


def number_of(video: str) -> int:
    """Of the row that a video belongs to, by its name or, in a shard or a Parquet file, by its bytes."""
    packed = video_of(video)
    if isinstance(packed, PackedVideo):
        return int(packed.files[0].lstrip(b"video ")[:1])
    return int(Path(packed.replace("\\", "/")).stem)


def right_texts(how: dict[str, str], number: int) -> set[str]:
    """What the file says of that row: its caption; a number in a table of text is text."""
    text = CAPTIONS[number]
    other = how["rows"] == "all" or number == 2
    as_text = how["caption as"] == "latin" or (how["caption as"] == "number" and "sv" in how["written as"])
    return {text, str(CAPTION_AS[how["caption as"]](text))} if other and as_text else {text}


# ---------------------------------------------------------------------------------------------------------------
# Shards


def shard(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


ODD_MEMBERS = [
    ("txt", b""),
    ("txt", b"\xff\xfe\xff"),
    ("json", b"{"),
    ("json", b"[" * 10**5),
    ("json", b'{"texts": [1]}'),
    ("json", b'{"texts": {"a": 1}}'),
    ("json", b'{"label": ' + b"9" * 5000 + b"}"),
    ("json", b'{"caption": null}'),
    ("json", b'{"times_s": ["x"], "duration_s": "y"}'),
    ("cls", b"dog"),
    ("cls", b"9" * 30),
    ("cls", b"-1"),
]


@settings(max_examples=NUM_EXAMPLES // 2)
@given(
    st.integers(0, 4),
    st.sampled_from(ODD_MEMBERS),
    st.sampled_from(["{}", "d/{}", "{}.7", "A b. {}", "./{}"]),
)
def test_an_odd_sample_costs_itself(
    tmp_path_factory: pytest.TempPathFactory, number: int, odd: tuple[str, bytes], form: str
) -> None:
    folder = tmp_path_factory.mktemp("s")
    members = []
    for n, text in enumerate(CAPTIONS):
        key = form.format(n)
        own = {"mp4": b"video", "txt": text.encode()}
        if n == number:
            own |= dict([odd])
        members += [(f"{key}.{suffix}", content) for suffix, content in own.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        rows, left_out = read_rows(str(shard(folder / "s.tar", members)))
    texts = [row.texts for row in rows]
    others = [(text,) for n, text in enumerate(CAPTIONS) if n != number]
    assert [t for t in texts if t in others] == others
    assert len(rows) + len(left_out) == len(CAPTIONS)
