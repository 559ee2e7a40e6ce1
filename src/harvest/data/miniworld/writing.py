"""Writing a mini-world: H.264 files and their manifests, by worker processes, in any number of them the same bytes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from harvest.data.miniworld.captions import still_captions
from harvest.data.miniworld.drawing import FRAMES_PER_S, HELD_FRAMES, NUM_DRAWINGS, Scene, drawings
from harvest.data.miniworld.motions import LABELS
from harvest.data.miniworld.scenes import rng_for, sample
from harvest.data.miniworld.splits import MOST_RETRIEVAL, SPLITS, MiniWorld, MiniWorldConfig, make_clip
from harvest.files import write_file
from harvest.settings import read_json

_VERSION = 3  # raise it when the same config would give other files
_CLIPS_PER_JOB = 100  # part of the config, so to say: see _Encoder


class _Encoder:
    """Writes one drawn clip after another as an mp4 file of its own.

    Every drawing is a key frame at a constant quantizer, so that it decodes to the same pixels wherever
    it stands in the clip: were it predicted from the drawing before it, coding errors would tell an
    image model about order. Opening x264 costs more than encoding a clip, so that one encoder serves all
    clips of a job. Only the numbering of key frames passes from clip to clip, and jobs are cut alike for
    any number of workers, so files are too.
    """

    def __init__(self, size: int) -> None:
        # This container is never written: its stream holds the encoder and the header of all files.
        self._template = av.open(io.BytesIO(), "w", format="mp4")
        stream = self._template.add_stream("libx264", rate=FRAMES_PER_S)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.options = {"preset": "ultrafast", "tune": "zerolatency", "qp": "22", "forced-idr": "1"}
        stream.codec_context.thread_count = 1  # more would cost time at this size
        self._template.start_encoding()
        self._stream = stream
        self._to_yuv = VideoReformatter()  # keeps its tables from frame to frame
        self._num_frames = 0

    def write(self, path: Path, images: NDArray[np.uint8]) -> None:
        """Hold each of the images, uint8 [8, size, size, 3], for two frames."""
        time_base = Fraction(1, FRAMES_PER_S)
        with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
            stream = container.add_stream_from_template(self._stream, opaque=True)
            for number in range(NUM_DRAWINGS * HELD_FRAMES):
                if number % HELD_FRAMES == 0:
                    image = av.VideoFrame.from_ndarray(images[number // HELD_FRAMES], format="rgb24")
                    frame = self._to_yuv.reformat(image, format="yuv420p")
                    frame.time_base = time_base
                frame.pict_type = PictureType.NONE if number % HELD_FRAMES else PictureType.I
                frame.pts = self._num_frames
                self._num_frames += 1
                (packet,) = self._stream.encode(frame)  # without latency: one out for each in
                packet.pts = packet.dts = number
                packet.duration = 1
                packet.time_base = time_base
                packet.stream = stream
                container.mux(packet)


_STILLS_PER_CLIP = 2
_HELD_S = HELD_FRAMES / FRAMES_PER_S


def _stills(config: MiniWorldConfig, index: int, scene: Scene, clip: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of a training clip's pictures: each once with captions of what it shows, once with the clip's own.

    The second kind names motions, as captions on the web do, though no picture shows them.
    """
    rng = rng_for(config.seed, "stills", index)
    rows = []
    for drawing in sorted(sample(rng, range(NUM_DRAWINGS), _STILLS_PER_CLIP)):
        stretch = {"video": clip["video"], "start_s": drawing * _HELD_S, "end_s": (drawing + 1) * _HELD_S}
        name = f"stills-{index:06d}-{drawing}"
        rows.append({"id": name, **stretch, "texts": list(still_captions(rng, scene, drawing))})
        rows.append({"id": f"{name}-clip", **stretch, "texts": clip["texts"]})
    return rows


def _write_clips(folder: str, config: MiniWorldConfig, split: str, indices: range) -> dict[str, list[str]]:
    """Write the clips of one job; gives the lines of the manifests that they are in."""
    encoder = _Encoder(config.size)
    lines: dict[str, list[str]] = {split: []}
    for index in indices:
        scene, row = make_clip(config, split, index)
        encoder.write(Path(folder) / row["video"], drawings(scene, size=config.size))
        lines[split].append(json.dumps(row))
        if split == "train":
            lines.setdefault("stills", []).extend(map(json.dumps, _stills(config, index, scene, row)))
    return lines


def write_miniworld(
    folder: Path,
    config: MiniWorldConfig,
    *,
    progress: Callable[[int, int], None] | None = None,
    workers: int = 2,
) -> MiniWorld:
    """Write the mini-world into a folder, or find it there finished, and give the paths of its manifests.

    The files are a function of the config: neither the number of workers nor the order in which they
    work changes a byte. `progress` is called with (clips written, clips in all). With more than one
    worker, processes are spawned, so a script must call this under `if __name__ == "__main__"`.

    Raises HarvestError where the folder holds a mini-world of another config, or the config cannot be.
    """
    from harvest.interfaces import HarvestError  # here, since it brings torch, which workers do without

    counts = {split: config.questions for split in SPLITS} | {
        "train": config.train,
        "retrieval": config.retrieval,
    }
    _check(config, counts, workers)
    folder = Path(folder)
    world = MiniWorld(folder, config)
    mark = folder / "world.json"
    wanted = {"version": _VERSION, "config": asdict(config)}
    if mark.exists():
        found = read_json(mark)
        if found == wanted:
            return world
        raise HarvestError(
            f"{folder} holds another mini-world: it was made with {found}, and {wanted} is asked for. "
            "Give another folder, or remove this one."
        )
    for split in SPLITS:
        (folder / "videos" / split).mkdir(parents=True, exist_ok=True)
    jobs = [
        (split, range(start, min(start + _CLIPS_PER_JOB, count)))
        for split, count in counts.items()
        for start in range(0, count, _CLIPS_PER_JOB)
    ]
    lines: dict[str, list[str]] = {split: [] for split in (*SPLITS, "stills")}
    done, total = 0, sum(counts.values())
    for split, some in _written(folder, config, jobs, workers):
        for manifest, rows in some.items():
            lines[manifest].extend(rows)
        done += len(some[split])
        if progress is not None:
            progress(done, total)
    for manifest, rows in lines.items():
        write_file(folder / f"{manifest}.jsonl", "".join(row + "\n" for row in rows))
    write_file(world.labels, json.dumps(list(LABELS), indent=1) + "\n")
    write_file(mark, json.dumps(wanted) + "\n")  # last: it says that all the rest is there
    return world


def _check(config: MiniWorldConfig, counts: dict[str, int], workers: int) -> None:
    from harvest.interfaces import HarvestError

    if config.size < 64 or config.size % 2:
        raise HarvestError(f"size: expected an even number of pixels, at least 64, got {config.size}")
    if config.retrieval > MOST_RETRIEVAL:
        raise HarvestError(f"retrieval: expected at most {MOST_RETRIEVAL} clips, got {config.retrieval}")
    if min(counts.values()) < 0 or workers < 1:
        raise HarvestError(f"expected counts of at least 0 and a worker, got {config} and workers={workers}")


def _written(
    folder: Path, config: MiniWorldConfig, jobs: list[tuple[str, range]], workers: int
) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """The split of each job, in their order, and the rows of its clips, which are written then."""
    if workers == 1:
        for split, indices in jobs:
            yield split, _write_clips(str(folder), config, split, indices)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(_write_clips, str(folder), config, *job) for job in jobs]
        try:
            for (split, _), future in zip(jobs, futures, strict=True):
                yield split, future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
