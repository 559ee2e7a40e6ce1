"""One training loop for every objective: read it top to bottom.

The state of a run is its weights, the optimizer's moments and one integer, the step. Learning rate, sample order,
dropping, masking and crops are functions of (seed, step, rank) or (seed, epoch, sample), so a run that was stopped,
or killed at any moment, goes on to the bit.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from harvest.config import ObjectiveConfig, RunConfig, differences, read_config, to_json
from harvest.data.dataset import ClipDataset, DataConfig, Refused
from harvest.data.labels import (
    answered,
    boxed,
    check_equally_many,
    class_names_of,
    frequent_answers,
    labelled,
    read_answers,
    read_class_names,
)
from harvest.data.loader import TrainLoader
from harvest.data.manifest import boxed_example, read_manifest, with_unique_ids
from harvest.data.miniworld import MiniWorld, acting_rows, write_miniworld
from harvest.data.mixing import MixedLoader
from harvest.data.read_once import eval_batches
from harvest.data.shards import ShardSet, are_shards, read_shards
from harvest.files import PART, write_file
from harvest.interfaces import Batch, Example, HarvestError, RunStopped
from harvest.machine import keep_memory
from harvest.model.adaptation import merge
from harvest.model.folder import save_model
from harvest.model.inflation import blend
from harvest.model.prompt import QuestionTokenizer
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_text import VideoTextModel, compile_blocks
from harvest.objectives import teacher_cache
from harvest.objectives.answer_decoding import AnswerDecodingConfig
from harvest.objectives.classification import ClassificationConfig
from harvest.objectives.detection import DetectionConfig
from harvest.objectives.image_text import ImageTextConfig
from harvest.objectives.masked_alignment import MaskedAlignment, MaskedAlignmentConfig, is_guided
from harvest.objectives.multimodal import Multimodal, MultimodalConfig
from harvest.objectives.multiple_choice import MultipleChoiceConfig
from harvest.objectives.pixel_reconstruction import PixelReconstructionConfig
from harvest.objectives.post_pretraining import PostPretraining
from harvest.objectives.question_answering import QuestionAnsweringConfig
from harvest.parallel import (
    World,
    any_rank,
    autocast,
    barrier,
    clip_gradients,
    computed_in,
    full_state,
    is_sharded,
    mean_over_ranks,
    merge_over_ranks,
    shard,
    sync_errors,
    world,
    wrap,
)
from harvest.progress import bar, say
from harvest.tokens import Selection, choose, choose_equally
from harvest.training.average import WeightAverage
from harvest.training.checkpoint import CheckpointWriter, load_checkpoint
from harvest.training.log import RunLog
from harvest.training.optim import build_optimizer, lr_at, set_lr
from harvest.training.start import build_objective, needs_captions, start_model
from harvest.training.vary import show_frames, show_size

Loader = TrainLoader | MixedLoader


def train(config: RunConfig, run: Path) -> Path:
    """Run `config` in folder `run`, going on from its newest checkpoint; returns the model folder, `run/model`.

    Writes config.json, metrics.jsonl, tensorboard/, checkpoints/ and, where videos were broken, broken.json.
    Raises HarvestError for a folder that holds another run, a non-finite loss, or a disk that is full.
    """
    with world() as here, stop_signals() as stop:
        _claim(run, config, here)
        if config.loop.threads is not None:
            torch.set_num_threads(config.loop.threads)
        if here.device.type == "cpu":
            keep_memory()
        if computed_in(here.device, config.loop.precision) != config.loop.precision:
            say("this CPU has no bf16 instructions: computing in fp32, which is faster here")
        dataset, pictures, captions, model, tokenizer, image_model, names = prepare(config, run, here)
        if config.blend < 1 and image_model is None:
            raise HarvestError("blend needs an image model to blend with: this run does not start from one")
        _check_budgets(config, model)
        built = partial(
            build_objective,
            config,
            names=names,
            tokenizer=tokenizer,
            several=dataset.labels.ndim > 1,
            clips=_boxed_clips(config, dataset),
        )
        objective = built(model).to(here.device)
        if config.loop.compile:
            compile_blocks(model)
            if isinstance(objective, MaskedAlignment | Multimodal) and objective.teaching is not None:
                compile_blocks(objective.teaching.teacher)
        model.video.checkpointing = config.loop.checkpointing
        if config.loop.parallel == "fsdp":
            _cache_texts(objective, dataset, tokenizer, here)  # while the text tower is whole
            shard(objective, here)
        optimizer = build_optimizer(objective, config.optim)
        decay = config.loop.average_decay
        average = None if decay is None else WeightAverage(objective, decay=decay)
        first_step = load_checkpoint(run, objective=objective, optimizer=optimizer, average=average) or 0
        if config.loop.parallel == "ddp":
            _cache_texts(objective, dataset, tokenizer, here)
        _cache_teacher(config, objective, dataset, here)
        train_step = wrap(objective, here)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]

        def save(step: int) -> None:
            checkpoints.save(step, objective=objective, optimizer=optimizer, average=average)
            _write_broken(run, loader, here)

        objective.train()
        with bar("decoding clips", quiet=not here.is_main) as progress:
            loader = _loader(dataset, pictures)(
                global_batch=config.global_batches,
                rank=here.rank,
                world=here.size,
                first_step=first_step,
                progress=progress,
                refused=_read_broken(run),
                device=here.device,
            )
            batches = _on_device(loader, here)
            step, batch = first_step, next(batches)
        with (
            RunLog(run, first_step=first_step, steps=config.total_steps, is_main=here.is_main) as log,
            CheckpointWriter(run, keep_last=config.loop.keep_last) as checkpoints,
        ):
            since, waited, clips = time.perf_counter(), 0.0, 0
            while step < config.total_steps:
                objective.selection = config.selection_at(step)
                lr = lr_of(step, config)
                set_lr(optimizer, lr)
                with autocast(here.device, config.loop.precision):
                    shown = show_frames(batch, config.num_frames_at(step))
                    losses = train_step(show_size(shown, config.image_size_at(step)), step)
                losses.total.backward()
                if config.optim.max_grad_norm is not None:
                    clip_gradients(parameters, config.optim.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                if average is not None:
                    average.update()
                step, clips = step + 1, clips + loader.batch_at(step)

                is_last = step == config.total_steps
                is_stop = any_rank(stop.asked or checkpoints.failed, here.device)
                if (
                    step % config.loop.log_every == 0
                    or step % config.loop.save_every == 0
                    or is_last
                    or is_stop
                ):
                    numbers = _numbers(losses.total.detach(), losses.parts, step)
                    seconds = time.perf_counter() - since
                    log.write(
                        step,
                        numbers
                        | {"lr": lr, "clips_per_s": clips / seconds, "waiting": waited / seconds}
                        | {"broken": float(len(loader.broken)), "broken_ratio": loader.broken_ratio}
                        | {"truncated": float(loader.truncated)},
                    )
                    since, waited, clips = time.perf_counter(), 0.0, 0
                log.advance(step)
                if step % config.loop.save_every == 0 or is_last or is_stop:
                    save(step)  # or raise what went wrong with the one before
                if is_stop and not is_last:
                    checkpoints.wait()
                    raise RunStopped(
                        f"stopped at step {step} of {config.total_steps} and saved; the same command goes on"
                    )
                if not is_last:
                    before = time.perf_counter()
                    batch = next(batches)
                    waited += time.perf_counter() - before
        with average.in_place() if average is not None else nullcontext():
            whole = full_state(objective) if is_sharded(objective) else None
            with sync_errors():
                if here.is_main:
                    if whole is not None:  # a module cannot leave its shards: build it anew
                        objective = built(start_model(config, captions)[0])
                        objective.load_state_dict(whole)
                    _finish(run, config, objective, tokenizer, image_model, loader)
    return run / "model"


# ---- what the loop needs before its first step -------------------------------------------------------------------


class Prepared(NamedTuple):
    """What a run needs before its first step."""

    dataset: ClipDataset
    pictures: ClipDataset | None  # mixed into the run
    captions: list[str]  # what the model starts from; none where it needs none
    model: VideoTextModel
    tokenizer: Tokenizer | None  # None where there is no text tower
    image_model: VideoTextModel | None  # what the model was made from; None from scratch
    names: list[str]  # what a head is to tell apart; none where there is no head


def prepare(config: RunConfig, run: Path, here: World) -> Prepared:
    """Read the training set, build or open the model, and number what a head is to learn."""
    if not config.data.train:
        raise HarvestError(
            "nothing to train on: give a manifest with --data.train FILE (.jsonl, .csv or .parquet)"
        )
    examples, listed = _rows(config, run, here, config.data.train)
    names: list[str] = []
    if isinstance(examples, list):
        if config.data.more:
            further = [row for manifest in config.data.more for row in read_manifest(manifest)]
            examples = with_unique_ids([*examples, *further])
        examples, names = _numbered(config.objective, examples, listed)
    elif isinstance(config.objective, ClassificationConfig):
        names = _classes_of_shards(config.objective, examples)
    pictures = _rows(config, run, here, config.data.images)[0] if config.data.images else []
    captions: list[str] = []
    if needs_captions(config):
        captions = [text for rows in (examples, pictures) for example in rows for text in example.texts]
    model, tokenizer, image_model = start_model(config, captions)
    encode_text: Any = tokenizer
    if isinstance(config.objective, QuestionAnsweringConfig) and tokenizer is not None:
        encode_text = QuestionTokenizer(model.config.text_tower, tokenizer)

    def dataset(rows: Sequence[Example], data: DataConfig) -> ClipDataset:
        return ClipDataset(
            rows,
            data,
            image_size=model.config.video.image_size,
            encode_text=encode_text,
            seed=config.loop.seed,
        )

    return Prepared(
        dataset(examples, config.data),
        dataset(pictures, dataclasses.replace(config.data, num_frames=1)) if pictures else None,
        captions,
        model,
        tokenizer,
        image_model,
        names,
    )


def _loader(videos: ClipDataset, pictures: ClipDataset | None) -> Callable[..., Loader]:
    if pictures is None:
        return partial(TrainLoader, videos)
    return partial(MixedLoader, videos, pictures, share=videos.config.image_ratio)


def _rows(
    config: RunConfig, run: Path, here: World, name: str
) -> tuple[list[Example] | ShardSet, Path | None]:
    """The rows of a manifest, of shards, or of a part of the mini-world (`mini-world/stills`, …) and its classes."""
    if are_shards(name):
        return _open_shards(config, here, name), None
    if name.split("/")[0] != "mini-world":
        videos = Path(config.data.videos) if config.data.videos else None
        return read_manifest(Path(name), videos=videos), None
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
    of_tasks = (
        DetectionConfig,
        QuestionAnsweringConfig,
        AnswerDecodingConfig,
        MultipleChoiceConfig,
    )
    if isinstance(config.objective, of_tasks):
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


def _classes_of_shards(objective: ClassificationConfig, shards: ShardSet) -> list[str]:
    """The names of the classes, which fit the labels that the shards' indexes tell."""
    if objective.classes is None:
        raise HarvestError(
            "classification from shards needs the classes' names in the order of their labels: --objective.classes FILE"
        )
    names = read_class_names(objective.classes)
    wrong = (shards.labels < 0) | (shards.labels >= len(names))
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise HarvestError(
            f"{int(wrong.sum())} of {len(shards)} samples of the shards have no label from 0 to {len(names) - 1}; first:"
            f" {shards.id_of(first)} ({int(shards.labels[first])}): prepare them from a manifest of labelled rows, or"
            " give all the classes"
        )
    return names


def _numbered(
    objective: ObjectiveConfig, examples: list[Example], listed: Path | None
) -> tuple[list[Example], list[str]]:
    """The rows a head can learn from, and the names of its classes."""
    if isinstance(objective, (QuestionAnsweringConfig, AnswerDecodingConfig)):
        if objective.answers is not None:
            names = read_answers(objective.answers)
        else:
            names = frequent_answers(examples, objective.num_answers)
        rows = answered(examples, names)
        if len(rows) < len(examples):
            say(
                f"the answers of {len(examples) - len(rows)} of {len(examples)} questions are not among the "
                f"{len(names)}: they are left out of training"
            )
        return rows, names
    if isinstance(objective, DetectionConfig):
        path = objective.classes or listed
        if path is None:
            raise HarvestError(
                "detection needs the actions' names in the order of their labels: --objective.classes FILE"
            )
        names = read_class_names(path)
        return boxed(examples, len(names)), names
    if isinstance(objective, MultipleChoiceConfig):
        check_equally_many(examples)
        return examples, []
    if not isinstance(objective, ClassificationConfig):
        return examples, []
    if objective.classes is not None:
        names = read_class_names(objective.classes)
    else:
        names = class_names_of(examples) if listed is None else read_class_names(listed)
    rows = labelled(examples, len(names))
    if len(rows) < len(examples):
        say(f"{len(examples) - len(rows)} of {len(examples)} rows have no label and are left out")
    return rows, names


def _boxed_clips(config: RunConfig, dataset: ClipDataset) -> Sequence[Example]:
    """The clips of a training set with boxes, in the order of `Batch.example`."""
    if not isinstance(config.objective, DetectionConfig):
        return ()
    if config.data.crop != "squash" or config.data.flip:
        raise HarvestError(
            "boxes are shares of whole pictures: detection needs --data.crop squash, and mirrors clips with their boxes"
            " itself (objective.flip, not data.flip)"
        )
    return list(dataset.examples)  # one row a clip, so the numbers of clips are those of rows


def _cache_texts(
    objective: nn.Module, dataset: ClipDataset, tokenizer: Tokenizer | None, here: World
) -> None:
    if not (isinstance(objective, PostPretraining) and objective.config.cache_texts) or tokenizer is None:
        return
    with bar("encoding captions", quiet=not here.is_main) as progress:
        objective.fill_text_cache(
            tokenizer(dataset.captions()).to(here.device), dataset.caption_clips().to(here.device), progress
        )


def _cache_teacher(config: RunConfig, objective: nn.Module, dataset: ClipDataset, here: World) -> None:
    """Open the teacher's cache, after filling what it lacks; ranks share the work."""
    settings = config.objective
    if not isinstance(settings, MaskedAlignmentConfig) or settings.teacher_cache is None:
        return
    assert isinstance(objective, MaskedAlignment | Multimodal)
    teaching = objective.teaching
    assert teaching is not None  # the config says so
    if not isinstance(dataset.examples, list):
        raise HarvestError("objective.teacher_cache needs a manifest: shards have no order of clips to keep")
    folder, size = Path(settings.teacher_cache), objective.model.config.video.image_size
    shape = (1, config.data.num_frames, 3, size, size)
    grid = objective.model.grid(torch.empty(shape, dtype=torch.uint8, device="meta"))
    firsts: dict[int, Example] = {}
    for example, clip in zip(dataset.examples, dataset.clip_of.tolist(), strict=True):
        firsts.setdefault(clip, example)
    clips = [firsts[clip] for clip in range(len(firsts))]
    made_of = teacher_cache.describe(
        teaching,
        grid,
        share=settings.teacher_cache_ratio,
        stored=settings.teacher_cache_type,
        crop=config.data.crop,
        clips=[f"{clip.video} {clip.start_s} {clip.end_s}" for clip in clips],
        seed=config.loop.seed,
    )
    if not (folder / "cache.json").exists():
        with sync_errors():
            if here.is_main:
                teacher_cache.begin(folder, made_of)

        def batches(start: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            some = clips[start : start + teacher_cache.CLIPS_A_SHARD]
            for numbers, video in eval_batches(
                some,
                num_frames=config.data.num_frames,
                image_size=size,
                batch_size=32,
                workers=config.data.workers,
                crop=config.data.crop,
            ):
                yield numbers + start, video

        starts = range(0, len(clips), teacher_cache.CLIPS_A_SHARD)
        mine = [(n, partial(batches, start)) for n, start in enumerate(starts) if n % here.size == here.rank]
        with (
            bar("the teacher looks", quiet=not here.is_main) as progress,
            autocast(here.device, config.loop.precision),
        ):
            teacher_cache.fill(
                folder,
                teaching,
                mine,
                grid,
                share=settings.teacher_cache_ratio,
                stored=settings.teacher_cache_type,
                seed=config.loop.seed,
                device=here.device,
                progress=lambda done: progress(min(done * here.size, len(clips)), len(clips)),
            )
        barrier()
        if here.is_main:
            teacher_cache.finish(folder, made_of)
        barrier()
    teaching.cache = teacher_cache.TeacherCache(folder, made_of=made_of)


def _claim(run: Path, config: RunConfig, here: World) -> None:
    """Write config.json into a new run folder, or see that the folder holds this very run."""
    path = run / "config.json"
    if path.exists():
        other = differences(read_config(path), config)
        if other:
            raise HarvestError(
                f"{run} holds another run; it differs in\n  " + "\n  ".join(other) + "\n"
                "Give another folder with --out, or remove this one to start afresh."
            )
    elif run.is_file():
        raise HarvestError(f"{run} is a file: give a folder with --out")
    elif run.exists() and any(inside.suffix != PART for inside in run.iterdir()):
        raise HarvestError(f"{run} is not empty and holds no run: give another folder with --out")
    barrier()  # nobody may find the files that the main rank writes now
    with sync_errors():
        if here.is_main:
            try:
                write_file(path, to_json(config))
            except OSError as error:
                raise HarvestError(f"cannot write into {run}: {error.strerror}") from error


def _check_budgets(config: RunConfig, model: VideoTextModel) -> None:
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
    if isinstance(config.objective, ImageTextConfig):  # it looks at one of them
        frames = last = (1,)
    main = config.selection_at(0)
    for num_frames, size in itertools.product(frames, (*config.vary.image_sizes, own)):
        for budget in config.vary.budgets or (main.budget,):
            _check_selection(config, model, dataclasses.replace(main, budget=budget), num_frames, size)
    if config.tuning.steps:
        for num_frames in last:
            _check_selection(config, model, config.selection_at(config.loop.steps), num_frames, own)


def _check_selection(
    config: RunConfig, model: VideoTextModel, selection: Selection, num_frames: int, size: int
) -> None:
    """See that the objective can train on what is seen of a clip, by choosing it of a black one."""
    objective, tower = config.objective, model.config.video
    if isinstance(objective, DetectionConfig):  # sees all in any case
        return
    video = torch.zeros(1, num_frames, 3, size, size, dtype=torch.uint8)
    grid = model.grid(video)
    if isinstance(objective, MultimodalConfig):
        selection = objective.selection_for(selection, grid)
        has_look = objective.needs_teacher
    elif isinstance(objective, MaskedAlignmentConfig):
        has_look = True
    elif isinstance(objective, ImageTextConfig | AnswerDecodingConfig | PixelReconstructionConfig):
        has_look = False
    else:  # `own_attention`
        has_look = tower.prefix != "none" or tower.pooling == "attention"
    is_equal = isinstance(objective, MaskedAlignmentConfig | PixelReconstructionConfig)
    keep = (choose_equally if is_equal else choose)(
        selection,
        video,
        grid,
        generator=torch.Generator(),
        attention_fn=lambda: torch.ones(1, grid.num_tubelets) if has_look else None,
    )
    if isinstance(objective, PixelReconstructionConfig) and keep is None:
        raise HarvestError(
            f"pixel reconstruction needs hidden tubelets, and a stage of this run sees all {grid.num_tubelets}: lower"
            " vary.budgets, or hide more (drop_ratio)"
        )
    if not isinstance(objective, MaskedAlignmentConfig) or objective.teacher_cache is None:
        return
    aligns = not isinstance(objective, MultimodalConfig) or objective.alignment_weight > 0
    if grid.num_times == tower.num_times and (aligns or is_guided(selection, grid)):
        teacher_cache.check(
            selection, grid, num_stored=teacher_cache.num_stored(grid, objective.teacher_cache_ratio)
        )


# ---- small parts of a step ---------------------------------------------------------------------------------------


def lr_of(step: int, config: RunConfig) -> float:
    """The learning rate of a step of a run, that of its last stage included."""
    return lr_at(
        step,
        config=config.optim,
        steps=config.total_steps,
        tuning_from=config.loop.steps if config.tuning.steps else None,
        tuning_lr=config.tuning.lr,
    )


def _on_device(loader: Loader, here: World) -> Iterator[Batch]:
    for batch in loader:
        yield Batch(*(tensor.to(here.device, non_blocking=True) for tensor in batch))


def _numbers(total: torch.Tensor, parts: dict[str, torch.Tensor], step: int) -> dict[str, float]:
    numbers = {name: float(mean_over_ranks(value)) for name, value in {"loss": total, **parts}.items()}
    if not math.isfinite(numbers["loss"]):
        raise HarvestError(
            f"the loss is {numbers['loss']} at step {step} ({', '.join(f'{k} {v:.4g}' for k, v in numbers.items())}). "
            "The last checkpoint is from before. Lower --optim.lr, set --optim.max-grad-norm 1, or use "
            "--loop.precision fp32."
        )
    return numbers


@dataclass
class Stop:
    asked: bool = False


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Ctrl-C and SIGTERM ask the loop to finish its step and save; a second Ctrl-C ends at once."""
    stop = Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.asked = True
        say("finishing this step and saving; press Ctrl-C again to end at once")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _read_broken(run: Path) -> dict[str, Refused]:
    """What this run could not read before it was stopped: it stays left out, so that the order is the same again."""
    path = run / "broken.json"
    if not path.exists():
        return {}
    return {id: Refused(**why) for id, why in json.loads(path.read_text()).items()}


def _write_broken(run: Path, loader: Loader, here: World) -> None:
    """Add what this process and the others could not read to the run's broken.json, by id with its reason."""
    found = merge_over_ranks({id: (why.reason, why.position) for id, why in loader.broken.items()})
    with sync_errors():
        if here.is_main and found:
            known, path = _read_broken(run), run / "broken.json"
            for id, (reason, position) in found.items():
                known.setdefault(id, Refused(reason, position))
            write_file(path, json.dumps({id: why._asdict() for id, why in known.items()}, indent=1))


def _finish(
    run: Path,
    config: RunConfig,
    objective: nn.Module,
    tokenizer: Tokenizer | None,
    image_model: VideoTextModel | None,
    loader: Loader,
) -> None:
    """Write the model folder, blended with the image model if asked for, and the report of broken videos."""
    model = cast(VideoTextModel, objective.model)
    merge(model)
    if config.blend < 1:
        assert image_model is not None  # seen to before the first step
        blend(image_model.to(next(model.parameters()).device), model, video_ratio=config.blend)
    save_model(
        run / "model",
        model,
        tokenizer,
        head=getattr(objective, "head", None),
        notes={"recipe": config.recipe, "started_from": config.start.model},
    )
    if (run / "broken.json").exists():
        broken = json.loads((run / "broken.json").read_text())
        say(
            f"{len(broken)} of {len(loader.dataset)} videos could not be read; their places were taken by the "
            f"next in order. Names and reasons: {run / 'broken.json'}"
        )
    if loader.truncated and tokenizer is not None:
        say(
            f"{loader.truncated} captions were longer than {tokenizer.config.context_length} word pieces and were cut"
        )
