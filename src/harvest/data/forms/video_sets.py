"""Sets of videos with captions, in the order of their publication. Layouts are those of the owners' files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from harvest.data.cells import literal_of, span_of, text_of, texts_of
from harvest.data.forms.record import Entry, Form, Record, each
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


def _cut_clip(id: str, *texts: str, name: str | None = None) -> Any:
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


def _is_of_questions(record: Record) -> bool:
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


def _has_episodes(record: Record) -> bool:
    return any(key.endswith("/from_timestamp") for key in record.cells)


def _is_nested(record: Record) -> bool:
    return str(record.get("timestamp") or "").lstrip().startswith(("[[", "[("))


_LOG = (
    "is the log of a download, in which rows that failed are rows: the clips are in the .tar, or the folder, of the same"
    " name"
)
_ID_NOTE = "Only ids: a large part of the videos is gone."

FORMS = (
    Form(
        "webvid",
        "WebVid",
        ("videoid", "page_dir", "name"),
        size="10.7 M clips, 52,000 h",
        terms="withdrawn by its owner in 2024; non-commercial research",
        hosted="ids",
        note="A watermark is in every frame.",
    ),
    Form(
        "internvid",
        "InternVid",
        ("youtubeid", "start_timestamp", "end_timestamp", "caption"),
        internvid,
        "10.6 M (FLT), 18 M (AES), 230 M clips",
        "CC-BY-NC-SA-4.0",
        "ids",
        "MSR-VTT, MSVD, Kinetics, VATEX, ActivityNet (YouTube)",
        _ID_NOTE,
    ),
    Form(
        "internvid-mvc",
        "InternVid, multi-view captions",
        ("video", "original_internvid"),
        multi_view_captions,
        "10.6 M clips, several captions each",
        "as InternVid",
        "ids",
    ),
    Form(
        "panda-70m",
        "Panda-70M",
        ("videoid", "url", "timestamp", "caption"),
        panda,
        "70.7 M, 10.5 M or 2.4 M clips",
        "research, non-commercial (Snap)",
        "ids",
        "YouTube benchmarks",
        "Training filters: matching_score above 0.43, desirable_filtering 'desirable'.",
        _is_nested,
    ),
    Form(
        "koala-36m",
        "Koala-36M",
        ("videoid", "url", "timestamp", "caption"),
        koala,
        "36 M clips",
        "non-commercial",
        "ids",
        "YouTube benchmarks",
        "Captions of about 200 words.",
    ),
    Form(
        "openvid-1m",
        "OpenVid-1M",
        ("video", "caption", "aesthetic_score", "camera_motion"),
        size="1.45 M clips, 12 TB",
        terms="research, non-commercial (its README); the tag says CC-BY-4.0",
        hosted="videos",
        note="Long captions.",
    ),
    Form(
        "videoufo",
        "VideoUFO",
        ("id", "brief_caption", "detailed_caption"),
        _cut_clip("id", "brief_caption", "detailed_caption"),
        "1.09 M clips, 0.9 TB",
        "CC-BY-4.0",
        "videos",
        note="Its tars hold no captions: give VideoUFO.csv, and the folder of tars as --videos.",
    ),
    Form(
        "vidgen-1m",
        "VidGen-1M",
        ("vid", "caption"),
        _cut_clip("vid", "caption"),
        "1 M clips, 2 TB",
        "HD-VILA's terms underneath",
        "videos",
    ),
    Form(
        "vript-video",
        "Vript, the file of one video",
        ("meta", "data"),
        vript_video,
        "420,000 clips of 12,000 videos",
        "academic",
        "videos",
    ),
    Form(
        "vript",
        "Vript",
        ("clip_id", "caption", "meta"),
        vript,
        "420,000 clips of 12,000 videos",
        "academic",
        "videos",
        note="About 145 words a caption.",
    ),
    Form(
        "miradata",
        "MiraData",
        ("clip_id", "timestamp", "file_path", "short_caption"),
        mira,
        "330,000 clips of 72 s",
        "treat as non-commercial",
        "ids",
    ),
    Form(
        "miradata-v0",
        "MiraData v0",
        ("index", "video_id", "start_frame", "end_frame", "fps", "short_caption"),
        mira_v0,
        "57,000 clips",
        "treat as non-commercial",
        "ids",
    ),
    Form(
        "finevideo",
        "FineVideo",
        ("mp4", "json"),
        fine_video,
        "43,751 videos, 3,425 h, 600 GB",
        "CC-BY, gated, with opt-outs",
        "videos",
        note="finevideo-activities gives a clip an activity.",
    ),
    Form(
        "finevideo-activities",
        "FineVideo, a clip an activity",
        ("mp4", "json"),
        fine_video_activities,
        "43,751 videos",
        "CC-BY, gated, with opt-outs",
        "videos",
        automatic=False,
    ),
    Form(
        "sharegpt4video",
        "ShareGPT4Video",
        ("video_id", "video_path", "captions"),
        sharegpt4video,
        "40,000 videos",
        "CC-BY-NC",
        "videos",
        note="About 300 words a caption.",
    ),
    Form(
        "llava-questions",
        "LLaVA-Video-178K, questions",
        ("conversations",),
        is_it=_is_of_questions,
        refusal="holds questions and answers, not captions: give a *_cap_* file",
    ),
    Form(
        "llava-video-178k",
        "LLaVA-Video-178K, ShareGPTVideo",
        ("video", "conversations"),
        conversations,
        "178,000 and 900,000 videos",
        "academic",
        "videos",
        "ActivityNet, NExT-QA",
        "ShareGPTVideo's videos are folders of pictures.",
    ),
    Form(
        "hd-vila-100m",
        "HD-VILA-100M",
        ("video_id", "clip"),
        hd_vila,
        "100 M clips of 3.3 M videos",
        "research (Microsoft)",
        "ids",
        "YouTube benchmarks",
        "No captions.",
        lambda record: isinstance(record.get("clip"), list),
    ),
    Form(
        "openhumanvid",
        "OpenHumanVid",
        ("clip_id", "path", "caption", "global_motion"),
        _cut_clip("clip_id", "caption", name="path"),
        "13.2 M clips",
        "by form, non-commercial; mind faces",
        "videos",
    ),
    Form(
        "ultravideo",
        "UltraVideo",
        ("clip_id", "brief_description", "detailed_description"),
        _cut_clip("clip_id", "brief_description", "detailed_description"),
        "58,781 clips, 1.4 TB",
        "CC-BY-4.0, non-commercial clause",
        "videos",
    ),
    Form(
        "open-sora-plan",
        "Open-Sora-Plan",
        ("path", "cap"),
        _cut_clip("path", "cap"),
        "40,000 to 450,000 stock clips",
        "those of Mixkit, Pexels, Pixabay",
        "videos",
    ),
    Form(
        "pexels-400k",
        "Pexels-400k",
        ("video", "title", "thumbnail"),
        size="400,476 videos",
        terms="MIT on the metadata; Pexels' own on the videos",
        hosted="addresses",
        note="Titles, not captions.",
    ),
    Form(
        "howto100m",
        "HowTo100M",
        (KEY, "start", "end", "text"),
        how_to,
        "136 M lines of 1.22 M videos",
        "ids only, YouTube",
        "ids",
        "YouCook2",
        "Speech, not captions: lines overlap and may end after the video.",
    ),
    Form(
        "howto100m-ids",
        "HowTo100M, the list of videos",
        ("video_id", "category_1", "task_id"),
        refusal="holds ids and no captions: give raw_caption.json or raw_caption_superclean.json",
    ),
    Form(
        "vidchapters",
        "VidChapters-7M",
        (KEY, "timestamps", "sentences", "path"),
        sentences,
        "7 M chapters",
        "MIT on the metadata",
        "ids",
        note="Titles of chapters: weak captions.",
    ),
    Form(
        "activitynet",
        "ActivityNet Captions",
        (KEY, "timestamps", "sentences"),
        sentences,
        "37,421 sentences of 10,009 videos",
        "research",
        "ids",
        "ActivityNet-QA",
        "A clip a sentence; activitynet-paragraphs gives a paragraph a video.",
    ),
    Form(
        "activitynet-paragraphs",
        "ActivityNet Captions, paragraphs",
        (KEY, "timestamps", "sentences"),
        paragraphs,
        "10,009 videos",
        "research",
        "ids",
        automatic=False,
    ),
    Form(
        "msrvtt",
        "MSR-VTT",
        ("videos", "sentences"),
        msrvtt,
        "10,000 clips, 20 captions each",
        "research",
        "videos",
        "holds its own test split",
    ),
    Form(
        "msrvtt-hub",
        "MSR-VTT, the hub's table",
        ("video_id", "caption", "start_time", "end_time", "sen_id"),
        msrvtt_table,
        "as MSR-VTT",
        "research",
        "ids",
    ),
    Form(
        "vatex",
        "VATEX",
        ("videoid", "encap"),
        _cut_clip("videoid", "encap"),
        "25,991 clips, 10 captions each",
        "research",
        "ids",
    ),
    Form(
        "charades",
        "Charades",
        ("id", "script", "descriptions", "actions"),
        charades,
        "9,848 videos",
        "non-commercial",
        "videos",
    ),
    Form(
        "ssv2",
        "Something-Something V2",
        ("id", "label", "template", "placeholders"),
        _cut_clip("id", "label"),
        "168,913 clips",
        "research, signed",
        "videos",
        note="Classes instead of sentences: harvest benchmark ssv2 --split train.",
    ),
    Form(
        "egoclip",
        "EgoClip (Ego4D)",
        ("clip_idx", "video_uid", "clip_start", "clip_end", "clip_text"),
        egoclip,
        "3.85 M clips",
        "signed (Ego4D)",
        "videos",
        note="Clips of 0.8 s on average. Times are those of whole videos, not of chunks of 600 s.",
    ),
    Form(
        "caption-list",
        "a list of files and captions (UMT, VindLU)",
        ("video", "caption"),
        captioned_files,
        automatic=False,
    ),
    Form(
        "lerobot",
        "LeRobot v3",
        ("episode_index", "tasks"),
        lerobot,
        hosted="videos",
        note="Give meta/episodes/…/file-000.parquet, and the set's folder as --videos.",
        is_it=_has_episodes,
    ),
    Form(
        "download-log",
        "the log of video2dataset or img2dataset",
        ("url", "key", "status", "error_message"),
        refusal=_LOG,
    ),
)
