"""Keep indices, attention's two paths, checkpointing, compiling, hidden words."""

import copy
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import randomize, toy_model, with_time_positions

from harvest.interfaces import Merged, Packed
from harvest.model.layers import attend
from harvest.model.video_encoder import VideoEncoder, VideoEncoderConfig
from harvest.model.video_text import compile_blocks
from harvest.tokens import mask_text, num_kept, random_keep

T, P, N = 4, 16, 64


@pytest.fixture(scope="module")
def model():
    return toy_model()[0]


@pytest.fixture(scope="module")
def video():
    return torch.randint(0, 256, (2, T, 3, 16, 16), generator=torch.Generator().manual_seed(2)).byte()


def some_kept(generator_seed=0, drop_ratio=0.8):
    generator = torch.Generator().manual_seed(generator_seed)
    return random_keep(2, N, budget=num_kept(N, drop_ratio), generator=generator)


@torch.no_grad()
@pytest.mark.parametrize("tubelet_size", [1, 2])
@pytest.mark.parametrize("prefix", ["frame", "clip"])
def test_keeping_all_is_keeping_none_out(model, video, tubelet_size, prefix):
    model = with_time_positions(model, tubelet_size=tubelet_size, prefix=prefix)
    everything = torch.arange(model.num_tubelets(video)).expand(2, -1)
    given_all, plain = model.encode_video(video, everything), model.encode_video(video)
    torch.testing.assert_close(given_all.tokens, plain.tokens, atol=1e-6, rtol=0)
    torch.testing.assert_close(given_all.pooled, plain.pooled, atol=1e-6, rtol=0)


@torch.no_grad()
def test_tokens_follow_the_order_of_keep(model, video):
    keep = some_kept()
    order = torch.randperm(keep.shape[1], generator=torch.Generator().manual_seed(5))
    first, second = model.encode_video(video, keep), model.encode_video(video, keep[:, order])
    assert first.tokens.shape == (2, keep.shape[1], 48)
    torch.testing.assert_close(first.tokens[:, order], second.tokens, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(first.pooled, second.pooled, atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("tubelet_size", [1, 2])
def test_dropped_pixels_have_no_influence(model, video, tubelet_size):
    model = with_time_positions(model, tubelet_size=tubelet_size)
    num_tubelets = model.num_tubelets(video)
    keep = random_keep(
        2, num_tubelets, budget=num_kept(num_tubelets, 0.7), generator=torch.Generator().manual_seed(1)
    )
    grid = video.clone().view(2, T // tubelet_size, tubelet_size, 3, 4, 4, 4, 4)
    for row in range(2):
        for tubelet in set(range(num_tubelets)) - set(keep[row].tolist()):
            time, place = divmod(tubelet, P)
            grid[row, time, :, :, place // 4, :, place % 4, :] = 255
    changed = grid.view_as(video)
    assert not changed.equal(video)
    assert model.encode_video(video, keep).tokens.equal(model.encode_video(changed, keep).tokens)
    assert model.encode_video(video, keep).pooled.equal(model.encode_video(changed, keep).pooled)
    assert not model.encode_video(video).pooled.equal(model.encode_video(changed).pooled)


@torch.no_grad()
def test_uint8_is_normalised_as_the_config_says(model, video):
    mean, std = (
        torch.tensor(x).view(3, 1, 1) for x in (model.config.video.pixel_mean, model.config.video.pixel_std)
    )
    same = model.encode_video((video.float() / 255 - mean) / std).pooled
    torch.testing.assert_close(model.encode_video(video).pooled, same, atol=1e-6, rtol=0)


def test_wrong_sizes_are_named(model, video):
    with pytest.raises(ValueError, match="10x10; the model takes 16x16"):
        model.encode_video(video[..., :10, :10])
    with pytest.raises(ValueError, match="13"):
        model.encode_text(torch.zeros(1, 13, dtype=torch.long))


@settings(max_examples=60)
@given(
    num_clips=st.integers(1, 5),
    num_tubelets=st.integers(1, 200),
    drop_ratio=st.floats(0, 0.999),
    seed=st.integers(0, 2**40),
)
def test_random_keep(num_clips, num_tubelets, drop_ratio, seed):
    def draw():
        generator = torch.Generator().manual_seed(seed)
        return random_keep(
            num_clips, num_tubelets, budget=num_kept(num_tubelets, drop_ratio), generator=generator
        )

    keep = draw()
    assert keep.shape == (num_clips, num_tubelets - int(num_tubelets * drop_ratio)) and keep.shape[1] > 0
    assert (keep.diff(dim=1) > 0).all() and keep.min() >= 0 and keep.max() < num_tubelets
    assert keep.equal(draw())


@settings(max_examples=60)
@given(data=st.data(), ratio=st.floats(0, 1), seed=st.integers(0, 2**40))
def test_mask_text(data, ratio, seed):
    size = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 12)))
    maskable = torch.tensor(
        data.draw(st.lists(st.booleans(), min_size=size[0] * size[1], max_size=size[0] * size[1]))
    )
    maskable = maskable.view(size)
    ids = torch.arange(size[0] * size[1]).view(size)

    def draw():
        generator = torch.Generator().manual_seed(seed)
        return mask_text(ids, maskable=maskable, ratio=ratio, mask_id=999, generator=generator)

    masked, hidden = draw()
    assert not (hidden & ~maskable).any()
    assert (hidden.any(dim=1) == maskable.any(dim=1)).all()  # at least one word where there is one
    assert (masked[hidden] == 999).all() and masked[~hidden].equal(ids[~hidden])
    if ratio == 1:
        assert hidden.equal(maskable)
    assert all(a.equal(b) for a, b in zip(draw(), (masked, hidden), strict=True))


@pytest.mark.parametrize("kind", ["plain", "causal", "mask"])
def test_attention_paths_agree(kind):
    """The bf16 path for training on a CPU against the fused kernel in fp32, values and gradients."""
    generator = torch.Generator().manual_seed(7)
    q, k, v, weights = (torch.randn(2, 3, 9, 16, generator=generator) for _ in range(4))
    mask = torch.rand(2, 1, 1, 9, generator=generator) < 0.7 if kind == "mask" else None
    results = []
    for half in (False, True):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            inputs = [x.bfloat16() if half else x for x in leaves]
            out = attend(*inputs, mask, causal=kind == "causal")
        (out.float() * weights).sum().backward()
        results.append([out.float(), *(x.grad for x in leaves)])
    for exact, half in zip(*results, strict=True):
        assert (exact - half).norm() <= 0.02 * exact.norm()


def test_long_clips_do_not_keep_their_attention(monkeypatch):
    """Of N tokens N * N weights are computed again in the backward pass, to the same gradients."""
    generator = torch.Generator().manual_seed(7)
    inputs = [torch.randn(1, 2, 70, 16, generator=generator).bfloat16() for _ in range(3)]
    kept, gradients = {1024: [], 64: []}, []
    for most, sizes in kept.items():
        monkeypatch.setattr("harvest.model.layers.LONG", most)
        leaves = [x.clone().requires_grad_() for x in inputs]

        def note(x, sizes=sizes):
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            out = attend(*leaves)
        out.float().square().sum().backward()
        gradients.append([x.grad for x in leaves])
    assert max(kept[1024]) == 2 * 70 * 70 > max(kept[64])
    assert all(short.equal(long) for short, long in zip(*gradients, strict=True))


def test_checkpointing_gives_the_same_gradients(model, video):
    gradients = []
    for checkpointing in (False, True):
        copied = copy.deepcopy(model)
        copied.video.checkpointing = checkpointing
        features = copied.encode_video(video, some_kept())
        (features.pooled[:, 0].sum() + features.tokens.square().mean()).backward()
        gradients.append({name: p.grad for name, p in copied.video.named_parameters()})
    assert all(tensor is not None for tensor in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore:The .grad attribute:UserWarning")
def test_compiled_blocks_train_the_same(model, video):
    plain, compiled = copy.deepcopy(model), copy.deepcopy(model)
    compile_blocks(compiled)
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    ids = torch.randint(3, 20, (2, 12), generator=torch.Generator().manual_seed(1))
    for drop_ratio in (0.9, 0.5):  # another number of kept tubelets must not break or change a step
        keep = some_kept(drop_ratio=drop_ratio)
        losses = []
        for either in (plain, compiled):
            either.zero_grad()
            scores = either.scores(either.encode_video(video, keep).pooled, either.encode_text(ids).pooled)
            scores.logsumexp(dim=1).sum().backward()
            losses.append(scores)
        torch.testing.assert_close(losses[0], losses[1], atol=1e-4, rtol=1e-4)
        for (name, a), (_, b) in zip(plain.named_parameters(), compiled.named_parameters(), strict=True):
            if a.grad is not None:
                torch.testing.assert_close(a.grad, b.grad, atol=1e-4, rtol=1e-3, msg=name)


TEXT = torch.tensor([[0, 40, 41, 42, 43, 1, 2, 2, 2, 2, 2, 2]])


@torch.no_grad()
def test_a_hidden_word_is_the_mask_embedding(model):
    masked = TEXT.clone()
    masked[0, 3] = model.mask_id
    copied = copy.deepcopy(model)
    copied.text.words.weight[42] = copied.text.mask_embedding
    torch.testing.assert_close(
        model.encode_text(masked).tokens, copied.encode_text(TEXT).tokens, atol=0, rtol=0
    )
    assert model.encode_text(masked).mask.equal(model.encode_text(TEXT).mask)


@torch.no_grad()
def test_a_causal_tower_sees_a_hidden_word_only_after_it(model):
    masked = TEXT.clone()
    masked[0, 3] = model.mask_id
    plain, hidden = model.encode_text(TEXT).tokens, model.encode_text(masked).tokens
    assert plain[:, :3].equal(hidden[:, :3])
    assert not plain[:, 3].allclose(hidden[:, 3])


def test_which_words_may_be_hidden(model):
    assert model.text.maskable(TEXT)[0].nonzero().flatten().tolist() == [1, 2, 3, 4]
    assert model.text.word_mask(TEXT)[0].sum() == 6
    unfinished = torch.full((1, 12), 40)
    assert model.text.word_mask(unfinished).all()


@torch.no_grad()
def test_padding_does_not_reach_the_fused_words(video):
    model, _ = toy_model(fusion=True)
    randomize(model, seed=3)
    features = model.encode_video(video)
    text = model.encode_text(torch.cat([TEXT, torch.full((1, 12), 40)]))  # the second has no padding
    shorter = type(text)(text.tokens[:1, :8], text.pooled[:1], text.mask[:1, :8])
    fused = model.fuse(features, text)
    assert fused.shape == (2, 12, 48)
    alone = model.fuse(type(features)(features.tokens[:1], features.pooled[:1]), shorter)
    torch.testing.assert_close(fused[:1, :8], alone, atol=1e-5, rtol=1e-5)
    assert model.predict_words(fused[0, :2]).shape == (2, model.config.text.vocab_size)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["factored", "joint", "sinusoid"])
def test_frames_of_another_size_have_their_positions_resized(positions):
    """Half the side is a quarter of the places; what all places share stays what it was."""
    sizes = {"width": 16, "depth": 2, "num_heads": 2, "mlp_width": 32, "embed_dim": 12, "num_frames": 2}
    config = VideoEncoderConfig(image_size=32, patch_size=4, positions=positions, **sizes)
    torch.manual_seed(0)
    encoder = VideoEncoder(config).eval()
    if positions == "factored":
        encoder.place_positions.copy_(torch.randn(16).expand(64, -1))
    elif positions == "joint":
        encoder.joint_positions.copy_(torch.randn(16).expand(128, -1))
    whole = encoder._positions(2, 64)
    small = encoder._positions(2, 16)
    assert small.shape == (32, 16)
    if positions != "sinusoid":
        torch.testing.assert_close(small, whole[:32])
    video = torch.randint(0, 256, (2, 2, 3, 16, 16), generator=torch.Generator().manual_seed(2)).byte()
    assert encoder.grid(video).num_tubelets == 32
    everything = torch.arange(32).expand(2, -1)
    plain, given_all = encoder(video), encoder(video, everything)
    torch.testing.assert_close(given_all.pooled, plain.pooled, atol=1e-6, rtol=0)
    few = Packed(everything[:, :8].flatten(), torch.ones(16, dtype=torch.int64), torch.arange(2), ((2, 8),))
    torch.testing.assert_close(encoder(video, few).pooled, encoder(video, everything[:, :8]).pooled)
    assert encoder(video, Merged(20)).tokens.shape[1] == 20
    for wrong in ((2, 2, 3, 18, 18), (2, 2, 3, 16, 32)):
        with pytest.raises(ValueError, match="multiples of 4"):
            encoder(torch.zeros(wrong, dtype=torch.uint8))
