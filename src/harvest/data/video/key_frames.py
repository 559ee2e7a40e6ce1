"""The frames of reading in order, by seeking to key frames and decoding little."""

from __future__ import annotations

from typing import Any

import av

from harvest.data.video.decoding import Shown
from harvest.data.video.frames import Fitting, shown_size
from harvest.data.video.opening import Timeline, packets_of
from harvest.plain_types import Pixels

# Codecs in which a frame nobody refers to changes nothing but itself. VP8, VP9 and AV1 adapt their entropy
# coding even on such frames, so none is skipped there.
_SKIPPABLE = {"h264", "hevc", "mpeg4", "mpeg2video", "mpeg1video", "h263", "vc1", "wmv3"}


class _Decline(Exception):
    """This file's timestamps do not allow reading by key frames."""


def read_by_key_frames(
    container: Any, stream: Any, timeline: Timeline, fitting: Fitting, targets: list[int]
) -> Shown | None:
    """The same frames as `read_in_order`, decoding little. None where the file has to be read in order."""
    try:
        return _KeyFrameReader(container, stream, timeline, fitting).read(targets)
    except _Decline:
        return None
    except av.error.FFmpegError:
        return None  # let the reading in order say whether it is the file or the seeking


class _KeyFrameReader:
    """State of one reading: the packets since the last seek, and the pictures found so far."""

    def __init__(self, container: Any, stream: Any, timeline: Timeline, fitting: Fitting) -> None:
        self.container, self.stream, self.codec = container, stream, stream.codec_context
        self.fitting = fitting
        self.can_skip = self.codec.name in _SKIPPABLE
        self.demuxer = timeline.packets or packets_of(container, stream)
        self.packets: list[Any] = []  # since the last seek, in decoding order
        self.newest: int | None = None  # decoding time of the last of them
        self.reorder = 0  # largest distance seen between decoding and presentation time
        self.is_at_end = False
        self.wanted: set[int] = set()  # timestamps within these packets
        self.pictures: dict[int, Pixels] = {}
        self.size: tuple[int, int] | None = None
        if not self._can_start_anywhere():
            raise _Decline

    def _can_start_anywhere(self) -> bool:
        # AVI has no presentation times: those of its packets are guesses, and its frames are counted in order.
        if self.container.format.name == "avi":
            return False
        # x264 once got 4:4:4 wrong; FFmpeg corrects it by the encoder's version, which it reads in the first
        # packet and forgets at a seek.
        return not (self.codec.name == "h264" and (self.codec.pix_fmt or "").startswith(("yuv444", "gbr")))

    def read(self, targets: list[int]) -> Shown:
        shown: list[int] = []
        for target in targets:
            if self._key_frame_lies_ahead(target):
                self._decode_wanted()
                self._seek(target)
            self._look_ahead(target)
            shown.append(self._shown_at(target))
            self.wanted.add(shown[-1])
        last = max((p for p in self.packets if not p.is_discard), key=lambda p: p.pts)
        self._decode_wanted()
        ended_at = last.pts + (last.duration or 0) if self.is_at_end else None
        return Shown(shown, [self.pictures[pts] for pts in shown], ended_at, self.size)

    def _key_frame_lies_ahead(self, target: int) -> bool:
        index = self.stream.index_entries
        if len(index) < 2 or self.is_at_end:
            return False
        place = index.search_timestamp(target - self.reorder, backward=True, any_frame=False)
        if place < 0:
            return False
        return bool(index[place].timestamp > (index[0].timestamp if self.newest is None else self.newest))

    def _seek(self, target: int) -> None:
        """To the last key frame shown at `target` or before. Indexes tell decoding times: one step more may be needed."""
        at = target
        for _ in range(4):
            self.container.seek(at, stream=self.stream, backward=True)
            self.demuxer = packets_of(self.container, self.stream)
            self.packets, self.newest, self.is_at_end = [], None, False
            self._look_ahead(target)
            if not self.packets:
                break
            first = self.packets[0]
            if first.pts <= target:
                return
            at = (first.pts if first.dts is None else first.dts) - 1
        raise _Decline

    def _look_ahead(self, target: int) -> None:
        """Take packets until no later one can be shown at `target`: presentation is never before decoding."""
        while not self.is_at_end and (self.newest is None or self.newest <= target):
            packet = next(self.demuxer, None)
            if packet is None or (packet.size == 0 and packet.dts is None):
                self.is_at_end = True
                return
            pts, dts = packet.pts, packet.dts
            if pts is None or (not self.packets and not packet.is_keyframe):
                raise _Decline
            self.packets.append(packet)
            if dts is None and self.newest is None:
                continue  # Matroska stores no decoding times: the first ones are unknown
            if dts is None or pts < dts or (self.newest is not None and dts < self.newest):
                raise _Decline
            self.reorder = max(self.reorder, pts - dts)
            self.newest = dts

    def _shown_at(self, target: int) -> int:
        stamps = [packet.pts for packet in self.packets if not packet.is_discard]
        if not stamps:
            raise _Decline
        before = [pts for pts in stamps if pts <= target]
        return max(before) if before else min(stamps)

    def _decode_wanted(self) -> None:
        """Decode, of the packets since the last seek, the groups that hold a wanted frame, each up to its last one."""
        groups: list[list[Any]] = []
        for packet in self.packets:
            if packet.is_keyframe:
                groups.append([])
            groups[-1].append(packet)
        place = 0
        while place < len(groups):
            if not any(packet.pts in self.wanted for packet in groups[place]):
                leads = place + 1 < len(groups) and self._wants_leading(groups[place + 1])
                if not leads:
                    place += 1
                    continue
            run = list(groups[place])
            # a frame shown before its key frame refers to the group before: both are decoded in one go
            while place + 1 < len(groups) and self._wants_leading(groups[place + 1]):
                place += 1
                run += groups[place]
            place += 1
            self._decode(run)
        if not self.wanted <= self.pictures.keys():
            raise _Decline
        self.wanted = set()

    def _wants_leading(self, group: list[Any]) -> bool:
        return any(packet.pts < group[0].pts and packet.pts in self.wanted for packet in group)

    def _decode(self, run: list[Any]) -> None:
        end = max(place for place, packet in enumerate(run) if packet.pts in self.wanted) + 1
        for packet in run[:end]:
            if self.can_skip:
                self.codec.skip_frame = "DEFAULT" if packet.pts in self.wanted else "NONREF"
            self._keep(self.codec.decode(packet))
        self._keep(self.codec.decode(None))
        self.codec.flush_buffers()

    def _keep(self, frames: list[Any]) -> None:
        for frame in frames:
            if frame.pts in self.wanted and frame.pts not in self.pictures:
                if frame.is_corrupt:
                    raise _Decline
                self.pictures[frame.pts] = self.fitting.picture_of(frame, self.stream)
                self.size = self.size or shown_size(frame, self.stream)
