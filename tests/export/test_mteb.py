"""A model in MTEB: its own mock tasks run, and rows get the vectors that `harvest.load` gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

import harvest

from .conftest import SENTENCES

mteb = pytest.importorskip("mteb")
mocks = pytest.importorskip("mteb.mocks")
datasets = pytest.importorskip("datasets")

from harvest.export.mteb import HarvestEncoder, encoder  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of the other libraries

TASKS = [
    *("MockVideoRetrievalT2V", "MockVideoRetrievalV2T", "MockVideoZeroshotClassificationTask"),
    *("MockVideoClassification", "MockVideoClusteringTask", "MockVideoPairClassificationTask"),
    *("MockAny2AnyRetrievalI2TTask", "MockRetrievalTask"),
]


@pytest.fixture(scope="module")
def small(video_model: Path) -> HarvestEncoder:
    return encoder(video_model, "user/small", device="cpu")


def vectors(model: HarvestEncoder, rows: datasets.Dataset, batch_size: int = 2) -> torch.Tensor:
    return model.encode(DataLoader(rows, batch_size=batch_size))


@pytest.mark.parametrize("task", TASKS)
def test_mock_tasks_run(small: HarvestEncoder, task: str) -> None:
    results = mteb.evaluate(
        small, getattr(mocks, task)(), cache=None, co2_tracker=False, show_progress_bar=False
    )
    assert (results.model_name, results.model_revision) == ("user/small", small.mteb_model_meta.revision)
    assert 0 <= results[0].get_score() <= 1


def test_rows_have_the_vectors_of_harvest(
    small: HarvestEncoder, video_model: Path, clips: list[Path], picture: Path
) -> None:
    own = harvest.load(video_model, device="cpu")
    files = [{"bytes": path.read_bytes(), "path": path.name} for path in clips]
    files[1] = {"bytes": None, "path": str(clips[1])}
    rows = datasets.Dataset.from_dict({"text": SENTENCES, "video": files, "image": [str(picture)] * 3})
    rows = rows.cast_column("video", datasets.Video()).cast_column("image", datasets.Image())
    texts, videos, pictures = own.embed_texts(SENTENCES), own.embed_videos(clips), own.embed_images([picture])
    close = torch.testing.assert_close
    close(vectors(small, rows.select_columns("text")), texts)
    close(vectors(small, rows.select_columns("video")), videos)
    close(vectors(small, rows.select_columns("image")), pictures.expand(3, -1), atol=1e-5, rtol=0)
    close(vectors(small, rows.select_columns(["text", "video"])), texts + videos)
    mixed = datasets.Dataset.from_dict({"text": [SENTENCES[0], None], "video": [None, str(clips[1])]})
    mixed = mixed.cast_column("video", datasets.Video())
    close(vectors(small, mixed), torch.stack([texts[0], videos[1]]))
    with pytest.raises(harvest.HarvestError, match="without audio"):
        vectors(small, rows.select_columns("text").add_column("audio", [0, 0, 0]))


def test_a_budget_is_kept_apart_in_results(
    video_model: Path, clips: list[Path], small: HarvestEncoder
) -> None:
    some = encoder(video_model, "user/small", budget=16, device="cpu")
    assert small.mteb_model_meta.experiment_name is None
    assert "16" in some.mteb_model_meta.experiment_name
    rows = datasets.Dataset.from_dict({"video": [str(clips[0])]}).cast_column("video", datasets.Video())
    expected = harvest.load(video_model, device="cpu").embed_videos(clips[:1], budget=16)
    torch.testing.assert_close(vectors(some, rows), expected)
    assert not torch.allclose(expected, vectors(small, rows), atol=1e-3)
    with pytest.raises(harvest.HarvestError, match="user/name"):
        encoder(video_model, "small")
