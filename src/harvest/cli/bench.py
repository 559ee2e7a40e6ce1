"""`harvest bench`: this machine, measured."""

import importlib

from harvest.cli.parsing import nearest, run
from harvest.errors import HarvestError

BENCHES = {
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
    module = importlib.import_module(f"harvest.bench.{name}")
    run(getattr(module, f"{name}_command"), args[1:], prog=f"harvest bench {name}")
