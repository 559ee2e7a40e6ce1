"""`harvest bench`: this machine, measured."""

import ast
import importlib
import importlib.util
import inspect
import textwrap
from pathlib import Path

from harvest.cli.parsing import nearest, run
from harvest.errors import HarvestError

BENCHES = {
    "gpu": "a GPU in one page: as right as a CPU, how fast, how much memory",
    "step": "the training step, with and without dropping patches",
    "data": "reading clips: whole, by seeking, from shards; waits of training",
    "tokens": "selectors x budgets x batches, timed, with a plot",
    "vectors": "search among a million made-up vectors",
}
"""`harvest bench NAME` calls `harvest.bench.NAME.NAME_command`, imported by that call."""


def main(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        print("usage: harvest bench NAME [OPTIONS]    harvest bench NAME --help for examples\n")
        print("\n".join(f"  {name:<8}  {what}" for name, what in BENCHES.items()))
        return
    name = args[0]
    if name not in BENCHES:
        raise HarvestError(f"no benchmark {name!r}{nearest(name, BENCHES)}")
    module, function = f"harvest.bench.{name}", f"{name}_command"
    if {"-h", "--help"} & set(args[1:]):
        print(about(module, function, prog=f"harvest bench {name}"))
        return
    run(getattr(importlib.import_module(module), function), args[1:], prog=f"harvest bench {name}")


def about(module: str, function: str, *, prog: str) -> str:
    """The docstring of a command's function and its options, read from its source: importing it takes seconds."""
    found = importlib.util.find_spec(module)
    assert found is not None and found.origin is not None
    tree = ast.parse(Path(found.origin).read_text())
    named = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    command = named[function]
    assert isinstance(command, ast.FunctionDef)
    text = inspect.cleandoc(ast.get_docstring(command) or "")
    lines = [f"usage: {prog} [OPTIONS]", f"with types and choices: {prog} --help-all", ""]
    lines += [line.replace("$ ", "  ", 1) if line.startswith("$ ") else line for line in text.split("\n")]
    if "Args:" not in text:
        lines += ["", "Args:"]
    for argument in command.args.args:
        settings = named.get(ast.unparse(argument.annotation)) if argument.annotation else None
        if isinstance(settings, ast.ClassDef):
            lines += _fields(settings)
    return "\n".join(wrapped for line in lines for wrapped in _wrapped(_option(line)))


def _fields(settings: ast.ClassDef) -> list[str]:
    """The fields of a dataclass, each with its docstring."""
    pairs = zip(settings.body, [*settings.body[1:], None], strict=True)
    return [
        f"    {field.target.id}: {' '.join(note.value.value.split())}"
        for field, note in pairs
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(note, ast.Expr)
        and isinstance(note.value, ast.Constant)
        and isinstance(note.value.value, str)
    ]


def _option(line: str) -> str:
    """A line of `Args:` in the form that is typed."""
    name, colon, rest = line.strip().partition(": ")
    if not (line.startswith("    ") and colon and name.isidentifier()):
        return line
    return f"  --{name.replace('_', '-')}  {rest}"


def _wrapped(line: str) -> list[str]:
    indent = " " * 6 if line.startswith("  --") else " " * (len(line) - len(line.lstrip()))
    return textwrap.wrap(line, 79, subsequent_indent=indent, break_on_hyphens=False) or [""]
