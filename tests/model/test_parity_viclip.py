"""ViCLIP against tensors made by the reference code (`InternVideo1/Pretrain/ViCLIP`)."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from toys import SHARED, write_vocabulary

from harvest.model.importing.openai import viclip_table
from harvest.model.importing.pretrained import load_pretrained
from harvest.model.importing.tables import rename
from harvest.objectives.contrast import contrast

PATH = SHARED / "fixtures" / "viclip.safetensors"
pytestmark = pytest.mark.skipif(not PATH.is_file(), reason="no shared fixtures")
T, P = 4, 16
CLOSE = {"atol": 2e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def reference():
    return load_file(PATH)


@pytest.fixture(scope="module")
def source(reference):
    tensors = {
        name.removeprefix("sd."): tensor for name, tensor in reference.items() if name.startswith("sd.")
    }
    return tensors | {"temp": reference["vtc.temp"]}


@pytest.fixture(scope="module")
def loaded(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("viclip")
    write_vocabulary(folder)
    torch.save({"model": source, "epoch": 1}, folder / "ViCLIP.pth")
    return load_pretrained(folder / "ViCLIP.pth", head_width=12)


@pytest.fixture(scope="module")
def model(loaded):
    return loaded[0]


@pytest.fixture(scope="module")
def video(reference):
    return reference["video"].transpose(1, 2).contiguous()


def before_normalising(tower, *args):
    """A tower's features, and what its projection gave: the reference does not make features unit vectors."""
    seen = []
    handle = tower.projection.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.no_grad():
        features = tower(*args)
    handle.remove()
    return features, seen[0]


def kept(reference, ratio):
    """The reference's draw as `keep`: from the order (h, w, t) to our (t, h, w)."""
    dropped = reference["noise"].argsort(dim=1)[:, : int(float(ratio) * T * P)]
    mask = torch.zeros(3, T * P, dtype=torch.bool).scatter_(1, dropped, True)
    assert mask.equal(reference[f"p{ratio}.drop"])
    places = (~mask).nonzero()[:, 1].view(3, -1)
    return places % T * P + places // T


def test_report(loaded, source):
    model, _, report = loaded
    assert report.used == len(source) and report.new == ("text.mask_embedding",)
    assert (model.config.video.num_frames, model.config.video.prefix) == (T, "clip")
    assert any("ImageNet" in note for note in report.notes)
    assert model.log_scale.exp().item() == pytest.approx(50)


def test_all_tokens(reference, model, video):
    features, out = before_normalising(model.video, video)
    torch.testing.assert_close(out, reference["eval.out"], **CLOSE)
    torch.testing.assert_close(features.pooled, F.normalize(reference["eval.out"], dim=-1), **CLOSE)
    theirs = reference["eval.tokens"][:, 1:].unflatten(1, (P, T)).transpose(1, 2).flatten(1, 2)
    torch.testing.assert_close(features.tokens, theirs, **CLOSE)


@pytest.mark.parametrize("ratio", ["0.5", "0.9"])
def test_dropped_tubelets(reference, model, video, ratio):
    keep = kept(reference, ratio)
    features, out = before_normalising(model.video, video, keep)
    torch.testing.assert_close(out, reference[f"p{ratio}.out"], **CLOSE)
    last = reference[f"p{ratio}.mid.block2"].transpose(0, 1)[:, 1:]
    with torch.no_grad():
        torch.testing.assert_close(features.tokens, model.video.norm_post(last), **CLOSE)


def test_an_image(reference, model, video):
    _, out = before_normalising(model.video, video[:, :1])
    torch.testing.assert_close(out, reference["image.out"], **CLOSE)


def test_time_positions(reference, model):
    with torch.no_grad():
        torch.testing.assert_close(model.video.time_positions(4), reference["tpe.4"][0], **CLOSE)
        torch.testing.assert_close(model.video.time_positions(8), reference["tpe.8"][0], **CLOSE)


def test_texts(reference, model):
    ids = reference["text.ids"].long()
    features, out = before_normalising(model.text, ids)
    torch.testing.assert_close(out, reference["text.out"], **CLOSE)
    with torch.no_grad():
        torch.testing.assert_close(model.text.projection(features.tokens), reference["text.tokens"], **CLOSE)


def test_contrastive_loss_and_every_gradient(reference, source, model, video):
    """Gradients flow through the rename table, so they have the reference's names."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in source.items()}
    tensors, _ = rename(leaves, viclip_table(3, 3), source="fixture")
    ids, example = reference["text.ids"].long(), reference["vtc.idx"]
    keep = kept(reference, "0.5")

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, example):
            videos, texts = self.model.encode_video(video, keep).pooled, self.model.encode_text(ids).pooled
            scores = self.model.scores
            return contrast(scores, videos, texts, example=example), scores(videos, texts)

    named = {f"model.{name}": tensor for name, tensor in tensors.items()}
    different, _ = torch.func.functional_call(Loss(), named, (torch.arange(3),))
    torch.testing.assert_close(different, reference["vtc.loss_noidx"], **CLOSE)
    loss, scores = torch.func.functional_call(Loss(), named, (example,))
    torch.testing.assert_close(scores.T, reference["vtc.sim"], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(loss, reference["vtc.loss"], **CLOSE)
    loss.backward()
    expected = {k.removeprefix("vtc.grad."): v for k, v in reference.items() if k.startswith("vtc.grad.")}
    expected["temp"] = reference["vtc.grad_temp"]
    for name, gradient in expected.items():
        ours = leaves[name].grad
        assert (ours - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, name
