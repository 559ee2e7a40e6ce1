"""What ranks owe one another: no rank waits for one that has failed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from harvest.interfaces import HarvestError
from harvest.parallel import (
    World,
    autocast,
    clip_gradients,
    computed_in,
    full_state,
    is_sharded,
    shard,
    sync_errors,
    world,
)


def on_a_rank(rank: int, meeting: dict[str, str], folder: str) -> None:
    import os

    os.environ |= meeting | {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    said = []
    with world() as here:
        with sync_errors():
            pass
        for failing in ({0}, {1}, {0, 1}):
            try:
                with sync_errors():
                    if rank in failing:
                        raise HarvestError(f"disk {rank} is full")
            except HarvestError as error:
                said.append(str(error))
        torch.manual_seed(0)
        layer = Blocks()
        shard(layer, here)
        assert is_sharded(layer) and layer.scale.shape == ()
        loss = layer(torch.ones(2, 3) * (rank + 1)).square().sum()
        loss.backward()
        clip_gradients(layer.parameters(), 0.5)
        gradients = {
            name: (p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad).clone()
            for name, p in layer.named_parameters()
        }
        state = full_state(layer)
    torch.save({"said": said, "gradients": gradients, "state": state}, Path(folder) / f"{rank}.pt")


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.scale * x


def test_failures_reach_every_rank_and_shares_are_clipped_as_a_whole(tmp_path: Path) -> None:
    # The ranks meet through a store that lives here, as in torchrun's agent: a free port that is only told to them
    # could be taken by another test before they bind it.
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "GLOO_SOCKET_IFNAME": "lo"}
    meeting["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    mp.spawn(on_a_rank, args=(meeting, str(tmp_path)), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert found[0]["said"] == ["disk 0 is full", "process 1 of 2: disk 1 is full", "disk 0 is full"]
    assert found[1]["said"] == ["process 0 of 2: disk 0 is full", "disk 1 is full", "disk 1 is full"]

    torch.manual_seed(0)
    layer = Blocks()
    assert all(torch.equal(t, found[1]["state"][n]) for n, t in layer.state_dict().items())
    sum(layer(torch.ones(2, 3) * (rank + 1)).square().sum() / 2 for rank in range(2)).backward()
    clip_gradients(layer.parameters(), 0.5)
    for name, parameter in layer.named_parameters():
        for rank in range(2):
            torch.testing.assert_close(found[rank]["gradients"][name], parameter.grad)


def test_alone_an_error_is_itself() -> None:
    with pytest.raises(ZeroDivisionError), sync_errors():
        _ = 1 / 0
    layer = Blocks()
    shard(layer, World())
    assert not is_sharded(layer)


def lose_the_first_connection(rank: int, meeting: dict[str, str]) -> None:
    import os
    from datetime import timedelta

    import torch.distributed as dist

    from harvest import parallel

    os.environ |= meeting | {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    parallel.CONNECT = timedelta(seconds=2)
    join, tried = dist.init_process_group, []

    def join_elsewhere_first(*asked: object, **settings: object) -> None:
        tried.append(settings["store"])
        if rank == 1 and len(tried) == 1:
            settings["store"] = dist.PrefixStore("nowhere", tried[0])
        join(*asked, **settings)

    dist.init_process_group = join_elsewhere_first
    with world() as here:
        ones = torch.ones(1)
        dist.all_reduce(ones)
        assert here.size == 2 and ones.item() == 2 and len(tried) == 2


def test_a_connection_that_is_lost_at_the_start_is_tried_again() -> None:
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "GLOO_SOCKET_IFNAME": "lo"}
    meeting["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    mp.spawn(lose_the_first_connection, args=(meeting,), nprocs=2)  # raises what a rank raises


def test_a_cpu_without_bf16_computes_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for has_bf16, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr("harvest.parallel._cpu_has_bf16", lambda found=has_bf16: found)
        assert computed_in(cpu, "bf16") == expected
        with autocast(cpu, "bf16"):
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == (torch.bfloat16 if has_bf16 else torch.float32)
    assert computed_in(cpu, "fp32") == "fp32" and computed_in(torch.device("cuda"), "bf16") == "bf16"


def wait_for_a_stuck_rank(rank: int, meeting: dict[str, str], folder: str) -> None:
    import os
    import time
    from datetime import timedelta

    import torch.distributed as dist

    from harvest import parallel

    os.environ |= meeting | {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    try:
        with world() as here:
            stepped = parallel.wrap(Blocks(), here)
            assert stepped.gradient_as_bucket_view and not stepped.broadcast_buffers
            parallel.WAIT = timedelta(seconds=2)
            parallel._set_pg_timeout(parallel.WAIT)
            if rank == 1:
                end = time.monotonic() + 100
                while not Path(folder, "said").exists() and time.monotonic() < end:
                    time.sleep(0.05)
                os._exit(0)
            dist.all_reduce(torch.ones(1))
    except HarvestError as error:
        Path(folder, "said").write_text(str(error))
    os._exit(0)


def test_a_rank_that_is_stuck_is_told_of_by_the_others(tmp_path: Path) -> None:
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "GLOO_SOCKET_IFNAME": "lo"}
    meeting["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    mp.spawn(wait_for_a_stuck_rank, args=(meeting, str(tmp_path)), nprocs=2)
    said = (tmp_path / "said").read_text()
    assert "process 0 of 2 has waited 2 seconds" in said and "stuck or gone" in said
