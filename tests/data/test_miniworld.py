import json
import re
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harvest.data.miniworld import (
    COLOURS,
    GROUPS,
    LABELS,
    MOTIONS,
    SHAPES,
    MiniWorld,
    MiniWorldConfig,
    absent_scenes,
    directions,
    drawings,
    gerund,
    is_held_out,
    make_clip,
    make_scene,
    render,
    reverse_of,
    write_miniworld,
)
from harvest.data.miniworld.writing import _Encoder
from harvest.interfaces import Example, HarvestError

SMALL = MiniWorldConfig(train=150, retrieval=20, questions=12)
SPLITS = (
    "train",
    "retrieval",
    "motion_choice",
    "motion_choice_held_out",
    "appearance_choice",
    "order_choice",
    "questions",
    "actions",
)
CHOICE_GROUPS = [group for group, names in GROUPS.items() if len(names) >= 4]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> MiniWorld:
    return write_miniworld(tmp_path_factory.mktemp("world"), SMALL, workers=1)


def rows_of(split: str, count: int) -> list[dict]:
    return [make_clip(MiniWorldConfig(), split, index)[1] for index in range(count)]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def frames_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def as_set(images: np.ndarray) -> Counter[bytes]:
    return Counter(image.tobytes() for image in images)


# ------------------------------------------------------------------------------------------------ files


def test_files_do_not_depend_on_the_number_of_workers(world: MiniWorld, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_miniworld(tmp_path, SMALL, workers=2, progress=lambda done, total: seen.append((done, total)))
    ours, theirs = files_of(world.folder), files_of(tmp_path)
    assert ours.keys() == theirs.keys()
    assert all(ours[name] == theirs[name] for name in ours)
    assert seen[-1] == (150 + 20 + 6 * 12, 150 + 20 + 6 * 12)


def test_a_clip_does_not_depend_on_how_many_there_are() -> None:
    for split in ("train", "motion_choice", "questions"):
        assert make_clip(SMALL, split, 7) == make_clip(replace(SMALL, train=9, questions=500), split, 7)
    assert make_clip(SMALL, "train", 7) != make_clip(replace(SMALL, seed=1), "train", 7)


def test_a_finished_world_is_reused(world: MiniWorld) -> None:
    before = {path: path.stat().st_mtime_ns for path in world.folder.rglob("*")}
    assert write_miniworld(world.folder, SMALL) == world
    assert before == {path: path.stat().st_mtime_ns for path in world.folder.rglob("*")}


def test_another_config_is_an_error_that_names_the_folder(world: MiniWorld) -> None:
    with pytest.raises(HarvestError, match=f"(?s){re.escape(str(world.folder))}.*Give another folder"):
        write_miniworld(world.folder, replace(SMALL, seed=3))


@pytest.mark.parametrize("wrong", [{"size": 63}, {"size": 32}, {"train": -1}, {"retrieval": 10**6}])
def test_a_config_that_cannot_be_is_an_error(wrong: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(HarvestError):
        write_miniworld(tmp_path, replace(SMALL, **wrong))
    assert not list(tmp_path.iterdir())


def test_manifest_rows_are_examples_whose_videos_are_there(world: MiniWorld) -> None:
    for split in SPLITS:
        path: Path = getattr(world, split)
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(rows) == {"train": 150, "retrieval": 20}.get(split, 12)
        for row in rows:
            fields = {name: row[name] for name in ("id", "video", "label", "question", "answer")}
            Example(**fields, texts=tuple(row["texts"]))
            assert (path.parent / row["video"]).is_file()
    assert json.loads(world.labels.read_text()) == list(LABELS)


def test_a_decoded_video_holds_each_drawing_for_two_frames(world: MiniWorld) -> None:
    for index in (0, 1, 99, 100, 149):  # the first and last of a job as well
        scene, row = make_clip(SMALL, "train", index)
        frames = frames_of(world.folder / row["video"]).astype(int)
        assert frames.shape == (16, 64, 64, 3)
        assert np.abs(frames[::2] - frames[1::2]).mean() < 0.5
        assert np.abs(frames[::2] - drawings(scene)).mean() < 6
    with av.open(str(world.folder / row["video"])) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert (float(stream.average_rate), container.duration) == (8.0, 2_000_000)


@pytest.mark.parametrize("group", ["horizontal", "size", "visibility"])
def test_decoded_videos_of_a_group_hold_the_same_frames_to_the_bit(group: str, tmp_path: Path) -> None:
    encoder = _Encoder(64)
    shown = []
    for motion in GROUPS[group]:
        scene = make_scene(
            np.random.default_rng(5), motion, actor=("green", "cross"), still=[("red", "ring")]
        )
        path = tmp_path / f"{motion}.mp4"
        encoder.write(path, drawings(scene))
        shown.append(as_set(frames_of(path)))
    assert all(frames == shown[0] for frames in shown)


# --------------------------------------------------------------------------------------------- drawings


@pytest.mark.parametrize("group", GROUPS)
def test_motions_of_a_group_are_orders_of_the_same_drawings(group: str) -> None:
    for seed in range(8):
        shown = [
            drawings(
                make_scene(
                    np.random.default_rng(seed),
                    motion,
                    actor=("red", "star"),
                    still=[("blue", "ring")] * (seed % 3 > 0) + [("green", "circle")] * (seed % 3 > 1),
                )
            )
            for motion in GROUPS[group]
        ]
        assert all(as_set(images) == as_set(shown[0]) for images in shown)
        if group != "still":
            # ... and the orders do look different.
            assert len({images.tobytes() for images in shown}) == len(shown)


def test_order_events_are_orders_of_the_same_drawings() -> None:
    orders = {make_clip(SMALL, "order_choice", index)[0].order for index in range(40)}
    assert len(orders) == 2
    for index in range(10):
        scene, _ = make_clip(SMALL, "order_choice", index)
        first, second = (drawings(replace(scene, order=order)) for order in orders)
        assert as_set(first) == as_set(second) and not np.array_equal(first, second)


def test_visibility_hides_half_of_the_drawings() -> None:
    for motion in GROUPS["visibility"]:
        scene = make_scene(np.random.default_rng(0), motion, actor=("white", "circle"))
        empty = drawings(replace(scene, things=()))[0]
        seen = [not np.array_equal(image, empty) for image in drawings(scene)]
        assert sum(seen) == 4, motion


def centres(motion: str, seed: int) -> np.ndarray:
    scene = make_scene(np.random.default_rng(seed), motion, actor=("red", "square"))
    states = [scene.things[0].states[step] for step in scene.order]
    return np.array([(state.x, state.y, state.radius, state.angle) for state in states])


@pytest.mark.parametrize("seed", range(5))
def test_motions_do_what_their_names_say(seed: int) -> None:
    def travelled(motion: str) -> np.ndarray:
        return np.sign(np.round(centres(motion, seed)[-1] - centres(motion, seed)[0], 6))[:2]

    for name, way in (
        ("moves left", (-1, 0)),
        ("moves right", (1, 0)),
        ("moves up", (0, -1)),
        ("moves down", (0, 1)),
        ("moves up and right", (1, -1)),
        ("moves down and left", (-1, 1)),
        ("moves up and left", (-1, -1)),
        ("moves down and right", (1, 1)),
    ):
        assert tuple(travelled(name)) == way, name
    there_and_back = centres("goes right and comes back", seed)[:, 0]
    assert there_and_back.argmax() in (3, 4) and (np.diff(there_and_back)[:3] > 0).all()
    assert (np.diff(there_and_back)[4:] < 0).all()
    swings = np.sign(np.diff(centres("bounces from side to side", seed)[:, 0]))
    assert (np.diff(swings) != 0).sum() == 3  # there, back, there, back
    assert (np.diff(centres("grows", seed)[:, 2]) > 0).all()
    assert (np.diff(centres("spins clockwise", seed)[:, 3]) == 15).all()
    x, y = np.diff(centres("goes in circles clockwise", seed)[:, :2], axis=0).T
    assert (x[:-1] * y[1:] - y[:-1] * x[1:] > 0).all()  # turns right on the screen, where y points down


def test_render_holds_on_twos_and_scales() -> None:
    scene, _ = make_clip(SMALL, "train", 0)
    frames = render(scene)
    assert frames.shape == (16, 64, 64, 3) and frames.dtype == np.uint8
    assert np.array_equal(frames[::2], frames[1::2])
    assert render(scene, size=96).shape == (16, 96, 96, 3)


@settings(max_examples=60)
@given(index=st.integers(0, 10**6), seed=st.integers(0, 100), size=st.sampled_from([64, 66, 98, 128]))
def test_no_thing_leaves_the_frame(index: int, seed: int, size: int) -> None:
    scene, _ = make_clip(MiniWorldConfig(seed=seed), "train", index)
    drawings(scene, size=size)  # fails where a thing's box is cut by the edge
    for thing in scene.things:
        for state in thing.states:
            assert state.radius < min(state.x, state.y, 64 - state.x, 64 - state.y)


@settings(max_examples=60)
@given(index=st.integers(0, 10**6))
def test_things_do_not_overlap_at_rest(index: int) -> None:
    scene, row = make_clip(SMALL, "train", index)
    steps = [scene.order[0]] if row["kind"] in ("pass", "swap") else scene.order
    for step in steps:
        at = [thing.states[step] for thing in scene.things]
        for number, one in enumerate(at):
            for other in at[:number]:
                assert np.hypot(one.x - other.x, one.y - other.y) > one.radius + other.radius


# ---------------------------------------------------------------------------------------------- wording


def test_phrases_belong_to_one_motion_and_read_as_sentences() -> None:
    owner: dict[str, str] = {}
    for motion in MOTIONS.values():
        assert motion.phrases[0] == motion.name and len(set(motion.phrases)) == len(motion.phrases) >= 3
        assert sorted(motion.order) == list(range(8))
        for phrase in motion.phrases:
            assert owner.setdefault(phrase, motion.name) == motion.name
            assert gerund(phrase).split()[0].endswith("ing") or phrase.startswith("first"), phrase
    assert gerund("goes in circles clockwise") == "going in circles clockwise"
    assert gerund("goes left and comes back") == "going left and coming back"


@settings(max_examples=150)
@given(index=st.integers(0, 10**6))
def test_captions_name_colour_and_shape_in_plain_words(index: int) -> None:
    scene, row = make_clip(SMALL, "train", index)
    assert len(set(row["texts"])) >= 4
    for text in row["texts"]:
        assert re.fullmatch(r"[a-z]+(,? [a-z]+)*", text), text
        assert not re.search(r"\ba orange\b|\ban (?!orange)", text), text
        for thing in scene.things:
            assert f"{thing.colour} {thing.shape}" in text
    if row["kind"] in ("one", "two", "three"):
        phrases = MOTIONS[row["motion"]].phrases
        said = {form for phrase in phrases for form in (phrase, gerund(phrase))}
        assert all(any(form in text for form in said) for text in row["texts"])
    assert row["label"] == (None if row["motion"] is None else LABELS.index(row["motion"]))


def test_kinds_are_mixed_as_documented() -> None:
    kinds = Counter(row["kind"] for row in rows_of("train", 3000))
    events = sum(kinds[kind] for kind in ("pass", "swap", "follow", "vanish", "jump"))
    shares = [kinds["one"], kinds["two"], kinds["three"], events]
    np.testing.assert_allclose(np.array(shares) / 3000, [0.63, 0.14, 0.03, 0.20], atol=0.03)


# --------------------------------------------------------------------------------------------- held out


def test_one_combination_in_ten_is_held_out_and_everything_occurs() -> None:
    held = {
        (colour, shape, motion)
        for colour in COLOURS
        for shape in SHAPES
        for motion in LABELS
        if is_held_out(colour, shape, motion)
    }
    assert 0.08 < len(held) / (len(COLOURS) * len(SHAPES) * len(LABELS)) < 0.12
    for colour in COLOURS:
        for motion in LABELS:
            assert sum((colour, shape, motion) not in held for shape in SHAPES) >= 4
    for shape in SHAPES:
        for motion in LABELS:
            assert sum((colour, shape, motion) not in held for colour in COLOURS) >= 6
    for group in CHOICE_GROUPS:  # whole groups, so that no option can be ruled out unseen
        for colour in COLOURS:
            for shape in SHAPES:
                assert len({is_held_out(colour, shape, motion) for motion in GROUPS[group]}) == 1


def test_held_out_combinations_are_in_their_own_split_only() -> None:
    for split in SPLITS:
        for row in rows_of(split, 400):
            if row["motion"] is not None:
                held = is_held_out(row["colour"], row["shape"], row["motion"])
                assert held == (split == "motion_choice_held_out"), row
    for index in range(1500):  # events, in which two things act
        scene, row = make_clip(SMALL, "train", index)
        acting = {"swap": "moves left", "follow": "moves left", "vanish": "vanishes for a moment"}
        if row["kind"] in acting:
            for thing in scene.things:
                assert not is_held_out(thing.colour, thing.shape, acting[row["kind"]])


# --------------------------------------------------------------------------------------------- the sets


@pytest.mark.parametrize("split", ["motion_choice", "motion_choice_held_out"])
def test_options_of_a_motion_question_differ_in_the_motion_only(split: str) -> None:
    rows = rows_of(split, 400)
    for row in rows:
        names = GROUPS[row["group"]]
        owner = {
            form: name for name in names for said in MOTIONS[name].phrases for form in (said, gerund(said))
        }
        motions, frames = [], set()
        for text in row["texts"]:
            said = max((form for form in owner if text.endswith(form)), key=len)
            motions.append(owner[said])
            frames.add(text.removesuffix(said))
        assert len(frames) == 1 and len(set(motions)) == 4
        assert motions[row["label"]] == row["motion"]
    assert all(60 < count < 140 for count in Counter(row["label"] for row in rows).values())
    assert {row["group"] for row in rows} == set(CHOICE_GROUPS)


def test_options_of_an_appearance_question_differ_in_the_appearance_only() -> None:
    appearance = re.compile(f"(an? )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})")
    for row in rows_of("appearance_choice", 100):
        assert len(set(row["texts"])) == 4
        assert len({appearance.sub("", text) for text in row["texts"]}) == 1
        assert f"{row['colour']} {row['shape']}" in row["texts"][row["label"]]


def test_options_of_an_order_question_swap_the_things() -> None:
    rows = rows_of("order_choice", 200)
    for row in rows:
        one, other = row["texts"]
        assert one != other and Counter(re.findall(r"\w+", one)) == Counter(re.findall(r"\w+", other))
    for index in range(50):
        scene, row = make_clip(SMALL, "order_choice", index)
        rest = [thing.states[0] for thing in scene.things]
        acts = [
            next(k for k, step in enumerate(scene.order) if thing.states[step] != start)
            for thing, start in zip(scene.things, rest, strict=True)
        ]
        first = scene.things[int(np.argmin(acts))]
        assert (first.colour, first.shape) == (row["colour"], row["shape"])
    assert 70 < sum(row["label"] for row in rows) < 130


def test_retrieval_captions_are_distinct_and_appearances_come_with_many_motions() -> None:
    clips = [make_clip(MiniWorldConfig(), "retrieval", index) for index in range(500)]
    captions = [row["texts"] for _, row in clips]
    assert all(len(texts) == 1 for texts in captions)
    assert len({texts[0] for texts in captions}) == 500
    motions = defaultdict(set)
    for scene, row in clips:
        motions[tuple((thing.colour, thing.shape) for thing in scene.things)].add(row["motion"])
        assert "background" not in row["texts"][0]
    assert len(motions) == 50 and min(map(len, motions.values())) >= 8
    # The caption of a lone thing fits no clip of two.
    lone = {key[0] for key in motions if len(key) == 1}
    assert lone.isdisjoint(key[0] for key in motions if len(key) == 2)


def test_questions_have_one_blank_and_the_answer_fills_it() -> None:
    rows = rows_of("questions", 300)
    assert Counter(row["kind"] for row in rows) == {"motion": 100, "colour": 100, "shape": 100}
    for row in rows:
        assert row["question"].split().count("[mask]") == 1
        filled = row["question"].replace("[mask]", row["answer"])
        assert filled == f"the {row['colour']} {row['shape']} {row['motion']}"
        assert row["kind"] == "motion" or row["answer"] == row[row["kind"]]


def test_actions_are_balanced() -> None:
    rows = rows_of("actions", 2 * len(LABELS))
    assert set(Counter(row["label"] for row in rows).values()) == {2}
    assert all(row["texts"] == [LABELS[row["label"]]] for row in rows)


# --------------------------------------------------------------------------------------------------- stills


def test_stills_say_what_one_drawing_shows(tmp_path: Path) -> None:
    """Every still is a stretch that holds one drawing, and its first row names a thing that is visible there."""
    config = MiniWorldConfig(seed=5, train=40, retrieval=20, questions=4)
    world = write_miniworld(tmp_path, config, workers=1)
    rows = [json.loads(line) for line in world.stills.read_text().splitlines()]
    assert len(rows) == 2 * 2 * config.train
    for shown, named in zip(rows[::2], rows[1::2], strict=True):
        assert (shown["video"], shown["start_s"]) == (named["video"], named["start_s"])
        assert shown["end_s"] - shown["start_s"] == 0.25
        scene, clip = make_clip(config, "train", int(shown["id"].split("-")[1]))
        assert named["texts"] == clip["texts"]
        state = scene.order[round(shown["start_s"] / 0.25)]
        seen = [thing for thing in scene.things if thing.states[state].visible]
        assert len(set(shown["texts"])) == 3
        for text in shown["texts"]:
            if seen:
                assert any(f"{thing.colour} {thing.shape}" in text for thing in seen)
            else:
                assert "nothing" in text or "empty" in text


@pytest.mark.parametrize("name", MOTIONS)
def test_the_reverse_of_a_motion_is_what_its_clips_show_backwards(name: str) -> None:
    """Of all motions of its group only that one, to the pixel."""
    group = GROUPS[MOTIONS[name].group]
    actor = next((colour, "star") for colour in COLOURS if not is_held_out(colour, "star", name))
    scene = make_scene(np.random.default_rng(0), name, actor=actor)
    backwards = drawings(scene)[::-1]
    others = [other for other in group if other != name]
    same = [
        other
        for other in others
        if np.array_equal(drawings(replace(scene, order=MOTIONS[other].order)), backwards)
    ]
    assert same == ([] if reverse_of(name) is None else [reverse_of(name)])


def test_questions_that_ask_for_a_direction(world: MiniWorld) -> None:
    rows = [json.loads(line) for line in world.motion_choice.read_text().splitlines()]
    found = directions(world.motion_choice)
    assert list(found) == [row["id"] for row in rows]
    assert {row["motion"] for row in rows if found[row["id"]]} <= {
        *("moves left", "moves right", "moves up", "moves down", "grows", "shrinks", "appears", "disappears"),
        *("moves up and right", "moves down and left", "moves up and left", "moves down and right"),
    }
    assert any(found.values()) and not all(found.values())
    assert directions(world.appearance_choice) == {} == directions(world.order_choice)


def test_absent_scenes_are_in_no_clip() -> None:
    config = MiniWorldConfig(seed=3, retrieval=300)
    rows = [make_clip(config, "retrieval", index)[1] for index in range(300)]
    present = {(row["motion"], row["colour"], row["shape"]) for row in rows}
    absent = absent_scenes(present, 300, seed=0)
    assert len(set(absent)) == len(absent) == 300
    assert not set(absent) & {f"the {c} {s} {m}" for m, c, s in present}
    assert absent == absent_scenes(present, 300, seed=0) != absent_scenes(present, 300, seed=1)
    with pytest.raises(HarvestError, match="absent"):
        absent_scenes(present, 10**6, seed=0)
