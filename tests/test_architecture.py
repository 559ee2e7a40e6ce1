"""Imports go one way, from the left of the house to the right (docs/architecture.md)."""

from __future__ import annotations

import graphlib
import subprocess
import sys

import grimp
import pytest

# Each room and the rooms it may import; every room may raise `errors`, name `plain_types` and draw
# `charts`. A file named on its own is not part of its
# room's rule.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "plain_types": set(),
    "interfaces": {"errors", "plain_types"},
    "files": set(),
    "charts": set(),
    "ranges": {"interfaces"},
    "launched": set(),
    "parallel": {"interfaces", "launched"},
    "bars": set(),
    "progress": {"interfaces", "bars"},
    "settings": {"interfaces", "files"},
    "machine": set(),
    "data": {"interfaces", "ranges", "files", "parallel", "settings"},
    "model": {"interfaces", "ranges", "files", "parallel", "settings"},
    "tokens": {"interfaces", "ranges", "parallel"},
    "objectives": {
        *("interfaces", "ranges", "files", "parallel", "progress", "settings"),
        *("data", "model", "tokens"),
    },
    "training": {"interfaces", "ranges", "files", "parallel", "bars", "progress", "settings", "model"},
    "evaluation": {
        *("interfaces", "ranges", "files", "parallel", "progress", "charts", "settings"),
        *("data", "model", "tokens"),
    },
    "search": {
        "launched",
        "interfaces",
        "ranges",
        "files",
        "parallel",
        "progress",
        "settings",
        "data",
        "model",
        "tokens",
        "evaluation",
        "export",
    },
    "export": {"interfaces", "files", "parallel", "settings", "data", "model", "tokens", "evaluation"},
    "bench": {
        "interfaces",
        "ranges",
        "files",
        "parallel",
        "progress",
        "machine",
        "data",
        "model",
        "tokens",
        "objectives",
        "training",
        "search",
    },
    "config": {
        "interfaces",
        "ranges",
        "parallel",
        "settings",
        "data",
        "model",
        "tokens",
        "objectives",
        "training",
    },
    "recipes": {"interfaces", "ranges", "config", "data", "model", "objectives", "training"},
}
# These files wire rooms together, and so do the commands, the demo and adaptation.
WIRING = {f"harvest.{name}" for name in ("api", "__main__")} | {
    *(f"harvest.training.{name}" for name in ("held_out", "loop", "prepare", "run", "start")),
    # what a whole run will take
    "harvest.bench.plan",
    "harvest.bench.host",
}


def is_wiring(module: str) -> bool:
    return module in WIRING or module.split(".")[1:2] in (["cli"], ["demo"], ["adapting"])


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("harvest", cache_dir=None, exclude_type_checking_imports=True)


def room_of(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_rooms_before_it(graph: grimp.ImportGraph, room: str) -> None:
    modules = {m for m in graph.modules if m.split(".")[1:2] == [room] and not is_wiring(m)}
    assert modules, f"no such room: {room}"
    wrong = [
        f"{module} imports {other}"
        for module in sorted(modules)
        for other in graph.find_modules_directly_imported_by(module)
        if other != "harvest"
        and room_of(other) not in ALLOWED[room] | {room, "errors", "plain_types", "charts"}
    ]
    assert not wrong


def test_every_file_is_in_a_known_room(graph: grimp.ImportGraph) -> None:
    rooms = {room_of(module) for module in graph.modules if module != "harvest" and not is_wiring(module)}
    assert rooms == ALLOWED.keys()


def test_only_wiring_sees_the_loop(graph: grimp.ImportGraph) -> None:
    importers = graph.find_modules_that_directly_import("harvest.training.loop")
    assert all(is_wiring(module) for module in importers - {"harvest"})


def test_interfaces_import_nothing_of_ours(graph: grimp.ImportGraph) -> None:
    imported = graph.find_modules_directly_imported_by("harvest.interfaces")
    assert imported == {"harvest.errors", "harvest.plain_types"}


def test_there_are_no_circles(graph: grimp.ImportGraph) -> None:
    imports = {
        module: graph.find_modules_directly_imported_by(module) - {"harvest"} for module in graph.modules
    }
    del imports["harvest"]
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError with the circle


def test_the_training_machine_needs_few_libraries() -> None:
    """A GPU machine may have torch, numpy, safetensors, tokenizers and transformers alone."""
    absent = ("av", "tyro", "jinja2", "tensorboardX", "ftfy", "rich", "huggingface_hub")
    wanted = (
        "bench.gpu",
        "bench.step",
        "bench.tokens",
        "model.importing.pretrained",
        "model.folder",
        "objectives.post_pretraining",
        "objectives.image_text",
        "training.optim",
        "training.checkpoint",
        "tokens",
    )
    code = f"import sys; sys.modules.update(dict.fromkeys({absent!r})); import " + ", ".join(
        f"harvest.{name}" for name in wanted
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_help_brings_no_heavy_library() -> None:
    heavy = ("torch", "numpy", "av", "tyro", "rich")
    code = "import sys; from harvest.cli import main; main(['--help']); main(['bench', 'gpu', '--help']); "
    code += f"sys.exit(bool(sys.modules.keys() & {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0
