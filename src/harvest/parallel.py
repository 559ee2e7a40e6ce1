"""Ranks, random draws that are functions of the step, gathering and wrapping. The only file that knows of ranks.

Everything random in a run is drawn from `generator_for(seed, ...)`, a function of integers such as (seed, step,
rank). No generator lives across steps, so a stopped run repeats the unbroken one to the bit.
"""

from __future__ import annotations

import atexit
import gc
import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store, _set_pg_timeout
from torch.distributed.rendezvous import rendezvous
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils._pytree import tree_leaves, tree_map_only

from harvest.interfaces import HarvestError
from harvest.launched import end_with_launcher
from harvest.plain_types import Precision as Precision

Parallel = Literal["ddp", "fsdp"]
TYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
K = TypeVar("K")
V = TypeVar("V")


WAIT = timedelta(minutes=30)  # for another rank, PyTorch's own default
CONNECT = timedelta(minutes=1)
MEETINGS = 3

# DDP's reducer holds the group too. Were it the last to let go, gloo would end its threads while this one holds
# Python's lock, for which those may be waiting: neither would ever end. The group itself is let go without the lock.
_last_group: dist.ProcessGroup | None = None


@atexit.register
def _let_go() -> None:
    """End gloo's threads while Python still runs: one that asks for Python's lock later aborts the process."""
    global _last_group
    if _last_group is not None:
        gc.collect()  # modules and works that refer to the group
        _last_group = None


@dataclass(frozen=True)
class World:
    """Who am I among the processes of this run, and which device do I compute on?"""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def own_device() -> torch.device:
    """This process's GPU where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


@contextmanager
def world() -> Iterator[World]:
    """Join the processes that `torchrun` started, or be alone. Leaves the group behind a barrier.

    The device is this process's GPU where there is one, else the CPU. Raises HarvestError where another rank is lost.
    """
    device = own_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "RANK" not in os.environ:
        yield World(device=device)
        return
    end_with_launcher()
    global _last_group
    try:
        _join(device)
    except dist.DistError as error:
        raise HarvestError(
            f"process {os.environ['RANK']} could not meet the others: {str(error).splitlines()[0]}. One of them is gone, and"
            " its own last lines say why; or MASTER_ADDR and MASTER_PORT lead elsewhere."
        ) from error
    _last_group = dist.group.WORLD
    try:
        yield World(rank=dist.get_rank(), size=dist.get_world_size(), device=device)
        dist.barrier()  # ranks that leave early can hang the others in destroy_process_group
    except RuntimeError as error:
        said = str(error).lower()
        who = f"process {dist.get_rank()} of {dist.get_world_size()}"
        if "timed out" in said or "timeout" in said:
            raise HarvestError(
                f"{who} has waited {_minutes(WAIT)} for another one, which is stuck or gone: its own last lines say more."
                " The same command goes on from the last checkpoint."
            ) from error
        if not any(word in said for word in ("gloo", "nccl", "connection closed", "connection reset")):
            raise
        raise HarvestError(
            f"{who} has lost another one, whose own message says why. The same command goes on from the last"
            " checkpoint."
        ) from error
    finally:
        dist.destroy_process_group()


def _join(device: torch.device) -> None:
    """Be one of the group of all ranks."""
    store, rank, size = next(rendezvous("env://"))
    # A launcher that starts lost ranks again keeps its store: what the lost ones left there leads to nobody.
    store = PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    if device.type == "cuda":
        dist.init_process_group(
            "nccl", store=store, rank=rank, world_size=size, timeout=WAIT, device_id=device
        )
    else:
        meet(store, rank, size)


def _minutes(time: timedelta) -> str:
    seconds = time.total_seconds()
    return f"{seconds / 60:.0f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"


def meet(store: Store, rank: int, size: int) -> None:
    """Join the group of all ranks on CPUs, through a store that all of them reach.

    gloo now and then loses one of its first connections, and both sides would wait for half an hour. So all ranks
    first say that they are there, then connect within a minute or, all of them, once more.
    """
    for attempt in range(MEETINGS):
        store.set(f"harvest/{attempt}/{rank}", "here")
        store.wait([f"harvest/{attempt}/{other}" for other in range(size)], WAIT)
        own = PrefixStore(f"harvest/{attempt}", store)
        try:
            dist.init_process_group("gloo", store=own, rank=rank, world_size=size, timeout=CONNECT)
        except RuntimeError:
            if attempt == MEETINGS - 1:
                raise
        else:
            _set_pg_timeout(WAIT)  # of what the ranks do together: the main one may draw a data set meanwhile
            return


_is_alone = False


@contextmanager
def alone() -> Iterator[None]:
    """A stretch that this process computes for itself, as if there were no others."""
    global _is_alone
    before, _is_alone = _is_alone, True
    try:
        yield
    finally:
        _is_alone = before


def world_rank_size() -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) when alone."""
    if dist.is_available() and dist.is_initialized() and not _is_alone:
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def seed_for(seed: int, *numbers: int) -> int:
    """One 63-bit seed from several integers. The same on every machine and in every Python process."""
    text = ",".join(str(number) for number in (seed, *numbers))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator_for(seed: int, *numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator that is a function of its integers, e.g. `generator_for(seed, step, rank)`."""
    return torch.Generator(device=device).manual_seed(seed_for(seed, *numbers))


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`, without waiting for what a GPU has still to compute: copied from pinned memory."""
    if tensor.device == device or device.type == "cpu":
        return tensor.to(device)
    if tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Kernels that give the same result each time; an operation that has none raises PyTorch's RuntimeError."""
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first product
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Autocast to 16 bits, or nothing for fp32 and where the device computes bf16 slower than fp32 (`computed_in`)."""
    precision = computed_in(device, precision)
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, dtype=TYPES[precision])


def computed_in(device: torch.device, precision: Precision) -> Precision:
    """The precision that is really used: a CPU without bf16 instructions emulates them, far slower than fp32."""
    if precision == "bf16" and device.type == "cpu" and not _cpu_has_bf16():
        return "fp32"
    return precision


@cache
def _cpu_has_bf16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _GatherRows(torch.autograd.Function):
    """All ranks' rows; backward sums every rank's gradient for our rows.

    The sum is what makes the contrastive gradient independent of the number of ranks: DDP then averages over
    ranks, and each rank's loss is the global one, so the average of sums is the exact gradient. Returning only
    the local slice (as the reference does) gives 1 / world of it.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.num_rows = rows.shape[0]
        return _gathered(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        start = dist.get_rank() * ctx.num_rows
        return gradient[start : start + ctx.num_rows]


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate every rank's `[B, ...]` to `[G, ...]`, in rank order, with exact gradients.

    Alone, it returns its argument. All ranks must bring equally many rows.
    """
    if world_rank_size()[1] == 1:
        return rows
    if rows.is_floating_point():
        return _GatherRows.apply(rows)  # type: ignore[no-any-return, no-untyped-call]
    return _gathered(rows)


def _gathered(rows: Tensor) -> Tensor:
    every = rows.new_empty(dist.get_world_size() * rows.shape[0], *rows.shape[1:])
    dist.all_gather_into_tensor(every, rows.contiguous())
    return every


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of detached numbers over ranks, of any shape."""
    if world_rank_size()[1] == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / dist.get_world_size()


class LargestOfRanks:
    """The largest of all ranks' numbers, known to all of them at the same step, without waiting for it.

    Of several ranks each call gives the numbers of the call before it: they travel over the CPU while a step is
    computed. Alone it gives its argument. Every rank must make it, call it as often, and `close` it.
    """

    def __init__(self) -> None:
        self._group = side_group() if world_rank_size()[1] > 1 else None
        self._sent: tuple[Tensor, dist.Work | None] | None = None

    def __call__(self, number: int) -> int:
        if self._group is None:
            return number
        known = self.close()
        value = torch.tensor(number)
        self._sent = value, dist.all_reduce(value, dist.ReduceOp.MAX, self._group, async_op=True)
        return known

    def close(self) -> int:
        """Wait for what is on its way: the largest number of the last call; 0 before the first."""
        if self._sent is None:
            return 0
        value, work = self._sent
        if work is not None:
            work.wait()
        self._sent = None
        return int(value)


def merge_over_ranks(values: Mapping[K, V]) -> dict[K, V]:
    """The entries of every rank's dictionary. Every rank must call it."""
    return {key: value for part in all_gather_ordered([dict(values)]) for key, value in part.items()}


@dataclass(frozen=True)
class _Like:
    """Stands for a tensor that travels apart."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)


def all_gather_ordered(own: Iterable[Any], device: torch.device | str = "cpu") -> Iterator[Any]:
    """The items of all ranks on every rank, the first of each in rank order, then the second of each, to the last.

    Tensors in them, also inside tuples, come to `device`; they are gathered as bytes, all of a round at once, and only
    what is around them is pickled. Every rank must read it to its end; alone, it gives `own`.
    """
    _, size = world_rank_size()
    if size == 1:
        yield from own
        return
    items, carrier = iter(own), own_device() if dist.get_backend() == "nccl" else torch.device("cpu")
    nothing = "there is no more"
    while True:
        item = next(items, nothing)
        around: list[Any] = [None] * size
        dist.all_gather_object(around, tree_map_only(Tensor, lambda t: _Like(t.dtype, tuple(t.shape)), item))
        if all(isinstance(part, str) for part in around):
            return
        sizes = [sum(like.size for like in tree_leaves(p) if isinstance(like, _Like)) for p in around]
        longest = max(1, *sizes)
        data = torch.zeros(longest, dtype=torch.uint8, device=carrier)
        start = 0
        for tensor in tree_leaves(item):
            if isinstance(tensor, Tensor):
                flat = tensor.detach().contiguous().flatten().view(torch.uint8)
                data[start : start + len(flat)] = flat
                start += len(flat)
        for part, row in zip(around, _gathered(data).view(size, longest), strict=True):
            if not isinstance(part, str):
                yield _with_tensors(part, row.to(device))


def _with_tensors(around: Any, data: Tensor) -> Any:
    """An item with its tensors, whose bytes stand one behind the other."""
    start = 0

    def taken(like: _Like) -> Tensor:
        nonlocal start
        part, start = data[start : start + like.size].clone(), start + like.size
        return part.view(like.dtype).view(like.shape)

    return tree_map_only(_Like, taken, around)


def barrier() -> None:
    """Wait for every rank; alone, nothing."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


@contextmanager
def sync_errors() -> Iterator[None]:
    """A stretch in which one rank may fail, as the one that writes on a full disk: then all ranks leave it so.

    Every rank must enter it, and must do nothing in it that waits for other ranks. The rank that failed raises
    its own error, the others a HarvestError with its message.
    """
    failed: Exception | None = None
    try:
        yield
    except Exception as error:
        failed = error
    _, size = world_rank_size()
    if size > 1:
        told: list[Any] = [None] * size
        dist.all_gather_object(told, None if failed is None else f"{failed}")
        first = next((r for r, message in enumerate(told) if message is not None), None)
        if failed is None and first is not None:
            raise HarvestError(f"process {first} of {size}: {told[first]}")
    if failed is not None:
        raise failed


def shard(objective: nn.Module, here: World) -> None:
    """FSDP2, in place: every rank keeps its share of each weight, gradient and moment.

    Each element of a `ModuleList`, a transformer block that is, is gathered when it is computed; the rest is
    gathered with the objective's forward. Build the optimizer afterwards, on the shares. Weights are gathered in
    fp32 and computed with under autocast, so that a sharded run equals an unsharded one. Alone, it does nothing.
    """
    if here.size == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(here.device.type, (here.size,))
    scalars = {p for p in objective.parameters() if p.ndim == 0}  # FSDP2 refuses them: they stay whole
    for parameter in scalars:
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_average_gradient)  # type: ignore[no-untyped-call]
    for parent in objective.modules():
        # The low-rank changes of a matrix are a list too, but are computed with the block that they are in.
        if isinstance(parent, nn.ModuleList) and not isinstance(parent, ParametrizationList):
            for block in parent:
                fully_shard(block, mesh=mesh, ignored_params=scalars)
    fully_shard(objective, mesh=mesh, ignored_params=scalars)


def _average_gradient(parameter: Tensor) -> None:
    assert parameter.grad is not None
    dist.all_reduce(parameter.grad)
    parameter.grad /= dist.get_world_size()


def is_sharded(module: nn.Module) -> bool:
    return any(is_shard(parameter) for parameter in module.parameters())


def is_shard(tensor: Tensor) -> bool:
    """Does this rank hold only its part of the tensor?"""
    return hasattr(tensor, "full_tensor")


def shard_like(whole: Tensor, like: Tensor) -> Tensor:
    """Of a tensor that every rank holds whole, this rank's share, cut as `like` is; itself where `like` is whole."""
    if not is_shard(like):
        return whole
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def side_group() -> dist.ProcessGroup | None:
    """All ranks once more, over the CPU, for what goes on beside the training. Every rank must call it."""
    return dist.new_group(backend="gloo")


def full_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of a sharded module, whole and on the CPU. Every rank must call it."""
    state = module.state_dict()
    return {name: (t.full_tensor() if is_shard(t) else t).detach().cpu() for name, t in state.items()}


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> None:
    """Scale all gradients so that their norm, over every rank's shares, is at most `max_norm`."""
    parameters = list(parameters)
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not any(is_shard(gradient) for gradient in gradients):
        nn.utils.clip_grad_norm_(parameters, max_norm)
        return
    rank, _ = world_rank_size()
    square = torch.zeros((), device=gradients[0].device)
    for gradient in gradients:
        if is_shard(gradient):
            square += gradient.to_local().square().sum()  # type: ignore[attr-defined]
        elif rank == 0:  # whole, and the same on every rank
            square += gradient.square().sum()
    dist.all_reduce(square)
    scale = (max_norm / (square.sqrt() + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        part: Tensor = gradient.to_local() if is_shard(gradient) else gradient  # type: ignore[attr-defined]
        part.mul_(scale)


def wrap(objective: nn.Module, here: World) -> nn.Module:
    """The module whose call is one training step's forward: the objective alone, sharded, or under DDP."""
    if here.size == 1 or is_sharded(objective):
        return objective
    return nn.parallel.DistributedDataParallel(
        objective,
        device_ids=[here.device.index] if here.device.type == "cuda" else None,
        broadcast_buffers=False,  # they are tables, computed alike by every rank, and change in no step
        gradient_as_bucket_view=True,  # gradients are reduced where they lie
    )
