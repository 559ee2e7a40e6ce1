"""What a run needs before its first step: rows, model, tokenizer, and whether they go together."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from harvest.data.columns import columns_of_rows
from harvest.data.dataset import ClipDataset, DataConfig
from harvest.data.loader import TrainLoader
from harvest.data.manifest import boxed_example, read_manifest
from harvest.data.miniworld import MiniWorld, acting_rows, write_miniworld
from harvest.data.mixing import MixedLoader
from harvest.data.read_once import eval_batches
from harvest.data.shards import ShardSet, are_shards, read_shards
from harvest.interfaces import Example, HarvestError, Squares
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_text import VideoTextModel
from harvest.objectives.contract import Given, every_row
from harvest.parallel import World, sync_errors
from harvest.progress import bar, say
from harvest.tokens import Selection
from harvest.training.start import needs_captions, start_model

if TYPE_CHECKING:
    from harvest.config import RunConfig

Loader = TrainLoader | MixedLoader


class Prepared(NamedTuple):
    """What a run needs before its first step."""

    dataset: ClipDataset
    pictures: ClipDataset | None  # mixed into the run
    captions: list[str]  # what the model starts from; none where it needs none
    model: VideoTextModel
    tokenizer: Tokenizer | None  # None where there is no text tower
    image_model: VideoTextModel | None  # what the model was made from; None from scratch
    names: list[str]  # what a head is to tell apart; none where there is no head

    @property
    def given(self) -> Given:
        """What the objective is built with."""
        dataset = self.dataset
        return Given(self.names, dataset.labels.ndim > 1, self.tokenizer, dataset.examples)

    def loader(self, **settings: Any) -> Loader:
        """The loader of clips, and of pictures where they are mixed in."""
        if self.pictures is None:
            return TrainLoader(self.dataset, **settings)
        return MixedLoader(self.dataset, self.pictures, share=self.dataset.config.image_ratio, **settings)


def prepare(config: RunConfig, run: Path, here: World) -> Prepared:
    """Read the training set, build or open the model, and number what a head is to learn."""
    if not config.data.train:
        raise HarvestError(
            "nothing to train on: give a manifest with --data.train FILE (.jsonl, .csv or .parquet)"
        )
    needs = config.objective.needs
    if config.data.images and needs.rows is not every_row:
        raise HarvestError(
            "data.images brings pictures with captions alone, and this objective learns from the labels, boxes, answers or"
            " options of its rows: leave data.images out"
        )
    examples, listed = rows_of(config, run, here, config.data.train)
    if config.data.more and not isinstance(examples, ShardSet):
        further = (read_manifest(manifest) for manifest in config.data.more)
        examples = columns_of_rows(itertools.chain(examples, *further))
    examples, names = needs.rows(examples, listed)
    if isinstance(examples, list):  # of which some are left
        examples = columns_of_rows(examples)
    pictures = rows_of(config, run, here, config.data.images)[0] if config.data.images else []
    captions: list[str] = []
    if needs_captions(config):
        captions = [text for rows in (examples, pictures) for example in rows for text in example.texts]
    model, tokenizer, image_model = start_model(config, captions)
    if config.blend < 1 and image_model is None:
        raise HarvestError("blend needs an image model to blend with: this run does not start from one")
    encode_text = needs.texts(model.config, tokenizer) if tokenizer is not None and needs.text else None
    text = model.config.text

    def dataset(rows: Sequence[Example], data: DataConfig, class_names: Sequence[str] = ()) -> ClipDataset:
        return ClipDataset(
            rows,
            data,
            **model.config.video.squares,
            encode_text=encode_text,
            seed=config.loop.seed,
            hard_texts=needs.hard_texts,
            class_names=class_names,
            pad_id=None if text is None or text.pooling == "last" else text.pad_id,  # SigLIP reads padding
        )

    return Prepared(
        dataset(examples, config.data, names),
        dataset(pictures, dataclasses.replace(config.data, num_frames=1)) if pictures else None,
        captions,
        model,
        tokenizer,
        image_model,
        names,
    )


def read_clips(
    config: RunConfig, squares: Squares, rows: Sequence[Example]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches (numbers from 0 on, video) of some rows, as the run shows them when nothing is drawn."""
    data = config.data
    return eval_batches(
        rows,
        num_frames=data.num_frames,
        image_size=squares["image_size"],
        fit=data.fit or squares["fit"],
        interpolation=squares["interpolation"],
        batch_size=32,
        workers=data.workers,
    )


def rows_of(config: RunConfig, run: Path, here: World, name: str) -> tuple[Sequence[Example], Path | None]:
    """The rows of a manifest, of shards, or of a part of the mini-world (`mini-world/stills`, …) and its classes."""
    if are_shards(name):
        return _open_shards(config, here, name), None
    if name.split("/")[0] != "mini-world":
        videos = Path(config.data.videos) if config.data.videos else None
        form, columns = ("", ()) if name == config.data.images else (config.data.form, config.data.columns)
        read = partial(
            read_manifest,
            Path(name),
            videos=videos,
            captions_required=config.objective.needs.text,
            form=form,
            columns=columns,
        )
        with sync_errors():  # the first to read a large manifest keeps its columns for the others
            if here.is_main:
                found = read()
                say(found.summary())
        return found if here.is_main else read(), None
    parts = [f.name for f in dataclasses.fields(MiniWorld) if not f.init and f.name != "labels"]
    parts += ["acting", "acting_test"]
    part = name.partition("/")[2] or "train"
    if part not in parts:
        raise HarvestError(f"the mini-world has no part {part!r}; there are {', '.join(parts)}")
    folder = run.parent / f"mini-world-{config.world.train}-{config.world.seed}"
    with bar("drawing the mini-world", quiet=not here.is_main) as progress:
        with sync_errors():
            if here.is_main:
                write_miniworld(folder, config.world, progress=progress)
        made = write_miniworld(folder, config.world)  # the other ranks find it finished
    if part.startswith("acting"):  # who does what where: only detection asks for it
        rows = acting_rows(made, "train" if part == "acting" else "retrieval")
        return [boxed_example(row, made.folder) for row in rows], made.labels
    return read_manifest(getattr(made, part)), made.labels


def _open_shards(config: RunConfig, here: World, name: str) -> ShardSet:
    if config.data.more or config.data.videos:
        raise HarvestError(
            "data.more and data.videos belong to manifests: name all shards in data.train, as '{a,b}/shard-*.tar'"
        )
    if not config.objective.needs.from_shards:
        raise HarvestError(
            f"{name}: shards hold captions and labels, no boxes, questions or options: this task trains from a manifest,"
            " the one that the shards were prepared from"
        )
    with bar("opening shards", quiet=not here.is_main) as progress:
        shards = read_shards(name, progress=progress)
    if shards.left_out and here.is_main:
        first, reason = next(iter(shards.left_out.items()))
        say(f"{len(shards.left_out)} samples of the shards are left out; first: {first}: {reason}")
    return shards


def check_budgets(config: RunConfig, model: VideoTextModel) -> None:
    """See that every stage can train at every budget, number and size of frames, before the first step."""
    own, patch = model.config.video.image_size, model.config.video.patch_size
    for size in config.vary.image_sizes:
        if size > own or size % patch:
            raise HarvestError(
                f"vary.image_sizes: expected multiples of {patch}, the model's patches, up to its {own} pixels, got {size}"
            )
    last: tuple[int, ...] = (config.data.num_frames,)
    if config.data.images:
        last += (1,)
    frames = (*config.vary.num_frames, *last)
    if config.objective.needs.stills:  # it looks at one of them
        frames = last = (1,)

    def check(selection: Selection, num_frames: int, size: int) -> None:
        video = torch.zeros(1, num_frames, 3, size, size, dtype=torch.uint8)
        config.objective.needs.check_seen(selection, model, video)

    main = config.selection_at(0)
    for num_frames, size in itertools.product(frames, (*config.vary.image_sizes, own)):
        for budget in config.vary.budgets or (main.budget,):
            check(dataclasses.replace(main, budget=budget), num_frames, size)
    if config.tuning.steps:
        for num_frames in last:
            check(config.selection_at(config.loop.steps), num_frames, own)
