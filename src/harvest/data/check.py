"""`harvest check`: every clip of a data set looked at once, and what is wrong with it on one page.

Looked at are the file's own words (length, size, frame rate, codec) and three pictures of the clip, which tell
whether it decodes and whether another clip shows the same. Nothing is changed; `clean.jsonl` is the manifest without
the rows that are of no use for training.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from harvest.data.guard import Lost, guarded_map
from harvest.data.manifest import Rows, is_address, write_manifest
from harvest.data.options import CheckConfig
from harvest.data.rows import video_of
from harvest.data.video import probe, read_clip
from harvest.files import write_file
from harvest.interfaces import Example, HarvestError, OnProgress

TEMPLATE = Path(__file__).with_name("check.html.j2")
LICENCE = ("licence", "license", "rights", "usage_rights")
BINS = 24
SHOWN = 200  # rows a list on the page


@dataclass(frozen=True)
class Looked:
    """What was seen of one clip."""

    duration_s: float  # of the stretch
    fps: float | None
    width: int
    height: int
    codec: str
    is_picture: bool
    pictures: str  # equal for clips that show the same


@dataclass
class Checked:
    """What is wrong with which rows, by id, and statistics of the others."""

    num_rows: int
    num_clips: int
    broken: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)  # no file, or no video behind an address
    rotted: dict[str, str] = field(
        default_factory=dict
    )  # dead addresses of videos whose files are what counts
    num_addresses: int = 0  # rows whose video is an address, which is not decoded
    duplicate: dict[str, str] = field(default_factory=dict)  # id -> the first that shows the same
    short: dict[str, str] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)  # no caption, or hardly one
    unlike: dict[str, str] = field(default_factory=dict)  # caption and clip, as an image model sees them
    licence_column: str | None = None
    hours: float = 0.0
    codecs: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    values: dict[str, list[float]] = field(default_factory=dict)  # of the histograms

    @property
    def useless(self) -> set[str]:
        return {
            *self.broken,
            *self.missing,
            *self.duplicate,
            *self.short,
            *self.silent,
            *self.unlike,
        }


def check(
    examples: Sequence[Example],
    config: CheckConfig,
    *,
    columns: Sequence[str] = (),
    similarities: Mapping[str, float] | None = None,
    rotted: Mapping[str, str] | None = None,
    workers: int = 2,
    progress: OnProgress = lambda done, of: None,
) -> Checked:
    """Look at every clip once.

    `similarities` by id are those of a row's best caption, from an image model; `rotted` by id are the reasons why
    its address leads nowhere (`harvest.data.links`).
    """
    if not examples:
        raise HarvestError("nothing to check: the manifest has no rows")
    clips: dict[tuple[str, float, float | None], list[Example]] = {}
    for example in examples:
        clips.setdefault((example.video, example.start_s, example.end_s), []).append(example)
    found = Checked(len(examples), len(clips), rotted=dict(rotted or {}))
    _set_addresses_aside(clips, found)
    found.licence_column = next((name for name in LICENCE if name in columns), None)
    first_that_shows: dict[str, str] = {}
    measured: dict[str, list[float]] = {
        "length of a clip, s": [],
        "short side, pixels": [],
        "frames a second": [],
    }
    seconds, sides, rates = measured.values()
    codecs, sizes = Counter[str](), Counter[str]()
    results = guarded_map(look, list(clips), workers=workers, limit_s=config.video_limit_s)
    for done, (rows, result) in enumerate(zip(clips.values(), results, strict=True), 1):
        progress(done, len(clips))
        ids = [row.id for row in rows]
        if isinstance(result, Lost | HarvestError):
            reason = getattr(result, "reason", str(result))
            place = found.missing if reason == "no such file" else found.broken
            place.update(dict.fromkeys(ids, reason))
            continue
        assert isinstance(result, Looked)
        seconds.append(result.duration_s)
        sides.append(float(min(result.width, result.height)))
        rates += [] if result.fps is None else [result.fps]
        codecs[result.codec] += 1
        sizes[f"{result.width} x {result.height}"] += 1
        if result.duration_s < config.min_s and len(rows) and not result.is_picture:
            found.short.update(dict.fromkeys(ids, f"{result.duration_s:.2f} s"))
        first = first_that_shows.setdefault(result.pictures, ids[0])
        if first != ids[0]:
            found.duplicate.update(dict.fromkeys(ids, f"shows what {first} shows"))
    _note_rows(found, examples, similarities, config)
    found.hours, found.codecs, found.sizes = (
        math.fsum(seconds) / 3600,
        dict(codecs.most_common()),
        dict(sizes.most_common(12)),
    )
    found.values = measured | {
        "words of a caption": [float(len(text.split())) for e in examples for text in e.texts],
        "captions of a row": [float(len(e.texts)) for e in examples],
        "similarity of clip and caption": list((similarities or {}).values()),
    }
    return found


def _set_addresses_aside(clips: dict[tuple[str, float, float | None], list[Example]], found: Checked) -> None:
    """Leave out clips that are addresses: nobody decodes them."""
    for clip in [clip for clip in clips if is_address(clip[0])]:
        ids = [row.id for row in clips.pop(clip)]
        found.num_addresses += len(ids)
        found.missing.update({id: found.rotted.pop(id) for id in ids if id in found.rotted})


def _note_rows(
    found: Checked,
    examples: Sequence[Example],
    similarities: Mapping[str, float] | None,
    config: CheckConfig,
) -> None:
    """What is wrong with rows whatever their clips show."""
    if isinstance(examples, Rows):
        found.duplicate.update(
            dict.fromkeys(examples.repeated, "says what a row before says of the same stretch")
        )
    for example in examples:
        words = max((len(text.split()) for text in example.texts), default=0)
        if words < config.min_words and not _says_something_else(example):
            found.silent[example.id] = f"“{example.texts[0]}”" if example.texts else "no caption"
    if similarities is not None and config.min_similarity is not None:
        low = {id: s for id, s in similarities.items() if s < config.min_similarity}
        found.unlike = {id: f"similarity {s:.3f}" for id, s in sorted(low.items(), key=lambda item: item[1])}


def look(video: str, start_s: float, end_s: float | None) -> Looked:
    """Probe a clip and decode three of its pictures. Raises VideoError."""
    source = video_of(video)
    info = probe(source)
    clip = read_clip(source, num_frames=3, image_size=9, start_s=start_s, end_s=end_s, fit="squash")
    end = info.duration_s if end_s is None else min(end_s, info.duration_s)
    # Which of two neighbours is brighter: that survives scaling and encoding again. Flat pictures are told by
    # their brightness and, more coarsely, for it is one figure of the whole clip, by their tint.
    grey = clip.frames.float().mean(1)  # [3, 9, 9]
    signs = (grey[:, :, 1:] > grey[:, :, :-1] + 2).flatten().tolist()
    coarse = (grey.mean((1, 2)) / 8).round().int().tolist()
    red, green, blue = clip.frames.float().mean((0, 2, 3)).tolist()
    tint = round((red - green) / 32), round((blue - green) / 32)
    pictures = hashlib.blake2b(
        f"{signs} {coarse} {tint} {round(end - start_s)}".encode(), digest_size=12
    ).hexdigest()
    return Looked(
        max(0.0, end - start_s), info.fps, info.width, info.height, info.codec, info.is_picture, pictures
    )


def _says_something_else(example: Example) -> bool:
    """Than a caption: a class, a question, boxes with actions."""
    labelled = example.label is not None or bool(example.labels) or bool(example.boxes)
    return labelled or example.question is not None


def write_report(out: Path, name: str, examples: Sequence[Example], found: Checked) -> None:
    """check.html, check.json and clean.jsonl in `out`."""
    clean = [example for example in examples if example.id not in found.useless]
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_manifest(out / "clean.jsonl", clean)
        said = asdict(found) | {"clean": len(clean)}
        said["values"] = {title: summary(values) for title, values in found.values.items() if values}
        write_file(out / "check.json", json.dumps(said, indent=1, ensure_ascii=False))
        write_file(out / "check.html", _page(name, found, len(clean)))
    except OSError as error:
        raise HarvestError(f"cannot write into {out}: {error.strerror or error}") from error


def summary(values: Sequence[float]) -> dict[str, float]:
    """Smallest, quarters, largest and mean."""
    ordered = sorted(values)
    return {
        "smallest": ordered[0],
        "a quarter below": ordered[len(ordered) // 4],
        "half below": ordered[len(ordered) // 2],
        "three quarters below": ordered[len(ordered) * 3 // 4],
        "largest": ordered[-1],
        "mean": math.fsum(ordered) / len(ordered),
    }


def histogram(values: Sequence[float]) -> list[tuple[float, int]]:
    """(lower edge, count) of equal bins; what lies above the 99th percentile is in the last one."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    width = (high - low) / BINS or 1.0
    counts = [0] * BINS
    for value in ordered:
        counts[min(BINS - 1, int((value - low) / width))] += 1
    return [(low + place * width, count) for place, count in enumerate(counts)]


def _page(name: str, found: Checked, num_clean: int) -> str:
    lists: list[tuple[str, str, dict[str, str]]] = [
        (
            "Missing",
            "The file is not there, or the video behind an address: a link that has rotted, or another folder.",
            found.missing,
        ),
        ("Rotted", "The address leads to no video any more; the file itself counts.", found.rotted),
        ("Broken", "No picture could be decoded, or it took too long.", found.broken),
        ("Duplicate", "Three pictures and the length are those of another clip.", found.duplicate),
        ("Short", "Shorter than asked for.", found.short),
        ("Silent", "No caption, or hardly a word.", found.silent),
        ("Unlike", "An image model finds the caption unlike the clip.", found.unlike),
    ]
    charts: list[dict[str, Any]] = []
    for title, values in found.values.items():
        if values:
            bars = histogram(values)
            most = max(count for _, count in bars)
            charts.append(
                {
                    "title": title,
                    "summary": summary(values),
                    "bars": [(edge, count, 100 * count / most) for edge, count in bars],
                }
            )
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        name=name, found=found, lists=lists, charts=charts, shown=SHOWN, num_clean=num_clean
    )
