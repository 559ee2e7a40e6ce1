"""The machine: what a figure was measured on, and memory that is kept from one step to the next."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def num_cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "cpu": cpu_name(),
        "cores": num_cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def described(machine: Mapping[str, Any]) -> str:
    """What `hardware` gives, as people say it."""
    text = f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, {machine['memory_gib']:g} GiB"
    return f"{machine['gpu']}; {text}" if machine["gpu"] else text


def keep_memory() -> bool:
    """Let this process keep what it frees, for good; false where the C library is not glibc, and nothing changes.

    Without it glibc hands every large tensor back to the system as it is freed, and the next step is given the same
    memory in pages of 4 KiB, zeroed one by one as they are touched: 300,000 times in a step of ViT-B/16 on a CPU.
    The most that is in use stays the same; it is only not given back between.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # other systems; Windows takes no None
        return False
    never, grow = -1, 64 << 20
    # malloc.h: M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
    return all([mallopt(-4, 0), mallopt(-1, never), mallopt(-2, grow)])
