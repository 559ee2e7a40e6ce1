from __future__ import annotations

import math

import pytest
import torch

from harvest.model.regions import region_features, roi_align


def bilinear(picture: torch.Tensor, y: float, x: float) -> float:
    """The value at a place in pixels, whose centres are at 0, 1, …; beyond the outermost centres those."""
    height, width = picture.shape
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = min(int(y), height - 2), min(int(x), width - 2)
    v, u = y - top, x - left
    corners = picture[top : top + 2, left : left + 2].double()
    return float(
        corners[0, 0] * (1 - v) * (1 - u)
        + corners[0, 1] * (1 - v) * u
        + corners[1, 0] * v * (1 - u)
        + corners[1, 1] * v * u
    )


@pytest.mark.parametrize("seed", range(4))
def test_roi_align_is_the_paper_written_out(seed: int) -> None:
    """He et al. 2017 with `aligned=True`: boxes in pixels, less half a pixel; mean of the points of each cell."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(2, 3, 6, 8, generator=generator)
    low = torch.rand(5, 2, generator=generator) * 0.6
    boxes = torch.cat([low, low + 0.05 + 0.34 * torch.rand(5, 2, generator=generator)], dim=1)
    boxes[0] = torch.tensor([0.0, 0.0, 1.0, 1.0])
    owner = torch.tensor([0, 1, 1, 0, 1])
    found = roi_align(maps, boxes, owner, size=3, samples=2)
    for r, (left, top, right, bottom) in enumerate(boxes.tolist()):
        x0, y0 = left * 8 - 0.5, top * 6 - 0.5
        cell_w, cell_h = (right - left) * 8 / 3, (bottom - top) * 6 / 3
        for c in range(3):
            for i in range(3):
                for j in range(3):
                    points = [
                        bilinear(maps[owner[r], c], y0 + (i + v) * cell_h, x0 + (j + u) * cell_w)
                        for v in (0.25, 0.75)
                        for u in (0.25, 0.75)
                    ]
                    assert float(found[r, c, i, j]) == pytest.approx(sum(points) / 4, abs=1e-5)


def test_gradients_reach_the_map_under_the_box_alone() -> None:
    maps = torch.randn(1, 1, 8, 8, requires_grad=True)
    roi_align(maps, torch.tensor([[0.0, 0.0, 0.5, 0.5]]), torch.tensor([0])).sum().backward()
    assert maps.grad[0, 0, :4, :4].all() and not maps.grad[0, 0, 5:, 5:].any()


def test_a_region_is_read_from_its_places_at_all_times() -> None:
    tokens = torch.zeros(2, 2 * 16, 3)  # two times of 4 x 4 places
    tokens[1, [5, 16 + 5], 2] = torch.tensor([2.0, 6.0])  # row 1, column 1
    boxes = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.75, 0.75, 1.0, 1.0], [0.25, 0.25, 0.5, 0.5]])
    found = region_features(tokens, 16, boxes, torch.tensor([1, 1, 0]))
    assert (
        found[0].tolist()[:2] == [0, 0] and 3.4 < float(found[0, 2]) <= 4.0
    )  # near the centre of that place
    assert not found[1].any() and not found[2].any()
    assert math.isclose(
        float(roi_align(torch.ones(1, 1, 4, 4), boxes[:1], torch.tensor([0])).mean()), 1.0, abs_tol=1e-6
    )
