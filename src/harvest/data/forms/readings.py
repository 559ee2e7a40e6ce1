"""How a record of a published video set becomes entries: a function for each layout that needs one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from harvest.data.cells import literal_of, span_of, text_of, texts_of
from harvest.data.forms.record import Entry, Record, each
from harvest.data.tables import KEY
from harvest.interfaces import HarvestError

_YOUTUBE = re.compile(r"(?:v=|youtu\.be/|shorts/|embed/)([\w-]+)")


def _list(record: Record, column: str) -> list[Any]:
    value = literal_of(record[column], column)
    if not isinstance(value, list | tuple):
        raise HarvestError(f"{column} must be a list, got {value!r:.80}")
    return list(value)


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise HarvestError(f"{what} must be an object, got {value!r:.80}")
    return value


def _youtube_id(record: Record) -> tuple[str, ...]:
    found = _YOUTUBE.search(str(record.get("url") or ""))
    return (found[1],) if found else ()


def internvid(record: Record) -> Iterator[Entry]:
    video = record.name("youtubeid")
    start, end = record.name("start_timestamp"), record.name("end_timestamp")
    id = f"{video}_{start}_{end}"
    yield Entry(
        id,
        record.texts("caption"),
        cut=(id, id.replace(":", "_"), id.replace(":", "-")),
        names=(video,),
        start_s=record.time("start_timestamp"),
        end_s=record.time("end_timestamp"),
    )


def multi_view_captions(record: Record) -> Iterator[Entry]:
    """InternVid's clips with several captions each; columns may be named anyhow."""
    name = record.name("video")
    others = (key for key in record.cells if key not in ("video", "original_internvid", "id"))
    texts = [text for key in ("original_internvid", *others) for text in record.texts(key)]
    id = name.removesuffix(".mp4")
    yield Entry(id, tuple(dict.fromkeys(texts)), cut=(name, id.replace(":", "_")))


def panda(record: Record) -> Iterator[Entry | HarvestError]:
    """One row a source video, with lists of equal lengths written as Python does."""
    video = record.name("videoid")

    def clip(number: int, span: Any, caption: str) -> Entry:
        start, end = span_of(span, "timestamp")
        id = f"{video}_{number}"
        cut = (id, f"{video}.{number}", f"{video}_{number:05d}")
        return Entry(id, (caption,), cut=cut, names=(video,), start_s=start, end_s=end)

    yield from each(clip, _list(record, "timestamp"), texts_of(record["caption"]))


def koala(record: Record) -> Iterator[Entry]:
    id = record.name("videoid")
    start, end = span_of(record["timestamp"], "timestamp")
    video = id.rpartition("_")[0] or id
    yield Entry(id, record.texts("caption"), cut=(id,), names=(video,), start_s=start, end_s=end)


def mira(record: Record) -> Iterator[Entry]:
    start, end = span_of(record["timestamp"], "timestamp")
    yield Entry(
        record.name("clip_id"),
        record.texts("short_caption", "dense_caption"),
        cut=(record.name("file_path"),),
        names=(record.name("video_id"),),
        start_s=start,
        end_s=end,
    )


def mira_v0(record: Record) -> Iterator[Entry]:
    """Frame numbers are exact, `start_timestep` is whole seconds."""
    fps = float(record["fps"])
    if fps <= 0:
        raise HarvestError(f"fps must be more than 0, got {fps}")
    start, end = float(record["start_frame"]) / fps, float(record["end_frame"]) / fps
    index = record.name("index")
    texts = record.texts("short_caption", "dense_caption")
    yield Entry(index, texts, cut=(index,), names=(record.name("video_id"),), start_s=start, end_s=end)


def cut_clip(id: str, *texts: str, name: str | None = None) -> Any:
    """A reader of rows that each name a file cut already; of the caption columns the first that is filled is taken."""

    def entries(record: Record) -> Iterator[Entry]:
        yield Entry(record.name(id), record.texts(*texts), cut=(record.name(name or id),))

    return entries


def vript(record: Record) -> Iterator[Entry]:
    clip = record.name("clip_id")
    caption = _object(record["caption"], "caption")
    video = str(_object(record.get("meta") or {}, "meta").get("video_id") or record.get("video_id") or "")
    name = f"{video}/{clip}" if video else clip
    yield Entry(clip, texts_of(caption.get("content")), cut=(name, clip))


def vript_video(record: Record) -> Iterator[Entry]:
    """The file of one video: {meta, data: {clip id: …}}."""
    for clip, said in _object(record["data"], "data").items():
        caption = _object(_object(said, clip).get("caption"), "caption")
        video = said.get("video_id") or _object(record["meta"], "meta").get("video_id")
        yield Entry(str(clip), texts_of(caption.get("content")), cut=(f"{video}/{clip}", str(clip)))


def sharegpt4video(record: Record) -> Iterator[Entry]:
    """Of its captions the one with idx -1 is of the whole video; the others tell what changes between key frames."""
    whole = [c for c in _list(record, "captions") if str(_object(c, "captions").get("idx")) == "-1"]
    if len(whole) != 1:
        raise HarvestError(f'captions: expected one with idx "-1", the whole video, found {len(whole)}')
    yield Entry(
        record.name("video_id"), (text_of(whole[0].get("content")),), cut=(record.name("video_path"),)
    )


def conversations(record: Record) -> Iterator[Entry]:
    """LLaVA's form: a request and, as its answer, the caption. Files of questions are refused."""
    turns = [_object(turn, "conversations") for turn in _list(record, "conversations")]
    asked = [str(turn.get("value")) for turn in turns if turn.get("from") == "human"]
    if len(turns) != 2 or len(asked) != 1 or re.search(r"\n\s*[A-E][.)] ", asked[0]):
        raise HarvestError(
            "a conversation of questions and answers, not a request and a caption: only the *_cap_* files are captions"
        )
    video = record.name("video")
    yield Entry(str(record.get("id") or video), (text_of(turns[1].get("value")),), cut=(video,))


def is_of_questions(record: Record) -> bool:
    return bool(re.search(r"_(oe|mc|qa)_", record.path.name))


def hd_vila(record: Record) -> Iterator[Entry | HarvestError]:
    video = record.name("video_id")

    def clip(number: int, said: Any) -> Entry:
        name = str(_object(said, "clip").get("clip_id"))
        start, end = span_of(said.get("span"), "span")
        return Entry(name.removesuffix(".mp4"), cut=(name,), names=(video,), start_s=start, end_s=end)

    yield from each(clip, _list(record, "clip"))


def how_to(record: Record) -> Iterator[Entry | HarvestError]:
    spans = list(zip(*(_list(record, name) for name in ("start", "end")), strict=False))
    yield from _sentences(record.name(KEY), spans, _list(record, "text"))


def sentences(record: Record) -> Iterator[Entry | HarvestError]:
    """ActivityNet Captions, VidChapters: one clip a sentence."""
    yield from _sentences(record.name(KEY), _list(record, "timestamps"), _list(record, "sentences"))


def _sentences(video: str, spans: Sequence[Any], texts: Sequence[Any]) -> Iterator[Entry | HarvestError]:
    names = tuple(dict.fromkeys((video, video.removeprefix("v_"))))

    def clip(number: int, span: Any, text: Any) -> Entry:
        start, end = span_of(span, "the times")
        return Entry(f"{video}#{number + 1}", (text_of(text),), names=names, start_s=start, end_s=end)

    yield from each(clip, spans, texts)


def paragraphs(record: Record) -> Iterator[Entry]:
    """ActivityNet Captions: one row a video, its sentences joined."""
    video = record.name(KEY)
    text = " ".join(text_of(text) for text in _list(record, "sentences"))
    yield Entry(video, (text,), names=tuple(dict.fromkeys((video, video.removeprefix("v_")))))


def msrvtt(record: Record) -> Iterator[Entry]:
    """Two tables; the times are those in the source, the files are cut."""
    texts: dict[str, list[str]] = {}
    for said in record["sentences"]:
        texts.setdefault(str(said["video_id"]), []).append(text_of(said["caption"]))
    for video in record["videos"]:
        id = str(video["video_id"])
        yield Entry(id, tuple(texts.get(id, ())), cut=(id,))


def msrvtt_table(record: Record) -> Iterator[Entry]:
    """The hub's table names the source too: its times apply to the source's file only."""
    id = record.name("video_id")
    start, end = record.time("start_time"), record.time("end_time")
    yield Entry(id, record.texts("caption"), cut=(id,), names=_youtube_id(record), start_s=start, end_s=end)


def captioned_files(record: Record) -> Iterator[Entry]:
    """UMT's, VindLU's and Singularity's lists: `video` or `image`, with one caption or several."""
    name = record.name("video" if record.get("video") is not None else "image")
    yield Entry(name.rpartition(".")[0] or name, record.texts("caption"), cut=(name,))


def charades(record: Record) -> Iterator[Entry]:
    video = record.name("id")
    told = [text.strip() for text in str(record.get("descriptions") or "").split(";")]
    texts = [*record.texts("script"), *(text for text in told if text)]
    yield Entry(video, tuple(texts), cut=(video,))


def egoclip(record: Record) -> Iterator[Entry]:
    """Narrations begin with who acts: #C is the wearer, #O another person; the tag is the annotator's."""
    text = re.sub(r"#\w+\s*", "", text_of(record["clip_text"])).strip()
    start, end = record.time("clip_start"), record.time("clip_end")
    yield Entry(record.name("clip_idx"), (text,), names=(record.name("video_uid"),), start_s=start, end_s=end)


def _bytes_of(record: Record, column: str) -> str:
    return f"{record.path}#{record.number}/{column}"


def fine_video(record: Record) -> Iterator[Entry]:
    about = _object(record["json"], "json")
    text = text_of(_object(about.get("content_metadata"), "content_metadata").get("description"))
    name = str(about.get("original_video_filename") or f"row {record.number + 1}")
    yield Entry(name.rpartition(".")[0] or name, (text,), address=_bytes_of(record, "mp4"))


def fine_video_activities(record: Record) -> Iterator[Entry | HarvestError]:
    about = _object(record["json"], "json")
    name = str(about.get("original_video_filename") or f"row {record.number + 1}")
    id = name.rpartition(".")[0] or name
    for scene_number, scene in enumerate(about["content_metadata"].get("scenes") or [], 1):
        scene_id = scene.get("sceneId") or scene_number

        def clip(number: int, said: Any, scene_id: Any = scene_id) -> Entry:
            when = _object(said.get("timestamp"), "timestamp")
            start, end = span_of([when.get("start_timestamp"), when.get("end_timestamp")], "timestamp")
            return Entry(
                f"{id} scene {scene_id} activity {number + 1}",
                (text_of(said.get("description")),),
                address=_bytes_of(record, "mp4"),
                start_s=start,
                end_s=end,
            )

        yield from each(clip, scene.get("activities") or [])


def lerobot(record: Record) -> Iterable[Entry]:
    """Several episodes lie in one mp4; the task is the caption. The first camera is taken."""
    suffix = "/from_timestamp"
    camera = next(key.removesuffix(suffix) for key in record.cells if key.endswith(suffix))
    chunk, file = int(record[f"{camera}/chunk_index"]), int(record[f"{camera}/file_index"])
    name = f"{camera}/chunk-{chunk:03d}/file-{file:03d}.mp4"
    yield Entry(
        f"episode {record['episode_index']}",
        texts_of(record["tasks"]),
        names=(name,),
        start_s=record.time(f"{camera}/from_timestamp"),
        end_s=record.time(f"{camera}/to_timestamp"),
    )


def has_episodes(record: Record) -> bool:
    return any(key.endswith("/from_timestamp") for key in record.cells)


def is_nested(record: Record) -> bool:
    return str(record.get("timestamp") or "").lstrip().startswith(("[[", "[("))
