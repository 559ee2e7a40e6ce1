"""A GPU that is not there: tensors on device "gpu" have a shape and a device but no data, those of the CPU are real.

    with FakeGpu() as gpu:
        objective.to("gpu")(batch, 0).total.backward()
    assert not gpu.waits

Tensors of two devices in one operation raise. Where the host would have to wait for the device, the place is added to
`waits` and the step goes on with a made-up value. What it cannot see: kernels that lack a dtype, memory, numbers, and
autocast, for which such a device has no rules.

It needs private parts of PyTorch: the PrivateUse1 backend and fake tensors.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

NAME = "gpu"
STAGED = 1 << 16
"""Bytes up to which a copy from memory that is not pinned returns at once."""
aten = torch.ops.aten

_WAITS = {
    "nonzero": "nonzero",
    "masked_select": "boolean index",
    "_unique2": "unique",
    "unique_consecutive": "unique",
    "unique_dim": "unique",
    "isin": "isin, which sorts by unique",
    "equal": "comparison of whole tensors",
}


class _Backend(backend_registration._DummyBackendModule):
    def is_available(self) -> bool:  # so that nothing is initialised
        return False

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.zeros(16, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        pass


if torch._C._get_privateuse1_backend_name() != NAME:
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())


class _DeviceGenerator(torch.Generator):
    """Stands for a generator of the device. The dispatcher passes another object on: its seed tells that it is one."""

    seeds: ClassVar[set[int]] = set()

    @property
    def device(self) -> torch.device:
        return torch.device(NAME)

    def manual_seed(self, seed: int) -> torch.Generator:
        self.seeds.add(seed ^ 0x5BD1E995)
        super().manual_seed(seed ^ 0x5BD1E995)
        return self


def _plain_attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """There is no fused kernel for a device that is not there."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if attn_mask is not None:
        is_bool = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, float("-inf")) if is_bool else scores + attn_mask
    return torch.nn.functional.dropout(scores.softmax(-1), dropout_p) @ v


class FakeGpu(TorchDispatchMode):
    """`found` is how many places a mask is pretended to have, `answer` what a boolean of the device says."""

    def __init__(self, *, found: int = 4, answer: bool = True) -> None:
        super().__init__()
        self.found, self.answer = found, answer
        self.fakes = FakeTensorMode(allow_non_fake_inputs=True)
        self.waits: list[tuple[str, str]] = []
        """What was waited for, and the innermost function of the library that does: (kind, "file function")."""
        self.pinned: dict[int, Tensor] = {}
        """Pinned copies by address, kept so that no other tensor comes to lie there."""

    def __enter__(self) -> FakeGpu:
        F = torch.nn.functional
        self._replaced: list[tuple[Any, str, Any]] = []
        own_tensor, own_generator = torch.tensor, torch.Generator

        def tensor(data: Any, *, device: Any = None, **settings: Any) -> Tensor:
            made = own_tensor(data, **settings)
            return made if device is None else made.to(device)  # a copy that waits, as it is

        def generator(device: Any = "cpu") -> torch.Generator:
            return _DeviceGenerator() if torch.device(device).type == NAME else own_generator(device)

        def pin_memory(tensor: Tensor, *_: object) -> Tensor:
            pinned = tensor.clone()
            self.pinned[pinned.untyped_storage().data_ptr()] = pinned
            return pinned

        self._replace(F, "scaled_dot_product_attention", _plain_attention)
        self._replace(torch, "tensor", tensor)
        self._replace(torch, "Generator", generator)
        self._replace(Tensor, "pin_memory", pin_memory)
        return super().__enter__()

    def _replace(self, owner: Any, name: str, made: Callable[..., Any]) -> None:
        self._replaced.append((owner, name, getattr(owner, name)))
        setattr(owner, name, made)

    def __exit__(self, *error: Any) -> None:
        for owner, name, own in self._replaced:
            setattr(owner, name, own)
        return super().__exit__(*error)

    def _note(self, kind: str) -> None:
        frames = [f for f in traceback.extract_stack(sys._getframe(2)) if "/src/harvest/" in f.filename]
        place = "outside, as in the backward pass"
        if frames:
            place = f"{frames[-1].filename.rpartition('/src/harvest/')[2]} {frames[-1].name}"
        self.waits.append((kind, place))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_gpu = any(isinstance(t, FakeTensor) and t.device.type == NAME for t in tensors)
        device = kwargs.get("device")
        to_gpu = device is not None and torch.device(device).type == NAME
        if not on_gpu and not to_gpu and not any(isinstance(t, FakeTensor) for t in tensors):
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if on_gpu and name == "_local_scalar_dense":
            self._note("value read")
            if args[0].dtype == torch.bool:
                return self.answer
            return 1.0 if args[0].is_floating_point() else 1
        if name == "_to_copy" and self._copies(args[0], device, kwargs.get("non_blocking", False)):
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if on_gpu and name == "copy_" and args[0].device.type != args[1].device.type:
            self._note("copy between devices")
        if on_gpu and name in _WAITS:
            return self._unknown_size(func, args, kwargs)
        if on_gpu and func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None:
            self._note("repeat_interleave without a size")
            return self._places()
        if on_gpu and name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            args = (args[0], self._indices(args[1]), *args[2:])
        drawn = kwargs.get("generator")
        if (on_gpu or to_gpu) and drawn is not None and drawn.initial_seed() not in _DeviceGenerator.seeds:
            raise RuntimeError(f"{func}: a generator of the CPU draws for a tensor of the device")
        if drawn is not None:
            kwargs = kwargs | {"generator": None}  # some fake kernels take none
        with self.fakes:
            return func(
                *tree_map_only(Tensor, self._as_fake, args), **tree_map_only(Tensor, self._as_fake, kwargs)
            )

    def _as_fake(self, tensor: Tensor) -> Tensor:
        return tensor if isinstance(tensor, FakeTensor) else self.fakes.from_tensor(tensor)

    def _copies(self, source: Tensor, device: Any, non_blocking: bool) -> bool:
        """Note a copy that waits; whether it is one out of the device."""
        if device is None or source.device.type == torch.device(device).type:
            return False
        if source.device.type == NAME:
            self._note("copy to the host")
            return True
        if not non_blocking:
            self._note("copy to the device")
        elif source.nbytes > STAGED and source.untyped_storage().data_ptr() not in self.pinned:
            self._note("copy to the device, not from pinned memory")
        return False

    def _places(self) -> Tensor:
        with self.fakes:
            return torch.empty(self.found, dtype=torch.int64, device=NAME)

    def _unknown_size(self, func: Any, args: Any, kwargs: Any) -> Any:
        name = func.overloadpacket.__name__
        self._note(_WAITS[name])
        if name == "equal":
            return self.answer
        if name == "isin":
            with self.fakes:
                return func(*args, **kwargs)
        if name == "nonzero":
            with self.fakes:
                return torch.empty(self.found, args[0].ndim, dtype=torch.int64, device=NAME)
        return self._places() if name == "masked_select" else (self._places(), self._places(), self._places())

    def _indices(self, indices: Any) -> list[Tensor | None]:
        found: list[Tensor | None] = []
        for index in indices:
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                self._note("boolean index")
                found += [self._places() for _ in range(index.ndim)]
            else:
                if index is not None and index.device.type == "cpu" and index.ndim:
                    self._note("index on the CPU")
                found.append(index)
        return found
