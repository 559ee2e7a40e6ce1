"""UMT stage 1 as an objective: what is trained, what is saved, what the teacher sees, and bad input."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from small import small_batch, small_model

from harvest.interfaces import HarvestError
from harvest.model.alignment import init_xavier, student_tower
from harvest.model.inflation import as_teacher
from harvest.model.layers import take
from harvest.model.video_encoder import VideoEncoder, VideoEncoderConfig
from harvest.model.video_text import ModelConfig, VideoTextModel
from harvest.objectives.losses import alignment
from harvest.objectives.masked_alignment import MaskedAlignment, MaskedAlignmentConfig
from harvest.objectives.seen import draw_drop_path_scale
from harvest.objectives.teaching import aligned_layers, by_frame, check_grids, is_guided
from harvest.recipes import RECIPES
from harvest.tokens import Selection, choose, random_keep
from harvest.training.optim import OptimConfig, build_optimizer

STUDENT = student_tower(
    image_size=16, patch_size=4, num_frames=4, width=24, depth=3, num_heads=2, mlp_width=48
)


def objective_of(student: VideoEncoderConfig = STUDENT, **settings: object) -> MaskedAlignment:
    image = small_model(fusion=False, num_frames=1)
    torch.manual_seed(0)
    model = VideoTextModel(ModelConfig(video=student, text=image.config.text))
    init_xavier(model.video.blocks)
    config = MaskedAlignmentConfig(**{"num_layers": 2, "drop_path": 0.0} | settings)
    return MaskedAlignment(config, model, as_teacher(image), seed=0)


def look(objective, video):
    """What the teacher computed before its last block and, where it guides, its attention."""
    grid = objective.model.grid(video)
    return objective.teaching.look(video, grid, attention=is_guided(objective.selection, grid))


def taught(objective, video, keep=None, **options):
    """The teacher's layers in its shared space."""
    return objective.teaching.targets(look(objective, video)[0], keep, **options)


def student(objective, video, keep):
    """The student's layers after their heads."""
    seen = objective.model.encode_video(video, keep, layers=objective.teaching.student_layers)
    return objective.teaching.heads(seen.layers, keep, objective.model.num_tubelets(video))


def chosen(objective, video, attention, generator):
    grid = objective.model.grid(video)
    return choose(objective.selection, video, grid, generator=generator, attention_fn=lambda: attention)


@pytest.mark.parametrize("keep", ["attention", "tube", "random"])
@pytest.mark.parametrize("loss", ["l2", "mse", "smooth_l1"])
def test_defect_2_every_choice_trains(keep: str, loss: str) -> None:
    """In the reference, tube and random masks die in the first step, and tube is the default."""
    objective = objective_of(selector=keep, loss=loss)
    optimizer = build_optimizer(objective, OptimConfig(lr=3e-3, weight_decay=0.05))
    batch = small_batch(4)
    first = None
    for _ in range(6):
        losses = objective(batch, 0)  # the same draws each time
        last = losses.total.item()
        first = last if first is None else first
        losses.total.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert last < first


def test_what_trains_and_what_is_saved() -> None:
    objective = objective_of()
    teacher_before = {k: t.clone() for k, t in objective.teaching.teacher.state_dict().items()}
    trained = {name for name, p in objective.named_parameters() if p.requires_grad}
    assert trained == {
        name for name, _ in objective.named_parameters() if name.startswith(("model.video.", "teaching."))
    }
    objective.train()
    objective(small_batch(2), 0).total.backward()
    assert {name for name, p in objective.named_parameters() if p.grad is not None} == trained
    assert not objective.teaching.teacher.training
    assert all(p.grad is None and not p.requires_grad for p in objective.teaching.teacher.parameters())
    assert len(objective.state_dict()) == len(list(objective.parameters()))
    assert all(torch.equal(t, teacher_before[k]) for k, t in objective.teaching.teacher.state_dict().items())


def test_the_teacher_moves_along() -> None:
    objective = objective_of().to(torch.float64)
    assert next(objective.teaching.teacher.parameters()).dtype == torch.float64


def test_a_step_is_a_function_of_seed_and_step() -> None:
    objective, batch = objective_of(drop_path=0.5), small_batch(3)
    assert objective(batch, 1).total == objective(batch, 1).total
    assert objective(batch, 1).total != objective(batch, 2).total
    state = torch.random.get_rng_state()
    objective(batch, 3)
    assert torch.equal(state, torch.random.get_rng_state())


def test_only_kept_tubelets_count() -> None:
    """By hand: the teacher at the kept places against the heads of the student there."""
    objective, batch = objective_of(selector="tube"), small_batch(2)
    video = batch.video
    layers, attention = look(objective, video)
    assert attention is None
    keep = chosen(objective, video, None, torch.Generator().manual_seed(5))
    assert keep.shape == (2, 4 * 4)
    with torch.no_grad():
        found = torch.stack(student(objective, video, keep))
    every, total = objective.teaching.targets(layers, None), 0.0
    for b in range(2):
        for place, n in enumerate(keep[b].tolist()):
            for k in range(2):
                cos = F.cosine_similarity(found[k, b, place], every[k][b, n], dim=0)
                total += float(2 - 2 * cos) / (2 * 2 * 16)
    targets = objective.teaching.targets(layers, keep)
    assert float(objective.teaching.distance(list(found), targets)) == pytest.approx(total, abs=1e-5)


def test_nothing_dropped_is_everything_aligned() -> None:
    objective = objective_of()
    objective.selection = Selection(drop_ratio=0.0)  # as the loop sets it for a last stage
    assert torch.isfinite(objective(small_batch(2), 0).total)


def test_a_batch_of_one_and_equal_clips() -> None:
    objective, batch = objective_of(), small_batch(3)
    one = type(batch)(*(tensor[:1] for tensor in batch))
    assert torch.isfinite(objective(one, 0).total)
    same = batch._replace(video=batch.video[:1].expand(3, -1, -1, -1, -1))
    assert torch.isfinite(objective(same, 0).total)


def test_defect_30_each_tower_has_its_own_pixels() -> None:
    """The reference gives the teacher the student's ImageNet mean and std."""
    objective, video = objective_of(), small_batch(2).video
    teacher = objective.teaching.teacher
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (teacher.config.pixel_mean, teacher.config.pixel_std))
    wanted = teacher((video.float() / 255 - mean) / std, layers=objective.teaching.teacher_layers)
    assert teacher.config.pixel_mean != objective.model.config.video.pixel_mean
    for found, layer in zip(taught(objective, video), wanted.layers, strict=True):
        torch.testing.assert_close(found, teacher.project(layer))


def test_tubelets_of_two_frames() -> None:
    objective = objective_of(dataclasses.replace(STUDENT, tubelet_size=2))
    video = small_batch(2).video
    layers = taught(objective, video)
    assert layers[0].shape == (2, 32, 12) and look(objective, video)[1].shape == (2, 32)
    torch.testing.assert_close(layers, taught(objective, video[:, ::2].repeat_interleave(2, dim=1)))
    assert torch.isfinite(objective(small_batch(2), 0).total)


@pytest.mark.parametrize(("size", "patch"), [(32, 8), (8, 2)])
def test_teacher_and_student_of_other_resolutions(size: int, patch: int) -> None:
    objective = objective_of(dataclasses.replace(STUDENT, image_size=size, patch_size=patch))
    video = torch.randint(256, (2, 4, 3, size, size), dtype=torch.uint8)
    losses = objective(small_batch(2)._replace(video=video), 0)
    assert torch.isfinite(losses.total)
    teacher = objective.teaching.teacher
    frames = F.interpolate(
        teacher.normalise(video).flatten(0, 1), size=(16, 16), mode="bicubic", antialias=False
    )
    wanted = teacher(frames.view(2, 4, 3, 16, 16), layers=(-1,)).layers[0]
    torch.testing.assert_close(taught(objective, video)[-1], teacher.project(wanted))


def test_grids_that_do_not_match_say_which_would() -> None:
    with pytest.raises(HarvestError) as error:
        objective_of(dataclasses.replace(STUDENT, image_size=224, patch_size=16, num_frames=1))
    assert "14 x 14 places (224 / 16) and 4 x 4 (16 / 4)" in str(error.value)
    assert "teacher_image_size 56" in str(error.value) and "image_size 64" in str(error.value)


@pytest.mark.parametrize(("name", "teacher_size", "teacher_patch"), [("b16", 224, 16), ("l16", 196, 14)])
def test_the_recipes_match_their_teachers(name: str, teacher_size: int, teacher_patch: int) -> None:
    config = RECIPES[f"umt-stage1-{name}"]()
    student = config.start.scratch.video
    check_grids(student.image_size, student.patch_size, teacher_size, teacher_patch)
    assert config.objective.teacher_image_size in (None, teacher_size)
    assert config.optim.lr == pytest.approx(1.5e-4 * 2048 / 256) and config.optim.betas == (0.9, 0.95)
    assert (config.objective.drop_ratio, config.objective.selector, config.objective.num_layers) == (
        0.8,
        "attention",
        6,
    )
    assert config.objective.drop_path == {"b16": 0.1, "l16": 0.2}[name]
    with torch.device("meta"):
        parameters = sum(p.numel() for p in VideoEncoder(student).parameters())
    assert parameters == {"b16": 85_637_376, "l16": 303_074_304}[name]  # as released


def test_a_teacher_without_class_token_guides_by_its_query() -> None:
    """SigLIP: the attention of its pooling head."""
    siglip = dataclasses.replace(
        STUDENT,
        pooling="attention",
        positions="factored",
        key_bias=True,
        attention="frame",
        num_frames=1,
        pixel_mean=(0.5, 0.5, 0.5),
    )
    image = small_model(fusion=False, num_frames=1)
    model = VideoTextModel(ModelConfig(video=STUDENT, text=image.config.text))
    config = MaskedAlignmentConfig(num_layers=2, drop_path=0.0)
    objective = MaskedAlignment(config, model, VideoEncoder(siglip), seed=0)
    video = small_batch(2).video
    with torch.no_grad():
        whole = objective.teaching.teacher(video, layers=(1, 2), attention=True)
    looks, attention = look(objective, video)
    torch.testing.assert_close(attention, whole.attention)
    torch.testing.assert_close(objective.teaching.targets(looks, None), list(whole.layers))
    assert torch.isfinite(objective(small_batch(2), 0).total)


@pytest.mark.parametrize("choice", ["attention", "random", "all of one frame"])
def test_the_last_block_at_the_kept_tubelets_alone(choice: str) -> None:
    """What the tower gives there when it is computed whole; 12 frames are more than go through it at once."""
    objective = objective_of()
    video, teacher = small_batch(3).video, objective.teaching.teacher
    with torch.no_grad():
        whole = teacher(video, layers=objective.teaching.teacher_layers, attention=True)
    looks, attention = look(objective, video)
    torch.testing.assert_close(attention, whole.attention)
    N = attention.shape[1]
    keep = {
        "attention": chosen(objective, video, attention, torch.Generator().manual_seed(0)),
        "random": random_keep(3, N, budget=13, generator=torch.Generator().manual_seed(0)),
        "all of one frame": torch.arange(16, 32).expand(3, -1),
    }[choice]
    for is_even in {False, choice == "attention"}:
        found = objective.teaching.targets(looks, keep, is_even=is_even)
        for layer, wanted in zip(found, whole.layers, strict=True):
            torch.testing.assert_close(layer, teacher.project(take(wanted, keep)))
    places, _ = by_frame(keep, 4, 16, is_even=choice == "attention")
    computed: list[int] = []
    teacher.blocks[-1].mlp.register_forward_pre_hook(lambda _, given: computed.append(given[0].shape[1]))
    objective.teaching.targets(looks, keep, is_even=choice == "attention")
    assert set(computed) == {places.shape[1]} and (choice == "all of one frame" or places.shape[1] < 16)


def test_a_teacher_s_matrices_are_cast_once() -> None:
    image = small_model(fusion=False, num_frames=1)
    teacher = as_teacher(image, dtype=torch.bfloat16)
    assert teacher.blocks[0].mlp.up.weight.dtype == torch.bfloat16
    assert (
        teacher.blocks[0].norm_mlp.weight.dtype == image.video.blocks[0].mlp.up.weight.dtype == torch.float32
    )
    model = VideoTextModel(ModelConfig(video=STUDENT, text=image.config.text))
    config = MaskedAlignmentConfig(num_layers=2, drop_path=0.0)
    video = small_batch(2).video
    with torch.autocast("cpu", dtype=torch.bfloat16):
        once, every = (
            MaskedAlignment(config, model, found, seed=0).teaching.look(
                video, model.grid(video), attention=True
            )
            for found in (teacher, as_teacher(image))
        )
    torch.testing.assert_close(once[0].frames[0].last, every[0].frames[0].last)
    torch.testing.assert_close(once[1], every[1], rtol=0.05, atol=1e-3)


def test_layers_to_align() -> None:
    assert aligned_layers(12, 6) == (6, 7, 8, 9, 10, 11)
    assert aligned_layers(24, 6, 2) == (13, 15, 17, 19, 21, 23)
    assert aligned_layers(3, 2, 1.5) == (1, 2)
    for depth, count, interval in ((3, 4, 1.0), (3, 2, 0.5), (3, 2, 3.0)):
        with pytest.raises(HarvestError, match="do not have"):
            aligned_layers(depth, count, interval)


def test_drop_path() -> None:
    drop_path_scale = draw_drop_path_scale(3, 5000, rate=0.4, generator=torch.Generator().manual_seed(0))
    assert drop_path_scale.shape == (3, 2, 5000) and (drop_path_scale[0] == 1).all()
    assert drop_path_scale.mean(dim=2) == pytest.approx(torch.ones(3, 2), abs=0.05)
    assert drop_path_scale[2].unique().tolist() == pytest.approx([0, 1 / 0.6])
    assert (drop_path_scale[2] == 0).float().mean() == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize(
    "wrong", [{"drop_ratio": 1.0}, {"drop_path": -0.1}, {"num_layers": 0}, {"teacher_interval": 0.0}]
)
def test_wrong_settings(wrong: dict) -> None:
    with pytest.raises(HarvestError, match="objective"):
        MaskedAlignmentConfig(**wrong)


def test_distances() -> None:
    a, b = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 3.0], [0.0, 5.0]])
    assert float(alignment(a, b)) == pytest.approx(1.0)  # right angle 2, same direction 0
    assert float(alignment(a, b, kind="mse")) == pytest.approx(0.5)
    assert float(alignment(a, b, kind="smooth_l1")) == pytest.approx(0.25)
    assert float(alignment(a, b, kind="mse", unit=False)) == pytest.approx((4 + 9 + 0 + 16) / 4)


def test_clips_of_different_lengths_are_refused() -> None:
    objective = objective_of()
    objective.selection = Selection(selector="run_length")
    with pytest.raises(HarvestError, match="selector run_length sees different numbers"):
        objective(small_batch(2), 0)
