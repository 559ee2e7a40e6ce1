"""A library of videos on a machine without PyTorch: an ONNX export indexes, searches and serves it as PyTorch does."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import harvest
from harvest.interfaces import HarvestError
from harvest.search.library.segmentation import Segmentation

from .conftest import BUDGET, SENTENCES

for library in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(library)

from harvest.export.onnx import export_onnx  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of the exporter

WITHOUT = """
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name == "torch" else find(name, *rest)
from harvest.cli import main
sys.exit(main(sys.argv[1:]))
"""
TOLERANCE = 1e-4
BANK = [f"{what} {does}" for what in ("a purple ring", "an orange cross") for does in "abcdefghijklmnop"]


def command(*args: object) -> list[str]:
    """`harvest` in a process in which `import torch` raises."""
    return [sys.executable, "-c", WITHOUT, *map(str, args)]


def run(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*args), capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def background(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "background.txt"
    path.write_text("\n".join(BANK))
    return path


@pytest.fixture(scope="module")
def libraries(
    clips: list[Path],
    exported: Path,
    video_model: Path,
    background: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path]:
    """One that PyTorch indexed, and one that was indexed without it."""
    folder = tmp_path_factory.mktemp("libraries")
    plain, light = folder / "plain", folder / "light"
    cut = Segmentation(window_s=1.0, budget=BUDGET)
    settings = {"segmentation": cut, "background": BANK, "precision": "fp32"}  # as the export
    harvest.Index.build(clips, out=plain, model=video_model, **settings).close()
    made = run(
        *("index", *clips, "--out", light, "--model", exported, "--window-s", 1.0), "--background", background
    )
    assert made.returncode == 0, made.stderr
    return plain, light


def found(library: Path, *options: object) -> dict[str, Any]:
    answered = run("search", library, SENTENCES[0], "--json", *options)
    assert answered.returncode == 0, answered.stderr
    answer: dict[str, Any] = json.loads(answered.stdout)
    return answer


def test_scores_are_those_of_pytorch(libraries: tuple[Path, Path], exported: Path) -> None:
    plain, light = libraries
    with harvest.Index.open(plain) as index:
        expected = index.search(SENTENCES[0], k=20)
    moments = [hit.moment.id for hit in expected.hits]
    assert len(moments) >= 3
    for answer in (found(light, "-k", 20), found(plain, "-k", 20, "--model", exported)):
        hits = {hit["moment"]["id"]: hit for hit in answer["hits"]}
        assert hits.keys() == set(moments)
        for hit in expected.hits:
            assert hits[hit.moment.id]["score"] == pytest.approx(hit.score, abs=TOLERANCE)
        assert answer["hits"][0]["chance"] is not None


def test_a_library_made_without_pytorch_is_searched_and_extended_with_it(
    libraries: tuple[Path, Path], video_model: Path, picture: Path, exported: Path
) -> None:
    plain, light = libraries
    with harvest.Index.open(light, model=video_model) as index, harvest.Index.open(plain) as other:
        assert index._library.facts.segmentation == other._library.facts.segmentation
        ours, theirs = (one.search(SENTENCES[0], k=20) for one in (index, other))
        assert [h.score for h in ours.hits] == pytest.approx([h.score for h in theirs.hits], abs=TOLERANCE)
        expected = other.search(image=picture, k=20)
    seen = run("search", light, "--image", picture, "--json", "-k", 20)
    scores = [hit["score"] for hit in json.loads(seen.stdout)["hits"]]
    assert scores == pytest.approx([hit.score for hit in expected.hits], abs=TOLERANCE)


def test_serving(libraries: tuple[Path, Path]) -> None:
    with subprocess.Popen(
        command("serve", libraries[1], "--port", 0), stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip().partition(" at ")[2].partition("#")[0]
            body = json.dumps({"text": SENTENCES[0]}).encode()
            asked = urllib.request.Request(
                f"{address.rstrip('/')}/api/search", body, {"content-type": "application/json"}
            )
            with urllib.request.urlopen(asked, timeout=60) as answered:
                hit = json.load(answered)["hits"][0]
            with urllib.request.urlopen(
                f"{address.rstrip('/')}/api/videos/{hit['moment']['video']}/thumbnail", timeout=60
            ) as shown:
                assert shown.read(2) == b"\xff\xd8"
        finally:
            server.terminate()


def test_an_image_model_sees_each_picture_once(frame_model: Path, tmp_path: Path, clips: list[Path]) -> None:
    export_onnx(frame_model, tmp_path / "model")
    cut = Segmentation(window_s=1.0)
    vectors = []
    for number, model in enumerate((frame_model, tmp_path / "model")):
        with harvest.Index.build(
            clips,
            out=tmp_path / str(number),
            model=model,
            segmentation=cut,
            background=BANK,
            precision="fp32",
        ) as index:
            store = index._library.store
            vectors.append(np.concatenate([store.spans(video.id).vectors for video in index.videos()]))
    assert np.abs(vectors[0] - vectors[1]).max() <= TOLERANCE


def test_what_cannot_be_done_is_said(
    exported: Path, video_model: Path, libraries: tuple[Path, Path], clips: list[Path], tmp_path: Path
) -> None:
    for args, said in (
        (("train", "mini-ft-retrieval"), "harvest train needs PyTorch"),
        (("search", libraries[0], "a dog"), "needs PyTorch"),
        (("search", libraries[1], "a dog", "--rerank", 5), "re-ranking needs PyTorch"),
        (("index", *clips, "--out", tmp_path / "a", "--model", exported, "--precision", "bf16"), "precision"),
        (
            (
                "index",
                *clips,
                "--out",
                tmp_path / "b",
                "--model",
                exported,
                "--budget",
                9,
                "--selector",
                "tube",
            ),
            "selector",
        ),
    ):
        done = run(*args)
        assert done.returncode == 2 and said in done.stderr, (args, done.stderr)
        assert len(done.stderr.strip().splitlines()) == 1
    with pytest.raises(HarvestError, match="ONNX export"):
        harvest.load(exported)
