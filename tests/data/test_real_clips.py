"""Every real file at hand is read or refused with a reason. Skips itself where the files are not."""

import csv
import time
from pathlib import Path

import pytest
import torch

from harvest.data.video import Decoder, VideoError, probe, read_clip, read_frames, reading
from harvest.data.video.second_decoder import find_decoder
from harvest.interfaces import HarvestError

CLIPS = Path(__file__).parents[3] / "shared/clips"
pytestmark = pytest.mark.skipif(not CLIPS.exists(), reason="the real clips are not here")

DECODERS: tuple[Decoder, ...] = ("pyav", "torchcodec")
# Read by nobody, as their names or the notes of INDEX.csv say: damaged, encrypted, empty or without pictures.
REFUSED = {
    "OpenImageIO__crash_4163.gif": "Invalid data",
    "OpenImageIO__gif_idx_overflow_32768x16385_top16384_1x1.gif": "",
    "decord__corrupted.mp4": "Invalid data",
    "media__full_blocks.mkv": "no video stream",
    "media__invalid-bitstream.webm": "no frames",
    "media__sample_audio_only.mp4": "no video stream",
    "media__sample_fragmented_clearkey.mp4": "Invalid data",
    "media__sample_malformed_free_box.mp4": "Invalid data",
    "media__sample_with_invalid_nalu.mp4": "Invalid data",
    "media__subsample_encrypted_noaltref.webm": "no frames",
    "media__video_dovi_3840x2160_30fps_dav1_10.mp4": "format this decoder does not know",
    "mp4parse-rust__invalid_userdata.mp4": "no frames",
    "mp4parse-rust__zero_empty_stsc.mp4": "no frames",
    "small__mp4-with-audio.mp4": "no video stream",
}


def index() -> list[dict[str, str]]:
    with open(CLIPS / "INDEX.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_file_is_read_or_refused_with_a_reason() -> None:
    refused = {}
    for row in index():
        path = CLIPS / row["path"]
        start = time.process_time()  # of ours alone: machines are shared; a hang ends by the tests' timeout
        try:
            clip = read_clip(path, num_frames=8, image_size=112)
            assert clip.frames.shape == (8, 3, 112, 112)
            info = probe(path)
            assert info.duration_s >= 0 and info.width > 0 and info.height > 0
        except VideoError as error:
            refused[path.name] = error.reason
        assert time.process_time() - start < 10, path
    assert refused.keys() == REFUSED.keys()
    for name, says in REFUSED.items():
        assert says in refused[name]


def test_what_files_say_of_themselves_agrees_with_the_index() -> None:
    for row in index()[::3]:
        path = CLIPS / row["path"]
        if path.name in REFUSED or not row["duration_s"] or path.suffix == ".gif":
            continue
        if (
            path.name == "torchcodec__nasa_13013.mp4"
        ):  # has two videos: the index has the first, shown is the larger
            assert (probe(path).width, probe(path).height) == (480, 270)
            continue
        info = probe(path)
        assert info.codec == row["codec"].replace("libdav1d", "av1"), path
        sides = {int(row["width"]), int(row["height"])}
        assert info.height in sides, path  # the width differs where pixels are not square


def test_reading_by_key_frames_agrees_with_reading_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, on a sample of all the containers and codecs."""
    generator = torch.Generator().manual_seed(0)
    by_key_frames = reading.read_by_key_frames
    for row in index()[::4]:
        path = CLIPS / row["path"]
        if path.name in REFUSED or int(row["width"] or 0) > 2000:
            continue
        times = (torch.rand(6, generator=generator).double() * probe(path).duration_s).sort().values
        monkeypatch.setattr(reading, "read_by_key_frames", by_key_frames)
        one = read_frames(path, times, image_size=32)
        monkeypatch.setattr(reading, "read_by_key_frames", lambda *_: None)
        other = read_frames(path, times, image_size=32)
        assert one.times_s.equal(other.times_s), path
        assert one.frames.equal(other.frames), path


def test_torchcodec_finds_the_frames_that_pyav_does() -> None:
    try:
        find_decoder("torchcodec")
    except HarvestError as error:
        pytest.skip(str(error))
    for row in index()[::4]:
        path = CLIPS / row["path"]
        if path.name in REFUSED or int(row["width"] or 0) > 2000:
            continue
        times = [
            read_clip(path, num_frames=8, image_size=32, decoder=decoder).times_s for decoder in DECODERS
        ]
        assert times[0].equal(times[1]), path


def test_real_folders_of_pictures() -> None:
    folders = [path for path in (CLIPS / "ssv2_frames").iterdir() if path.is_dir()]
    assert len(folders) == 13
    for folder in folders:
        clip = read_clip(folder, num_frames=8, image_size=64)
        assert clip.frames.shape == (8, 3, 64, 64) and (clip.times_s.diff() > 0).all()
