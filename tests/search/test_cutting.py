from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harvest.data.motion_vectors import codec_change
from harvest.data.video import VideoError, read_clip, stream_frames, write_video
from harvest.interfaces import Grid, HarvestError
from harvest.search.cutting import Cut, Cutting, Window, is_cut, windows
from harvest.tokens import Keep, tubelet_change


def scene(seed: int, num_frames: int) -> torch.Tensor:
    """A still background over which a bright square moves."""
    generator = torch.Generator().manual_seed(seed)
    ground = torch.randint(20, 200, (1, 3, 8, 8), generator=generator, dtype=torch.uint8)
    frames = ground.repeat_interleave(8, 2).repeat_interleave(8, 3).repeat(num_frames, 1, 1, 1)
    for number, frame in enumerate(frames):
        left = 2 + number % 40
        frame[:, 20:40, left : left + 20] = 250
    return frames


def cut_up(path: Path, cutting: Cutting, num_frames: int = 4) -> tuple[list[Window], Cut]:
    *found, end = windows(path, cutting, num_frames=num_frames, image_size=64)
    assert isinstance(end, Cut)
    assert all(isinstance(window, Window) for window in found)
    return found, end  # type: ignore[return-value]


@pytest.fixture(scope="module")
def three_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cut") / "three.mp4"
    write_video(path, torch.cat([scene(1, 24), scene(2, 16), scene(3, 88)]), fps=8)  # 3, 2 and 11 s
    return path


def test_shots_are_found_and_long_ones_become_windows(three_scenes: Path) -> None:
    found, end = cut_up(three_scenes, Cutting(window_s=4.0))
    spans = [(window.start_s, window.end_s) for window in found]
    assert spans[:2] == [(0.0, 3.0), (3.0, 5.0)]
    assert spans[2:] == [(5.0, 9.0), (7.0, 11.0), (9.0, 13.0), (11.0, 16.0)]  # half as long again at most
    assert end == Cut(16.0, None)


def test_windows_that_overlap_share_their_pictures(three_scenes: Path) -> None:
    found, _ = cut_up(three_scenes, Cutting(window_s=4.0))
    one, other = found[2].pictures, found[3].pictures
    assert [id(picture) for picture in one[2:]] == [id(picture) for picture in other[:2]]


def test_a_window_shows_what_a_clip_of_its_stretch_shows(three_scenes: Path) -> None:
    found, _ = cut_up(three_scenes, Cutting(window_s=4.0))
    whole = [window for window in found if window.end_s - window.start_s == 4.0]
    assert len(whole) == 3  # shots of other lengths show the nearest pictures that were taken
    for window in whole:
        clip = read_clip(
            three_scenes, num_frames=4, image_size=64, start_s=window.start_s, end_s=window.end_s
        )
        assert torch.equal(torch.stack(window.pictures), clip.frames)


def test_every_second_belongs_to_a_window(three_scenes: Path) -> None:
    for overlap in (0.0, 0.5, 0.8):
        found, end = cut_up(three_scenes, Cutting(window_s=2.0, overlap=overlap))
        covered = 0.0
        for window in found:
            assert window.start_s <= covered + 1e-9
            assert 0 < window.end_s - window.start_s <= 3.0 + 1e-9
            covered = max(covered, window.end_s)
        assert covered == end.duration_s


def test_movement_and_flashes_are_no_cuts() -> None:
    assert is_cut(40.0, around=(1.0, 2.0, 1.0))
    assert not is_cut(40.0, around=(1.0, 25.0, 1.0))  # everything moves
    assert not is_cut(60.0, around=(1.0, 1.0, 60.0))  # a flash: there and back
    assert not is_cut(3.0, around=(0.0, 0.0, 0.0))  # noise


def test_a_file_cut_short_gives_what_it_has(three_scenes: Path, tmp_path: Path) -> None:
    whole = three_scenes.read_bytes()
    path = tmp_path / "short.mp4"
    path.write_bytes(whole[: int(len(whole) * 0.6)])
    found, end = cut_up(path, Cutting(window_s=4.0))
    assert found and 0 < end.duration_s < 16
    assert end.damage is not None and "read only to" in end.damage


def test_a_file_that_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "text.mp4"
    path.write_text("not a video")
    with pytest.raises(VideoError):
        list(windows(path, Cutting(), num_frames=4, image_size=64))


@pytest.mark.parametrize("wrong", [{"window_s": 0.0}, {"overlap": 0.95}, {"num_frames": 0}, {"budget": 0}])
def test_settings_check_themselves(wrong: dict) -> None:
    with pytest.raises(HarvestError):
        Cutting(**wrong)


GRID = Grid(num_times=4, num_places=16, tubelet_size=1, patch_size=16)


def by_file(path: Path, keep: Keep) -> list[Window]:
    cutting = Cutting(window_s=4.0, budget=8, keep=keep)
    *found, end = windows(path, cutting, num_frames=4, image_size=64, grid=GRID)
    assert isinstance(end, Cut)
    return [window for window in found if isinstance(window, Window)]


def test_motion_vectors_of_a_window_are_those_of_its_clip(tmp_path: Path) -> None:
    path = tmp_path / "moving.mp4"
    write_video(path, scene(3, 96), fps=8, key_every=99)  # 12 s, one shot
    found = by_file(path, "codec")
    assert [window.start_s for window in found] == [0.0, 2.0, 4.0, 6.0]
    for window in found[:3]:
        clip = read_clip(path, num_frames=4, image_size=64, start_s=window.start_s, end_s=window.end_s)
        assert window.moved is not None and window.moved.max() > 1
        torch.testing.assert_close(window.moved, codec_change(path, clip.times_s, GRID))


def test_a_still_shot_is_indexed_and_a_file_without_motion_vectors_is_named(tmp_path: Path) -> None:
    still = scene(1, 1).expand(48, -1, -1, -1)
    write_video(tmp_path / "still_then.mp4", torch.cat([still, scene(3, 48)]), fps=8, key_every=99)
    write_video(tmp_path / "keys.mp4", scene(3, 48), fps=8, key_every=1)
    found = by_file(tmp_path / "still_then.mp4", "codec")
    assert found[0].moved is not None and found[0].moved.max() < found[-1].moved.max()  # type: ignore[union-attr]
    with pytest.raises(VideoError, match=r"keys.mp4.*no motion vectors in the file.*codec_or_motion"):
        by_file(tmp_path / "keys.mp4", "codec")
    for window in by_file(tmp_path / "keys.mp4", "codec_or_motion"):
        assert window.moved is not None
        shown = torch.stack(window.pictures)[None]
        torch.testing.assert_close(window.moved, tubelet_change(shown, GRID)[0])
    assert all(window.moved is None for window in by_file(tmp_path / "keys.mp4", "motion"))


def test_stream_frames_are_those_of_the_times(three_scenes: Path) -> None:
    from harvest.data.video import read_frames

    streamed = list(stream_frames(three_scenes, every_s=0.3, image_size=64))
    times = torch.tensor([time for time, _ in streamed], dtype=torch.float64)
    assert times[-1] < 16 <= times[-1] + 0.3
    wanted = read_frames(three_scenes, times, image_size=64).frames
    assert torch.equal(torch.stack([picture for _, picture in streamed]), wanted)
    finer = list(stream_frames(three_scenes, every_s=1 / 16, image_size=64))
    assert finer[2][1] is finer[3][1]  # one frame, shown at two of the times
