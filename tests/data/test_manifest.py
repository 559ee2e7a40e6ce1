import csv
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harvest.data.columns import columns_of_rows
from harvest.data.manifest import read_manifest, write_manifest
from harvest.interfaces import Example, HarvestError

WEBVID9 = Path(__file__).parents[3] / "shared/clips/webvid9/results_2M_val.csv"

ROWS = [
    {"video": "a.mp4", "caption": "a dog, running", "start_s": 1.5, "end_s": 4.0},
    {"video": "sub/b.mp4", "caption": 'she says "hi"\nand goes', "start_s": None, "end_s": None},
]


def write_csv(path: Path, rows: list[dict], delimiter: str = ",") -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys(), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_every_format_says_the_same(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clips{suffix}"
    if suffix == ".jsonl":
        write_jsonl(path, ROWS)
    elif suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        write_csv(path, ROWS, "\t" if suffix == ".tsv" else ",")
    first, second = read_manifest(path)
    assert first == Example("a.mp4", str(tmp_path / "a.mp4"), ("a dog, running",), start_s=1.5, end_s=4.0)
    assert second == Example("sub/b.mp4", str(tmp_path / "sub/b.mp4"), ('she says "hi"\nand goes',))


def test_videos_may_lie_elsewhere(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "m.jsonl", ROWS)
    (tmp_path / "elsewhere").mkdir()
    assert read_manifest(tmp_path / "m.jsonl", videos=tmp_path / "elsewhere")[0].video == str(
        tmp_path / "elsewhere/a.mp4"
    )


@pytest.mark.parametrize(
    "row, texts",
    [
        ({"captions": ["one", " two ", ""]}, ("one", "two")),
        ({"captions": '["one", "two"]'}, ("one", "two")),
        ({"text": "[sic] one"}, ("[sic] one",)),
        ({"Sentence": "one", "name": "of the file"}, ("one",)),
        ({"name": "one"}, ("one",)),
        ({"label_or_caption": "one"}, ("one",)),
        ({"caption": "", "name": "not this"}, ()),
    ],
)
def test_captions_under_their_many_names(tmp_path: Path, row: dict, texts: tuple[str, ...]) -> None:
    write_jsonl(tmp_path / "m.jsonl", [{"path": "a.mp4", **row}])
    assert read_manifest(tmp_path / "m.jsonl")[0].texts == texts


def test_questions_and_labels(tmp_path: Path) -> None:
    rows = [
        {"video": "a.mp4", "question": "what?", "answer": "that"},
        {"video": "a.mp4", "options": ["x", "y"], "label": 1},
        {"video": "a.mp4", "label": "7"},
        {"video": "a.mp4", "label": 7.0},
    ]
    write_jsonl(tmp_path / "m.jsonl", rows)
    asked, choice, *labelled = read_manifest(tmp_path / "m.jsonl")
    assert (asked.question, asked.answer) == ("what?", "that")
    assert choice.texts == ("x", "y") and choice.label == 1
    assert [e.label for e in labelled] == [7, 7]


def test_repeated_ids_are_made_unique(tmp_path: Path) -> None:
    rows = [{"id": id, "video": "a.mp4", "text": "t"} for id in ("a", "a", "a#2", "a", "b", "a#2")]
    write_jsonl(tmp_path / "m.jsonl", rows)
    ids = [e.id for e in read_manifest(tmp_path / "m.jsonl")]
    assert len(set(ids)) == 6 and ids[:2] == ["a", "a#2"] and ids[4] == "b"


def webvid(folder: Path) -> Path:
    path = folder / "results.csv"
    keys = ["videoid", "name", "page_idx", "page_dir", "duration", "contentUrl"]
    values = [["11", "a dog", "3", "000001_000050", "PT00H00M17S", "http://x/11.mp4"]]
    values.append(["12", "a cat", "4", "000051_000100", "PT00H00M09S", "http://x/12.mp4"])
    write_csv(path, [dict(zip(keys, row, strict=True)) for row in values])
    return path


def test_webvid_with_folders_of_pages(tmp_path: Path) -> None:
    path = webvid(tmp_path)
    (tmp_path / "v/000051_000100").mkdir(parents=True)
    (tmp_path / "v/000001_000050").mkdir()
    examples = read_manifest(path, videos=tmp_path / "v")
    assert [e.video for e in examples] == [
        str(tmp_path / "v/000001_000050/11.mp4"),
        str(tmp_path / "v/000051_000100/12.mp4"),
    ]
    assert examples[0].id == "11" and examples[0].texts == ("a dog",)


def test_webvid_flat_and_beside(tmp_path: Path) -> None:
    path = webvid(tmp_path)
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/11.mp4").touch()
    assert [e.video for e in read_manifest(path)] == [str(tmp_path / f"videos/{n}.mp4") for n in (11, 12)]


@pytest.mark.skipif(not WEBVID9.exists(), reason="the real sample is not here")
def test_the_real_webvid_csv() -> None:
    examples = read_manifest(WEBVID9)
    assert len(examples) == 9 and all(Path(e.video).is_file() and e.texts for e in examples)


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("m.jsonl", "", "is empty"),
        ("m.csv", "", "is empty"),
        ("m.csv", "video,caption\n", "is empty"),
        ("m.txt", "x", "expected a name ending in .jsonl"),
        ("m.csv", "video,size,place\na.mp4,3,home\n", "no caption column; found: video, size, place"),
        ("m.csv", "length,caption\n3,hello\n", "no video column; found: length, caption"),
        ("m.csv", "video,caption\na.mp4,b,c\n", "line 2: expected 2 columns"),
        ("m.csv", "video,caption\n,c\n", "line 2: the video column is blank"),
        (
            "m.csv",
            "video,caption,start\na.mp4,b,soon\n",
            "line 2: start must be seconds from 0 on or HH:MM:SS.mmm, got 'soon'",
        ),
        (
            "m.csv",
            "video,caption,start,end\na.mp4,b,5,4\n",
            "line 2: example 'a.mp4': end_s 4.0 is not after",
        ),
        (
            "m.csv",
            "video,label\na.mp4,fight\n",
            "line 2: label must be a whole number from 0 on, got 'fight'",
        ),
        ("m.jsonl", '{"video": \n', "line 1: not JSON"),
        ("m.jsonl", "[1, 2]\n", "entry 1: expected an object"),
        ("m.jsonl", '{"video": "a.mp4", "text": 3}\n', "line 1: a caption must be text"),
        ("m.parquet", "no", "not a Parquet file"),
        ("m.csv", b"video,caption\na.mp4,caf\xe9\n", "not UTF-8"),
        ("m.jsonl", b'{"video": "a.mp4", "text": "caf\xe9"}\n', "not UTF-8"),
    ],
)
def test_each_mistake_is_named(tmp_path: Path, name: str, content: str | bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(HarvestError) as error:
        read_manifest(path)
    assert says in str(error.value) and str(path) in str(error.value)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(HarvestError, match="does not exist"):
        read_manifest(tmp_path / "m.jsonl")
    with pytest.raises(HarvestError, match="it is a folder"):
        read_manifest(tmp_path)
    write_jsonl(tmp_path / "m.jsonl", ROWS)
    with pytest.raises(HarvestError, match="folder of videos"):
        read_manifest(tmp_path / "m.jsonl", videos=tmp_path / "nowhere")


def test_bare_videos_for_search(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("file\na.mp4\nb.mp4\n")
    assert [e.texts for e in read_manifest(tmp_path / "m.csv", captions_required=False)] == [(), ()]


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.parquet").touch()
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(HarvestError, match=r"pip install pyarrow"):
        read_manifest(tmp_path / "m.parquet")


words = st.text("ab éß漢😀[]{}\"',#:\\", min_size=1).map(lambda text: f"a{text}z")


@settings(max_examples=50)
@given(
    st.lists(
        st.builds(
            Example,
            id=words,
            video=words.map(lambda t: "/videos/" + t.replace("/", "_").replace(".", "_")),
            texts=st.lists(words, max_size=3).map(tuple),
            label=st.none() | st.integers(0, 5),
            start_s=st.floats(0, 10),
            end_s=st.none() | st.floats(11, 20),
            question=st.none() | words,
            answer=st.none() | words,
        ),
        min_size=1,
        max_size=5,
        unique_by=lambda e: e.id,
    )
)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, examples: list[Example]) -> None:
    path = tmp_path_factory.mktemp("m") / "m.jsonl"
    write_manifest(path, examples)
    read = read_manifest(path, captions_required=False)
    assert [e for e in read if "#" not in e.id] == [e for e in examples if "#" not in e.id]
    assert len(read) == len(examples)


def test_written_paths_are_relative_to_the_manifest(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    write_manifest(path, [Example("1", str(tmp_path / "clips/a.mp4"), ("t",))])
    assert json.loads(path.read_text())["video"] == "clips/a.mp4"
    moved = tmp_path / "moved"
    moved.mkdir()
    path.rename(moved / "m.jsonl")
    assert read_manifest(moved / "m.jsonl")[0].video == str(moved / "clips/a.mp4")


def test_writing_leaves_nothing_half(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    write_manifest(path, [Example("1", "/a.mp4", ("t",))])

    def failing():
        yield Example("2", "/b.mp4")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_manifest(path, failing())
    assert [e.id for e in read_manifest(path)] == ["1"] and list(tmp_path.iterdir()) == [path]
    with pytest.raises(HarvestError, match="cannot write"):
        write_manifest(tmp_path / "nowhere/m.jsonl", [])


def test_rows_of_several_manifests_have_ids_of_their_own() -> None:
    rows = [Example(id, f"{id}.mp4") for id in ("1", "2", "1", "3", "1")]
    made = columns_of_rows(rows)
    assert [row.id for row in made] == ["1", "2", "1#2", "3", "1#3"]
    assert [row.video for row in made] == [row.video for row in rows]


def test_half_a_character_becomes_a_mark(tmp_path: Path) -> None:
    """JSON may hold half a surrogate pair, which no file and no tokenizer takes."""
    line = r'{"video": "a.mp4", "caption": "moves \ud83d right", "question": "\ud83d?", "answer": "\ud83d\ude00"}'
    (tmp_path / "m.jsonl").write_text(line + "\n")
    [row] = read_manifest(tmp_path / "m.jsonl")
    assert (row.texts, row.question, row.answer) == (("moves \ufffd right",), "\ufffd?", "\U0001f600")
    write_manifest(tmp_path / "again.jsonl", [row])
    assert read_manifest(tmp_path / "again.jsonl")[0].texts == row.texts
