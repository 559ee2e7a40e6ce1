"""`harvest plan`: what a run will take, before it is started."""

from harvest.cli.parsing import print_json, take_option
from harvest.cli.train import config_of
from harvest.errors import HarvestError

HELP = """usage: harvest plan RECIPE [OPTIONS] [--SETTING VALUE ...]

What a run will take before it is started: memory, clips a second, hours, loader
workers, the largest batch. Looks at this machine for less than a minute, and
says of every line whether it was measured here or follows by formula.

  harvest plan harvest-b16 --gpus 8 --gpu h200
  harvest plan harvest-l14 --gpus 8 --gpu a100 --data.workers 16 \\
      --data 'shard-{000000..010699}.tar'
  harvest plan mini-harvest                              this machine itself

  --gpus N     devices, 1 by default
  --gpu NAME   a GPU by its data sheet; without it this machine's GPU or CPU
  --data FILE  manifest or shards to decode from; without it a clip is drawn
  --json       all of it as JSON
"""


def main(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        print(HELP)
        return
    from harvest.bench.plan import check_devices, plan, print_plan, probe

    gpus, args = take_option(args, "--gpus")
    gpu, args = take_option(args, "--gpu")
    data, args = take_option(args, "--data")
    if gpus is not None and not gpus.isdecimal():
        raise HarvestError(f"--gpus: expected a number, got {gpus!r}")
    config = config_of([arg for arg in args if arg != "--json"], command="plan")
    number = int(gpus or 1)
    check_devices(number, gpu)  # before a minute is spent on the machine
    made = plan(config, probe(config, data=data), gpus=number, gpu=gpu)
    if "--json" in args:
        print_json(made)
    else:
        print_plan(made)
