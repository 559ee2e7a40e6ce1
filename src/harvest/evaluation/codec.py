"""How clips move by their files' own account, for keep codec: read beside the pixels, in a second pass over the file."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harvest.data.motion_vectors import codec_change
from harvest.data.rows import video_of
from harvest.data.video import VideoError, read_clip
from harvest.interfaces import Example, Grid
from harvest.tokens import tubelet_change


def clips_change(clips: Sequence[Example], video: Tensor, grid: Grid, *, or_motion: bool) -> Tensor:
    """How far each tubelet moves, fp32 `[B, N]`, of clips that are shown as `video` `[B, T, 3, H, W]`.

    With `or_motion` a file without motion vectors has the change of its pixels instead, in grey levels; without, it
    raises VideoError, which names the file.
    """
    rows = []
    for clip, shown in zip(clips, video, strict=True):
        try:
            file = video_of(clip.video)
            times_s = read_clip(
                file,
                num_frames=len(shown),
                image_size=shown.shape[-1],
                start_s=clip.start_s,
                end_s=clip.end_s,
            ).times_s
            rows.append(codec_change(file, times_s, grid))
        except VideoError:
            if not or_motion:
                raise
            rows.append(tubelet_change(shown[None], grid)[0].cpu())
    return torch.stack(rows).to(video.device)
