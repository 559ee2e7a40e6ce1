from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from harvest.data.video import VideoError, read_clip, write_video
from harvest.interfaces import HarvestError, Squares
from harvest.search.library.segmentation import Cut, Segmentation, Window, is_cut, windows

SQUARES: Squares = {"image_size": 64, "fit": "crop", "interpolation": "bicubic"}


def scene(seed: int, num_frames: int) -> torch.Tensor:
    """A still background over which a bright square moves."""
    generator = torch.Generator().manual_seed(seed)
    ground = torch.randint(20, 200, (1, 3, 8, 8), generator=generator, dtype=torch.uint8)
    frames = ground.repeat_interleave(8, 2).repeat_interleave(8, 3).repeat(num_frames, 1, 1, 1)
    for number, frame in enumerate(frames):
        left = 2 + number % 40
        frame[:, 20:40, left : left + 20] = 250
    return frames


def cut_up(path: Path, segmentation: Segmentation, num_frames: int = 4) -> tuple[list[Window], Cut]:
    *found, end = windows(path, segmentation, num_frames=num_frames, squares=SQUARES)
    assert isinstance(end, Cut)
    assert all(isinstance(window, Window) for window in found)
    return found, end  # type: ignore[return-value]


@pytest.fixture(scope="module")
def three_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cut") / "three.mp4"
    write_video(path, torch.cat([scene(1, 24), scene(2, 16), scene(3, 88)]), fps=8)  # 3, 2 and 11 s
    return path


def test_shots_are_found_and_long_ones_become_windows(three_scenes: Path) -> None:
    found, end = cut_up(three_scenes, Segmentation(window_s=4.0))
    spans = [(window.start_s, window.end_s) for window in found]
    assert spans[:2] == [(0.0, 3.0), (3.0, 5.0)]
    assert spans[2:] == [(5.0, 9.0), (7.0, 11.0), (9.0, 13.0), (11.0, 16.0)]  # half as long again at most
    assert end == Cut(16.0, 0.0, None)


def test_windows_that_overlap_share_their_pictures(three_scenes: Path) -> None:
    found, _ = cut_up(three_scenes, Segmentation(window_s=4.0))
    one, other = found[2].pictures, found[3].pictures
    assert [id(picture) for picture in one[2:]] == [id(picture) for picture in other[:2]]


def test_a_window_shows_what_a_clip_of_its_stretch_shows(three_scenes: Path) -> None:
    found, _ = cut_up(three_scenes, Segmentation(window_s=4.0))
    whole = [window for window in found if window.end_s - window.start_s == 4.0]
    assert len(whole) == 3  # shots of other lengths show the nearest pictures that were taken
    for window in whole:
        clip = read_clip(
            three_scenes, num_frames=4, image_size=64, start_s=window.start_s, end_s=window.end_s
        )
        assert np.array_equal(np.stack(window.pictures), clip.pixels)


def test_frames_by_the_second_are_seen_once(three_scenes: Path) -> None:
    """One for each second of a shot, from its middle; windows that overlap show the same."""
    found, end = cut_up(three_scenes, Segmentation(window_s=4.0, frames_per_s=1.0))
    spans = [(window.start_s, window.end_s) for window in found]
    assert spans == [(0.0, 3.0), (3.0, 5.0), (5.0, 9.0), (7.0, 11.0), (9.0, 13.0), (11.0, 16.0)]
    assert [len(window.pictures) for window in found] == [3, 2, 4, 4, 4, 5]
    assert len({id(picture) for window in found for picture in window.pictures}) == end.duration_s
    for window in found:
        clip = read_clip(
            three_scenes,
            num_frames=len(window.pictures),
            image_size=64,
            start_s=window.start_s,
            end_s=window.end_s,
        )
        assert np.array_equal(np.stack(window.pictures), clip.pixels)


@pytest.mark.parametrize(
    "settings", [{"window_s": 0.4}, {"window_s": 4.0, "overlap": 0.9}, {"window_s": 1.0}]
)
def test_every_window_has_a_frame(settings: dict, three_scenes: Path) -> None:
    for frames_per_s in (0.1, 1.0, 3.0):
        found, _ = cut_up(three_scenes, Segmentation(**settings, frames_per_s=frames_per_s))
        assert all(window.pictures for window in found)


def test_every_second_belongs_to_a_window(three_scenes: Path) -> None:
    for overlap in (0.0, 0.5, 0.8):
        found, end = cut_up(three_scenes, Segmentation(window_s=2.0, overlap=overlap))
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
    found, end = cut_up(path, Segmentation(window_s=4.0))
    assert found and 0 < end.duration_s < 16
    assert end.damage is not None and "read only to" in end.damage


def test_a_file_that_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "text.mp4"
    path.write_text("not a video")
    with pytest.raises(VideoError):
        list(windows(path, Segmentation(), num_frames=4, squares=SQUARES))


@pytest.mark.parametrize("wrong", [{"window_s": 0.0}, {"overlap": 0.95}, {"num_frames": 0}, {"budget": 0},
                                   {"frames_per_s": 0.0}, {"frames_per_s": 1.0, "num_frames": 4}])  # fmt: skip
def test_settings_check_themselves(wrong: dict) -> None:
    with pytest.raises(HarvestError):
        Segmentation(**wrong)
