"""Motion as the file tells it, on videos whose motion is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from harvest.data.motion_vectors import codec_change, of_tubelets, stream_motion
from harvest.data.video import VideoError, read_clip, write_pictures, write_video
from harvest.interfaces import Grid, HarvestError
from harvest.tokens import motion_keep

FRAMES = 12
GRID = Grid(num_times=4, num_places=16, tubelet_size=1, patch_size=16)


def moving(height: int = 64, width: int = 64, *, still: bool = False) -> torch.Tensor:
    """A textured square that moves right, two pixels a frame, within the middle square's second row of places."""
    generator = torch.Generator().manual_seed(0)
    # A flat background would fit vectors of any length, and encoders choose what is cheapest to write.
    background = torch.randint(0, 256, (3, height // 2, width // 2), generator=generator).byte()
    video = background.repeat_interleave(2, 1).repeat_interleave(2, 2)[None].repeat(FRAMES, 1, 1, 1)
    square = (
        torch.randint(0, 256, (3, 4, 4), generator=generator).repeat_interleave(4, 1).repeat_interleave(4, 2)
    )
    left, top = (width - min(height, width)) // 2, (height - min(height, width)) // 2
    for time in range(FRAMES):
        x = left + (0 if still else 2 * time)
        video[time, :, top + 16 : top + 32, x : x + 16] = square.byte()
    return video


def written(folder: Path, video: torch.Tensor, **settings: int) -> Path:
    write_video(folder / "clip.mp4", video, fps=10, **settings)
    return folder / "clip.mp4"


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 96), (96, 64)])
def test_what_moves_is_where_it_moves(height: int, width: int, tmp_path: Path) -> None:
    path = written(tmp_path, moving(height, width), key_every=99)
    clip = read_clip(path, num_frames=4, image_size=64)
    change = codec_change(path, clip.times_s, GRID).view(4, 4, 4)
    assert change.dtype == torch.float32 and (change >= 0).all()
    for time in range(4):
        assert int(change[time].sum(dim=1).argmax()) == 1  # the second row
        assert change[time, 1].sum() > 0.7 * change[time].sum() > 0
    # 6 pixels between two frames of the clip, more where the codec refers further back
    assert 2 < change.max() < 24
    keep = motion_keep(change.flatten()[None], 4, budget=4, random_share=0.0, generator=torch.Generator())
    assert (keep // 4 % 4 == 1).all()


def test_motion_along_a_video_adds_up_to_that_of_its_clips(tmp_path: Path) -> None:
    path = written(tmp_path, moving(), key_every=99)  # 1.2 s, 10 frames a second
    along = list(stream_motion(path, every_s=0.1, grid=GRID))
    assert len(along) == FRAMES and along[0] is None and all(part is not None for part in along[1:])
    assert (
        len(list(stream_motion(path, every_s=0.3, grid=GRID))) == 5
    )  # up to 0, 0.3, 0.6, 0.9 and to the end
    shown = [1, 4, 7, 10]
    times_s = torch.tensor(shown, dtype=torch.float64) / 10
    moved = np.zeros((4, 4, 4))
    for number in range(1, 4):
        moved[number] = sum(along[shown[number - 1] + 1 : shown[number] + 1])
    torch.testing.assert_close(of_tubelets(moved, GRID), codec_change(path, times_s, GRID))
    keys = written(tmp_path, moving(), key_every=1)
    assert all(part is None for part in stream_motion(keys, every_s=0.1, grid=GRID))


def test_tubelets_and_an_odd_last_frame(tmp_path: Path) -> None:
    path = written(tmp_path, moving(), key_every=99)
    times = read_clip(path, num_frames=3, image_size=64).times_s
    change = codec_change(path, times, GRID._replace(num_times=2, tubelet_size=2)).view(2, 16)
    frames = codec_change(path, times, GRID._replace(num_times=3)).view(3, 16)
    assert torch.equal(change[0], frames[:2].amax(dim=0)) and torch.equal(change[1], frames[2])


def test_a_still_video_does_not_move(tmp_path: Path) -> None:
    path = written(tmp_path, moving(still=True), key_every=99)
    try:
        change = codec_change(path, read_clip(path, num_frames=4, image_size=64).times_s, GRID)
    except VideoError as error:  # an encoder may leave out vectors that are all zero
        assert "no motion vectors" in str(error)
    else:
        assert change.max() < 0.5


def test_files_without_motion_vectors_say_so(tmp_path: Path) -> None:
    path = written(tmp_path, moving(), key_every=1)
    times = torch.tensor([0.1, 0.4, 0.7, 1.0])
    with pytest.raises(VideoError, match=r"no motion vectors between the frames of the clip \(codec h264\)"):
        codec_change(path, times, GRID)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, picture in enumerate(write_pictures(moving())):
        (folder / f"{number}.jpg").write_bytes(picture)
    with pytest.raises(VideoError, match="a folder of pictures has no motion vectors"):
        codec_change(folder, times, GRID)
    with pytest.raises(VideoError, match="no such file"):
        codec_change(tmp_path / "none.mp4", times, GRID)
    with pytest.raises(HarvestError, match="5 frames do not fit"):
        codec_change(path, torch.arange(5.0), GRID)
