"""Embed videos, pictures and sentences with an exported model, without PyTorch.

This file and text_cleaning.py lie in every folder that `harvest export --format onnx` wrote; with what requirements.txt
there names, they are all that is needed:

    python OUT/runner.py "a dog runs on a beach" a.mp4 b.mp4

>>> model = OnnxVideoText("OUT")
>>> model.embed_texts(["a dog runs on a beach"]) @ model.embed_videos(["a.mp4", "b.mp4"]).T
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import onnxruntime
import tokenizers
from av.video.reformatter import Colorspace, Interpolation
from PIL import Image, ImageOps

try:
    from harvest.model.text_cleaning import clean_text, special_pattern
except ImportError:  # beside the model, without the library
    from text_cleaning import clean_text, special_pattern  # type: ignore[import-not-found, no-redef]

FORMAT = 1
REQUIREMENTS = (
    "numpy>=1.26",
    "onnxruntime>=1.20",
    "tokenizers>=0.21",
    "av>=18,<19",
    "pillow>=11",
    "ftfy>=6.1",
)
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
ROUNDING_S = 1e-6  # a time computed from a frame's timestamp still finds that frame

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


class OnnxVideoText:
    """A folder that `harvest export --format onnx` wrote. Vectors are unit, float32, `[n, E]`."""

    def __init__(self, folder: str | Path, *, threads: int = 0) -> None:
        """`threads` 0: one for each core."""
        self.folder = Path(folder)
        self.settings: dict[str, Any] = json.loads((self.folder / "settings.json").read_text())
        if self.settings["format"] > FORMAT:
            raise ValueError(f"{folder} was exported by a newer Harvest: use the runner.py that lies there")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._options = options
        self._sessions: dict[str, Any] = {}
        self._core = tokenizers.Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        self._core.no_padding()
        self._core.enable_truncation(self.settings["tokenizer"]["context_length"])
        added = self._core.get_added_tokens_decoder().values()
        self._special = special_pattern(token.content for token in added if token.special)

    @property
    def num_frames(self) -> int:
        """The frames that a video is shown with."""
        return int(self.settings["num_frames"])

    def embed_videos(
        self, paths: Sequence[str | Path], *, budget: int | None = None, batch_size: int = 8
    ) -> Floats:
        """Unit vectors of video files; `budget` as for `embed_frames`."""
        shown = (read_video(path, self.num_frames, **self.settings["squares"]) for path in paths)
        return self._embed_shown(shown, budget=budget, batch_size=batch_size)

    def embed_images(self, paths: Sequence[str | Path], *, batch_size: int = 32) -> Floats:
        """Unit vectors of picture files, which are clips of one frame."""
        shown = (read_picture(path, **self.settings["squares"])[None] for path in paths)
        return self._embed_shown(shown, budget=None, batch_size=batch_size)

    def embed_frames(self, video: Pixels, *, budget: int | None = None) -> Floats:
        """Unit vectors of square clips uint8 `[B, T, 3, S, S]`.

        `budget` is how many tubelets of each clip are seen, in a model exported with a selector; None: as exported.
        """
        settings = self.settings
        if settings["selector"] is None and budget is not None:
            raise ValueError("this model was exported without a selector: harvest export … --budget N")
        fixed, most = settings["fixed_frames"], settings["most_frames"]
        if (fixed and video.shape[1] != fixed) or video.shape[1] > most:
            raise ValueError(
                f"clips have {video.shape[1]} frames, this model takes {fixed or f'at most {most}'}"
            )
        if missing := -video.shape[1] % settings["tubelet_size"]:  # an odd last frame fills its tubelet
            video = np.concatenate([video, np.repeat(video[:, -1:], missing, axis=1)], axis=1)
        inputs: dict[str, Any] = {"video": video}
        if settings["selector"] is not None:
            tubelets = video.shape[1] // settings["tubelet_size"] * settings["num_patches"]
            kept = min(settings["budget"], tubelets) if budget is None else budget
            if not 1 <= kept <= tubelets:
                raise ValueError(f"budget: expected 1 to {tubelets}, got {kept}")
            inputs["slots"] = np.zeros(kept, dtype=np.int64)
        return self._run("video", inputs)

    def embed_texts(self, texts: Sequence[str], *, batch_size: int = 64) -> Floats:
        """Unit vectors of sentences."""
        how = self.settings["tokenizer"]
        parts = [np.empty((0, self.settings["embed_dim"]), dtype=np.float32)]
        for start in range(0, len(texts), batch_size):
            some = [
                clean_text(text, how["clean"], self._special) for text in texts[start : start + batch_size]
            ]
            ids = np.full((len(some), how["context_length"]), how["pad_id"], dtype=np.int64)
            for row, encoding in zip(ids, self._core.encode_batch(some), strict=True):
                row[: len(encoding.ids)] = encoding.ids
            parts.append(self._run("text", {"text_ids": ids}))
        return np.concatenate(parts)

    def encode(self, text: str, *, with_marks: bool = True) -> Any:
        """The word pieces of a text, cut to what is read, by the `tokenizers` library; with the marks around them or without."""
        cleaned = clean_text(text, self.settings["tokenizer"]["clean"], self._special)
        return self._core.encode(cleaned, add_special_tokens=with_marks)

    def _embed_shown(self, shown: Iterator[Pixels], *, budget: int | None, batch_size: int) -> Floats:
        parts = [np.empty((0, self.settings["embed_dim"]), dtype=np.float32)]
        batch: list[Pixels] = []
        for frames in shown:
            batch.append(frames)
            if len(batch) == batch_size:
                parts.append(self.embed_frames(np.stack(batch), budget=budget))
                batch = []
        if batch:
            parts.append(self.embed_frames(np.stack(batch), budget=budget))
        return np.concatenate(parts)

    def _run(self, tower: str, inputs: dict[str, Any]) -> Floats:
        if tower not in self._sessions:
            path = str(self.folder / f"{tower}.onnx")
            self._sessions[tower] = onnxruntime.InferenceSession(
                path, self._options, providers=["CPUExecutionProvider"]
            )
        found: Floats = self._sessions[tower].run(None, inputs)[0]
        return found


# ---- from files to frames


def read_video(path: str | Path, num_frames: int, *, image_size: int, fit: str, interpolation: str) -> Pixels:
    """The frames in the middle of equal segments of a video, uint8 `[num_frames, 3, S, S]`.

    A picture is a video of one frame.
    """
    if Path(path).suffix.lower() in PICTURES:
        squares = {"image_size": image_size, "fit": fit, "interpolation": interpolation}
        return np.repeat(read_picture(path, **squares)[None], num_frames, axis=0)  # type: ignore[arg-type]
    start, end = span_of(path)
    targets = [start + (place + 0.5) * (end - start) / num_frames + ROUNDING_S for place in range(num_frames)]
    pictures: list[Pixels] = []
    before: Any = None
    with opened(path) as (container, stream):
        for time_s, frame in frames_of(container, stream):
            while len(pictures) < num_frames and before is not None and targets[len(pictures)] < time_s:
                pictures.append(square_of(before, stream, image_size, fit, interpolation))
            before = frame
            if len(pictures) == num_frames:
                break
        if before is None:
            raise ValueError(f"{path}: the video has no frames")
        while len(pictures) < num_frames:
            pictures.append(square_of(before, stream, image_size, fit, interpolation))
    return np.stack(pictures)


@contextmanager
def opened(path: str | Path) -> Iterator[tuple[Any, Any]]:
    """A container and its video stream; its file is opened here, so that no other is, whatever it names."""
    only_this = {"protocol_whitelist": "data"}
    with open(path, "rb") as file, av.open(file, options=only_this, metadata_errors="ignore") as container:
        stream: Any = container.streams.best("video")
        if stream is None:
            raise ValueError(f"{path}: no video stream")
        if container.format.name not in CONTAINERS:
            raise ValueError(
                f"{path}: this runner reads MP4, MOV, Matroska and WebM, whose frames have times of their own; this file is "
                f"{container.format.long_name}. Convert it first"
            )
        if (stream.average_rate or 0) > 1000:
            raise ValueError(
                f"{path}: the times of its frames are lost. Write it anew: ffmpeg -r RATE -i IN OUT"
            )
        yield container, stream


def span_of(path: str | Path) -> tuple[float, float]:
    """When the first frame of a video is shown and the last one ends: as the file says, else by its packets."""
    with opened(path) as (container, stream):
        first, last = math.inf, -math.inf
        for packet in container.demux(stream):
            if packet.pts is not None and packet.size and not packet.is_discard:
                first = min(first, packet.pts)
                last = max(last, packet.pts + (packet.duration or 0))
        if first > last:
            raise ValueError(f"{path}: the video has no timestamps")
        end = float(last * stream.time_base)
        said = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))  # Matroska's
        if stream.duration:
            end = float(((stream.start_time or 0) + stream.duration) * stream.time_base)
        elif said:
            end = int(said[1]) * 3600 + int(said[2]) * 60 + float(said[3])
        elif container.duration:
            end = ((container.start_time or 0) + container.duration) / 1e6
        return float(first * stream.time_base), end


def frames_of(container: Any, stream: Any) -> Iterator[tuple[float, Any]]:
    """Seconds and frames in presentation order."""
    last = -math.inf
    for frame in container.decode(stream):
        if frame.pts is not None and not frame.is_corrupt and frame.time > last:
            last = frame.time
            yield frame.time, frame


def square_of(frame: Any, stream: Any, image_size: int, fit: str, interpolation: str) -> Pixels:
    """A decoded frame, upright and of square pixels, as uint8 `[3, S, S]`."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is not None:
        a, b, _, c, d = np.frombuffer(bytes(matrix), dtype=np.int32)[:5].astype(np.float64)
        if a * d < b * c:
            raise ValueError(
                "the video is to be shown mirrored, which this runner does not: convert it first"
            )
    aspect = stream.sample_aspect_ratio
    width, height = round(frame.width * (aspect or 1)), frame.height
    turns = round(frame.rotation / 90) % 4  # counterclockwise
    shown = (width, height) if turns % 2 == 0 else (height, width)
    scaled = scaled_size(*shown, image_size, fit)
    if turns % 2:
        scaled = scaled[::-1]
    is_untagged = frame.colorspace == 2 and not frame.format.is_rgb
    is_hd = frame.width >= 1280 or frame.height > 576
    pixels = frame.reformat(
        width=scaled[0],
        height=scaled[1],
        format="rgb24",
        interpolation=Interpolation[interpolation.upper()],
        src_colorspace=int(Colorspace.ITU709) if is_untagged and is_hd else None,
    ).to_ndarray()
    return cut_square(np.rot90(pixels, turns), image_size, fit)


def read_picture(path: str | Path, *, image_size: int, fit: str, interpolation: str) -> Pixels:
    """A picture, upright by its EXIF and on white, as uint8 `[3, S, S]`."""
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            white = Image.new("RGB", image.size, "white")
            white.paste(image, mask=image.getchannel("A"))
            image = white
        image = image.convert("RGB")
    size = scaled_size(image.width, image.height, image_size, fit)
    if size != image.size:
        image = image.resize(size, Image.Resampling[interpolation.upper()])
    return cut_square(np.asarray(image), image_size, fit)


def scaled_size(width: int, height: int, image_size: int, fit: str) -> tuple[int, int]:
    """Width and height that a picture is scaled to before it is cropped or padded."""
    if fit == "squash":
        return image_size, image_size
    if fit == "pad":
        ratio = image_size / max(width, height)
        return max(1, round(width * ratio)), max(1, round(height * ratio))
    short = min(width, height)
    return int(image_size * width / short), int(image_size * height / short)


def cut_square(pixels: Pixels, image_size: int, fit: str) -> Pixels:
    """The middle square of scaled pixels `[H, W, 3]`, or the square of black around them, as `[3, S, S]`."""
    height, width = pixels.shape[:2]
    if fit == "pad":
        square = np.zeros((image_size, image_size, 3), dtype=np.uint8)
        top, left = (image_size - height) // 2, (image_size - width) // 2
        square[top : top + height, left : left + width] = pixels
    else:
        top, left = round((height - image_size) / 2), round((width - image_size) / 2)
        square = pixels[top : top + image_size, left : left + image_size]
    return np.ascontiguousarray(square.transpose(2, 0, 1))


def main(arguments: Sequence[str]) -> None:
    """`SENTENCE VIDEO…`: the cosine of each video with the sentence, the highest first."""
    if len(arguments) < 2:
        raise SystemExit("usage: python runner.py SENTENCE VIDEO…")
    model = OnnxVideoText(Path(__file__).parent)
    scores = (model.embed_videos(arguments[1:]) @ model.embed_texts(arguments[:1]).T)[:, 0]
    for place in np.argsort(-scores):
        print(f"{scores[place]:.3f}  {arguments[1 + place]}")


if __name__ == "__main__":
    main(sys.argv[1:])
