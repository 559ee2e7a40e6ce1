"""What is never opened: files that name others, whatever they are called; what is no file; and what claims too much."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from harvest.data.video import (
    PackedVideo,
    VideoError,
    probe,
    read_clip,
    stream_frames,
    transcode,
    write_video,
)

SECRET_LEVEL = 200


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video that no list may show."""
    path = tmp_path_factory.mktemp("outside") / "secret.mp4"
    write_video(path, torch.full((8, 3, 32, 32), SECRET_LEVEL, dtype=torch.uint8), fps=4)
    (path.parent / "secret.txt").write_text("TOP SECRET\n" * 20)
    return path


@pytest.fixture
def listener() -> Iterator[tuple[int, list[object]]]:
    """A port on this machine, and who connected to it."""
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.05)
    connections: list[object] = []
    is_over = threading.Event()

    def accept() -> None:
        while not is_over.is_set():
            try:
                client, address = server.accept()
            except TimeoutError:
                continue
            connections.append(address)
            client.close()

    thread = threading.Thread(target=accept)
    thread.start()
    yield server.getsockname()[1], connections
    is_over.set()
    thread.join()
    server.close()


def m3u8(address: str, extra: str = "") -> str:
    head = f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n{extra}"
    return f"{head}#EXTINF:4.0,\n{address}\n#EXT-X-ENDLIST\n"


def mpd(address: str, head: str = "") -> str:
    return f"""<?xml version="1.0"?>{head}
<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT4S" minBufferTime="PT1S">
<Period duration="PT4S"><AdaptationSet contentType="video" mimeType="video/mp4">
<Representation id="1" bandwidth="1000" mimeType="video/mp4"><BaseURL>{address}</BaseURL></Representation>
</AdaptationSet></Period></MPD>"""


def contents(target: Path, port: int) -> dict[str, str]:
    """Every kind of file that makes FFmpeg open others."""
    web, text = f"http://127.0.0.1:{port}/a.mp4", target.with_name("secret.txt")
    key = f'#EXT-X-KEY:METHOD=AES-128,URI="{text}"\n'
    laughs = "".join(f'<!ENTITY {chr(98 + i)} "{("&" + chr(97 + i) + ";") * 16}">' for i in range(9))
    found = {
        "hls": m3u8(str(target)),
        "hls_map": m3u8(str(target), f'#EXT-X-MAP:URI="{target}"\n'),
        "hls_key": m3u8(str(target), key),
        "hls_web": m3u8(web),
        "hls_web_key": m3u8(str(target), f'#EXT-X-KEY:METHOD=AES-128,URI="{web}"\n'),
        "hls_concat": m3u8(f"concat:{target}|{target}"),
        "hls_subfile": m3u8(f"subfile,,start,0,end,0,,:{target}"),
        "hls_crypto": m3u8(f"crypto+file:{target}"),
        "hls_master": f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{web}\n",
        "dash": mpd(f"file://{target}"),
        "dash_relative": mpd("../outside/secret.mp4"),
        "dash_web": mpd(web),
        "dash_entity": mpd("&x;", f'<!DOCTYPE MPD [<!ENTITY x SYSTEM "file://{text}">]>'),
        "dash_laughs": mpd("&j;", f'<!DOCTYPE MPD [<!ENTITY a "aaaaaaaaaaaaaaaa">{laughs}]>'),
        "concat": f"ffconcat version 1.0\nfile '{target}'\n",
        "concat_unsafe": f"ffconcat version 1.0\noption safe 0\nfile '{target}'\n",
        "concat_web": f"ffconcat version 1.0\nfile {web}\n",
        "concat_inner": "ffconcat version 1.0\nfile inner.mp4\n",
        "concat_data": "ffconcat version 1.0\nfile data:video/mp4;base64,AAAA\n",
        "sdp": f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "ram": f"rtsp://127.0.0.1:{port}/x\n",
        "asf_reference": f"[Reference]\nRef1={web}\n",
        "asx": f'<asx version="3.0"><entry><ref href="{web}"/></entry></asx>',
        "pls": f"[playlist]\nFile1={web}\nNumberOfEntries=1\n",
        "vobsub": "# VobSub index file, v7\nid: en, index: 0\ntimestamp: 00:00:00:000, filepos: 000000000\n",
        "metadata": ";FFMETADATA1\ntitle=x\n",
        "text": text.read_text(),
        "imf": '<?xml version="1.0"?><CompositionPlaylist xmlns="http://www.smpte-ra.org/schemas/2067-3/2016"/>',
        "rtp": "rtp://127.0.0.1:1/",
        "m3u": f"{target}\n",
    }
    return found


NAMES = ("a.mp4", "a.m3u8?x.mp4")
STRANGE = [
    "hls.m3u8#.mp4",
    "img%d.gif",
    "img%03d.jpg",
    "*.mp4",
    "concat:inner.mp4|inner.mp4",
    "data:a.mp4",
    "a.sdp",
    "http:a.mp4",
]


def test_lists_of_other_files_are_never_opened(
    tmp_path: Path, outside: Path, listener: tuple[int, list[object]]
) -> None:
    """By name or by content, as a file or packed: 60 forms as files and 30 packed; no connection, no other file."""
    port, connections = listener
    shutil.copy(outside, tmp_path / "inner.mp4")
    lists = contents(outside, port)
    assert len(lists) * len(NAMES) >= 60
    for kind, text in lists.items():
        sources: list[Path | PackedVideo] = [PackedVideo(kind, (text.encode(),))]
        for name in NAMES:
            path = tmp_path / kind / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            sources.append(path)
        for source in sources:
            for read in (
                lambda source=source: read_clip(source, num_frames=1, image_size=16),
                lambda source=source: probe(source),
            ):
                with pytest.raises(VideoError):
                    read()
    assert not connections


@pytest.mark.parametrize("name", STRANGE)
def test_names_are_only_names(tmp_path: Path, outside: Path, name: str) -> None:
    """A video is read under any name; a pattern, a protocol or a list in its name means nothing."""
    path = tmp_path / name
    for number in range(3):
        (tmp_path / f"img{number}.gif").write_bytes(b"GIF89a")
    shutil.copy(outside, path)
    assert abs(int(read_clip(path, num_frames=1, image_size=16).frames[0, 0, 8, 8]) - SECRET_LEVEL) < 5
    path.write_bytes(b"")
    with pytest.raises(VideoError, match="empty"):
        read_clip(path, num_frames=1, image_size=16)


def test_a_list_says_that_it_is_none_of_ours(tmp_path: Path, outside: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_text(f"ffconcat version 1.0\nfile '{outside}'\n")
    with pytest.raises(VideoError, match="lists of files never are"):
        read_clip(path, num_frames=1, image_size=16)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VideoError, match="a pipe or a device"):
        read_clip(tmp_path / "pipe.mp4", num_frames=1, image_size=16)


# ---------------------------------------------------------------------------------------------------------------
# Times that went wrong


def stamped(path: Path, stamps: list[int], base: Fraction, *, codec: str = "mpeg4") -> Path:
    """A video of frames shown at `stamps` of `base` seconds, each of its own brightness."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.time_base = stream.time_base = base
        stream.codec_context.gop_size = 1
        if codec == "libx264":
            stream.options = {"bf": "0"}
        for number, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(
                np.full((64, 64, 3), 20 + 30 * number, np.uint8), format="rgb24"
            )
            frame.pts, frame.time_base = stamp, base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def streamed(path: Path) -> tuple[int, str]:
    """How many pictures come, and what is said at the end."""
    count = 0
    try:
        for _ in stream_frames(path, every_s=0.25, image_size=16):
            count += 1
    except VideoError as error:
        return count, error.reason
    return count, ""


def test_files_that_claim_months_are_refused(tmp_path: Path) -> None:
    path = stamped(tmp_path / "a.mkv", [0, 40, 10**10], Fraction(1, 1000))
    count, said = streamed(path)
    assert count == 0 and "hours, more than the 168 that are read" in said
    with pytest.raises(VideoError, match="it claims to last"):
        read_clip(path, num_frames=4, image_size=16)
    with pytest.raises(VideoError, match="it claims to last"):
        transcode(path, short_side=16)


def test_frames_held_for_hours_end_the_file(tmp_path: Path) -> None:
    path = stamped(tmp_path / "a.mkv", [0, 40, 80, 72_000_000, 72_000_040], Fraction(1, 1000))
    count, said = streamed(path)
    assert count <= 2 and "held for 20.0 hours" in said
    hours = [3_600_000 * number for number in range(8)]  # none too long, all together are
    count, said = streamed(stamped(tmp_path / "b.mkv", hours, Fraction(1, 1000)))
    assert count <= 4 * 3600 * 4 + 4 and "held for 5.0 hours in all" in said


def without_times(path: Path, out: Path, *, every: int = 1) -> Path:
    """The same packets, `every` of them at one time after another."""
    with av.open(str(path)) as old, av.open(str(out), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(packet for packet in old.demux(video=0) if packet.size):
            packet.pts = packet.dts = number // every * packet.duration
            packet.stream = stream
            new.mux(packet)
    return out


def test_frames_whose_times_are_lost_are_counted_by_the_headers_rate(tmp_path: Path) -> None:
    """As in files that a tool wrote without times: all sixty frames at 0 s."""
    path = tmp_path / "a.mp4"
    levels = torch.arange(20, 20 + 30 * 8, 30, dtype=torch.uint8)
    write_video(path, levels[:, None, None, None].expand(8, 3, 32, 32), fps=25)
    lost = without_times(path, tmp_path / "lost.mp4", every=8)
    assert (probe(lost).fps, probe(lost).duration_s) == (25, pytest.approx(0.32))
    whole, found = (read_clip(one, num_frames=8, image_size=16) for one in (path, lost))
    assert found.frames.equal(whole.frames)
    assert found.times_s.tolist() == pytest.approx(whole.times_s.tolist())
    assert streamed(lost) == (2, "")
    assert transcode(lost, short_side=16)[1].num_frames == 8


def test_frames_whose_times_are_lost_and_whose_rate_is_not_said_are_refused(tmp_path: Path) -> None:
    path = stamped(tmp_path / "a.mp4", [512 * n for n in range(8)], Fraction(1, 12_800), codec="mjpeg")
    lost = without_times(path, tmp_path / "lost.mp4", every=8)
    with pytest.raises(VideoError, match=r"its 8 frames have 1 different times .*ffmpeg -r RATE"):
        read_clip(lost, num_frames=4, image_size=16)
    assert "write it anew" in streamed(lost)[1]


def test_a_transport_stream_that_jumps_is_counted_on(tmp_path: Path) -> None:
    step, day = 3600, 90_000 * 3600 * 20
    path = stamped(
        tmp_path / "a.ts",
        [0, step, 2 * step, 3 * step, day, day + step],
        Fraction(1, 90_000),
        codec="libx264",
    )
    assert probe(path).duration_s == pytest.approx(0.24, abs=0.01)
    assert streamed(path) == (1, "")
    levels = read_clip(path, num_frames=6, image_size=16).frames.float().mean((1, 2, 3))
    assert (levels - torch.tensor([20.0 + 30 * number for number in range(6)])).abs().max() < 8
