"""Evaluation on two processes gives the numbers of one, to the last digit, also where the last batch is small."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils._pytree import tree_leaves

from harvest.evaluation import evaluate
from harvest.evaluation.embed import embed_videos
from harvest.evaluation.probe import ProbeConfig, probe
from harvest.evaluation.result import Result
from harvest.evaluation.settings import EvalSettings
from harvest.evaluation.task import Task
from harvest.evaluation.tasks.classification import ClassificationTask
from harvest.evaluation.tasks.multiple_choice import MultipleChoiceTask
from harvest.evaluation.tasks.retrieval import RetrievalTask
from harvest.interfaces import Box, Example, HarvestError
from harvest.model.heads import BoxHead, HeadConfig, build_head
from harvest.model.joining import with_answers
from harvest.model.tokenizer import Tokenizer
from harvest.parallel import meet

from .conftest import SENTENCES, make_models

CLIPS = 7  # in batches of 2: two for each process, and the last of one clip


def rows(videos: list[str]) -> list[Example]:
    """Stretches of the clips, of which the third and the fourth, a whole batch, cannot be read."""
    boxes = (Box((0.0, 0.0, 0.5, 0.5), (0,)), Box((0.4, 0.3, 1.0, 1.0), (1,)))
    return [
        Example(
            id=f"row{n}",
            video="nowhere.mp4" if n in (2, 3) else videos[n % 4],
            texts=(SENTENCES[n % 4], SENTENCES[(n + 1) % 4] + " very"),
            start_s=0.0,
            end_s=0.4 + 0.1 * n,
            label=n % 2,
            question=f"Question: which colour? Answer: [mask] {n}",
            answer=("red", "blue")[n % 2],
            boxes=boxes,
        )
        for n in range(CLIPS)
    ]


def scores(tokenizer: Tokenizer, examples: list[Example]) -> dict[str, Any]:
    """Every way of scoring, as JSON values."""
    _, model = make_models(tokenizer, matches=True)
    saying, _ = with_answers(model)
    width = model.config.video.width
    torch.manual_seed(0)
    clip_head = build_head(HeadConfig("linear", ("a", "b"), width)).eval()
    box_head = BoxHead(HeadConfig("boxes", ("a", "b"), width, several=True)).eval()

    two = EvalSettings(batch_size=2)

    def asked(task: str | Task, settings: EvalSettings = two, **how: Any) -> Result:
        return evaluate(model, tokenizer, examples, task=task, settings=settings, **how)

    results = {
        "retrieval": asked(RetrievalTask(dual_softmax=True)),
        "image": asked("retrieval", replace(two, image=True)),
        "shuffled": asked("retrieval", frame_order="shuffled"),
        "choice": asked(MultipleChoiceTask(matching=True)),
        "reranked": asked(RetrievalTask(rerank_top_k=2)),
        "said": evaluate(saying, tokenizer, examples, task="qa", settings=two),
        "qa": asked("qa"),
        "masked_words": asked("masked_words"),
        "classification": asked(ClassificationTask(num_clips=2), head=clip_head, names=("a", "b")),
        "detection": asked("detection", head=box_head),
        "probe": probe(
            model, examples[:4], examples[4:], class_names=("a", "b"), config=ProbeConfig(batch_size=2)
        ),
    }
    return {name: json.loads(result.to_json()) for name, result in results.items()}


def on_a_rank(rank: int, size: int, folder: str, videos: list[str], tokenizer: Tokenizer) -> None:
    torch.set_num_threads(1)
    meet(dist.FileStore(f"{folder}/meet", size), rank, size)
    gather = dist.all_gather_object

    def without_tensors(parts: list[Any], item: Any) -> None:
        assert not any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(item)), "a tensor is pickled"
        gather(parts, item)

    dist.all_gather_object = without_tensors
    found = scores(tokenizer, rows(videos))
    model = make_models(tokenizer, matches=True)[1]
    held = embed_videos(model, rows(videos), batch_size=2, with_tokens=True)
    assert (
        held.tokens is not None and held.token_rows is not None and len(held.tokens) == len(held.token_rows)
    )
    found["held"] = held.token_rows.tolist()
    try:
        scores(tokenizer, rows(["nowhere.mp4"] * 4))
    except HarvestError as error:  # on every rank, or one would wait for ever
        found["broken"] = str(error)
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    os._exit(0)  # gloo's threads now and then abort a process that tears them down at its end


@pytest.fixture(scope="module")
def found(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer, videos: list[Path]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What one process finds, and what each of two does."""
    folder = tmp_path_factory.mktemp("ranks")
    paths = [str(path) for path in videos]
    mp.spawn(on_a_rank, args=(2, str(folder), paths, tokenizer), nprocs=2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = scores(tokenizer, rows(paths))
    torch.set_num_threads(threads)
    return alone, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


TASKS = (
    "retrieval",
    "image",
    "shuffled",
    "choice",
    "reranked",
    "said",
    "qa",
    "masked_words",
    "classification",
    "detection",
    "probe",
)


@pytest.mark.parametrize("task", TASKS)
def test_two_processes_find_what_one_finds(
    task: str, found: tuple[dict[str, Any], list[dict[str, Any]]]
) -> None:
    alone, together = found
    assert alone.keys() == set(TASKS)
    for rank in together:
        assert rank[task] == alone[task]  # metrics, intervals, counts, what is missing: all of it
    assert list(alone[task]["missing"]) == ([] if task == "probe" else ["row2", "row3"])


def test_what_fails_fails_everywhere(found: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    for rank in found[1]:
        assert "none of the 7 videos could be read" in rank["broken"]


def test_each_process_holds_the_tokens_of_its_own_clips(
    found: tuple[dict[str, Any], list[dict[str, Any]]],
) -> None:
    """And reads the pairs of those: each clip is held once."""
    first, second = (rank["held"] for rank in found[1])
    assert sorted(first + second) == list(range(CLIPS - 2))
    assert first and second
