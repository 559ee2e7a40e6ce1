"""Moments become vectors: windows of several videos in batches, decoded by threads ahead of the encoder.

Batches are the same for the same list of videos, whatever the number of threads, so that an indexer that was killed
writes the same vectors the second time.

Shapes: B windows of a batch, T frames, E shared width.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harvest.data.video import VideoError
from harvest.plain_types import Pixels, Precision
from harvest.search.encoders.encoder import Encoder
from harvest.search.library.decoding import Decoders
from harvest.search.library.segmentation import Cut, Segmentation, Window
from harvest.search.library.store import Floats, Spans

Item = Window | Cut | VideoError
PICTURES = 32  # of a frame-wise tower, encoded at once


class Embedded(NamedTuple):
    """A video that could be read, in whole or in part."""

    spans: Spans
    cut: Cut


def embed_moments(
    model: Encoder,
    paths: Sequence[Path],
    segmentation: Segmentation,
    *,
    decoders: Decoders,
    precision: Precision = "fp32",
    batch_size: int = 32,
    workers: int = 1,
) -> list[Embedded | VideoError]:
    """Cut and embed videos. For each its moments, or why it cannot be read."""
    encoder = WindowEncoder(model, segmentation, precision=precision)
    model.check(segmentation, precision)
    found: list[list[Window]] = [[] for _ in paths]
    vectors: list[list[Floats]] = [[] for _ in paths]
    ends: list[Cut | VideoError | None] = [None] * len(paths)
    batch: list[tuple[int, Window]] = []

    def encode() -> None:
        pooled = encoder([window for _, window in batch])
        for (number, window), vector in zip(batch, pooled, strict=True):
            found[number].append(window._replace(pictures=()))  # these may go
            vectors[number].append(vector)
        batch.clear()

    read = partial(
        decoders.windows,
        segmentation=segmentation,
        num_frames=segmentation.num_frames or model.num_frames,
        squares=model.squares,
    )
    with _decoded(paths, read, ahead=2 * batch_size, workers=workers) as items:
        for number, item in items:
            if isinstance(item, Window):
                batch.append((number, item))
                if len(batch) == batch_size:
                    encode()
            else:
                ends[number] = item
        if batch:
            encode()
    done: list[Embedded | VideoError] = []
    for its_windows, its_vectors, end in zip(found, vectors, ends, strict=True):
        if not isinstance(end, Cut):
            assert end is not None
            done.append(end)
            continue
        starts = np.array([window.start_s for window in its_windows])
        done.append(
            Embedded(Spans(starts, np.array([w.end_s for w in its_windows]), np.stack(its_vectors)), end)
        )
    return done


class WindowEncoder:
    """Windows to unit vectors `[B, E]`.

    A tower that looks at frames alone sees each picture once, however many windows show it: vectors of the last
    batch's pictures are kept for those that overlap it.
    """

    def __init__(self, model: Encoder, segmentation: Segmentation, *, precision: Precision = "fp32") -> None:
        self.model, self.segmentation, self.precision = model, segmentation, precision
        self.num_encoded = 0
        """Windows, or pictures of a frame-wise tower, that the encoder has seen."""
        # By id of the picture, which is kept too, so that its id stays its own.
        self._seen: dict[int, tuple[Pixels, Floats]] = {}

    def __call__(self, batch: Sequence[Window]) -> Floats:
        if not self.model.is_frame_wise:
            video = np.stack([np.stack(window.pictures) for window in batch])
            self.num_encoded += len(batch)
            return self._encode(video)
        distinct = {id(picture): picture for window in batch for picture in window.pictures}
        new = [item for item in distinct.items() if item[0] not in self._seen]
        for start in range(0, len(new), PICTURES):
            some = new[start : start + PICTURES]
            pooled = self._encode(np.stack([picture for _, picture in some])[:, None])
            self._seen |= {
                key: (picture, vector) for (key, picture), vector in zip(some, pooled, strict=True)
            }
        self.num_encoded += len(new)
        self._seen = {key: value for key, value in self._seen.items() if key in distinct}
        means = [
            np.stack([self._seen[id(picture)][1] for picture in window.pictures]).mean(axis=0)
            for window in batch
        ]
        vectors = np.stack(means)
        unit: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)
        return unit

    def _encode(self, video: Pixels) -> Floats:
        return self.model.embed_clips(video, self.segmentation, self.precision)


@contextmanager
def _decoded(
    paths: Sequence[Path], read: Callable[[Path], Iterator[Window | Cut]], *, ahead: int, workers: int
) -> Iterator[Iterator[tuple[int, Item]]]:
    """The windows of videos in order, each video ended by its `Cut` or a VideoError, `ahead` decoded before use."""
    queues: list[queue.Queue[Item | BaseException]] = [queue.Queue(ahead) for _ in paths]
    stopped = threading.Event()

    def give(number: int, item: Item | BaseException) -> None:
        while not stopped.is_set():
            try:
                queues[number].put(item, timeout=0.2)
                return
            except queue.Full:
                continue

    def decode(number: int) -> None:
        try:
            for item in read(paths[number]):
                if stopped.is_set():
                    return
                give(number, item)
        except (
            BaseException
        ) as error:  # handed to the reader of the queue, which raises what is no VideoError
            give(number, error)

    def items() -> Iterator[tuple[int, Item]]:
        for number in range(len(paths)):
            while True:
                item = queues[number].get()
                if isinstance(item, BaseException) and not isinstance(item, VideoError):
                    raise item
                yield number, item
                if not isinstance(item, Window):
                    break

    with ThreadPoolExecutor(max(1, workers), thread_name_prefix="decode") as pool:
        for number in range(len(paths)):
            pool.submit(decode, number)
        try:
            yield items()
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)
