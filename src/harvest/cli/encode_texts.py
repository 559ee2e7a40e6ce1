"""`harvest encode-texts`: the captions of a run are encoded before it starts."""

from pathlib import Path

from harvest.cli.parsing import take_option
from harvest.cli.train import config_of
from harvest.errors import HarvestError

HELP = """usage: harvest encode-texts RECIPE [--out RUN] [--SETTING VALUE ...]

Encodes the captions of a run with objective.cache_texts before the run starts,
into the folder that objective.text_store names, or beside the run's. Takes what
`harvest train` takes. Stopped, the same command goes on. On several GPUs:
torchrun --nproc-per-node 8 -m harvest encode-texts RECIPE …

  harvest encode-texts mini-harvest
  harvest encode-texts harvest-b16 --objective.cache-texts \\
      --objective.text-store-type fp16 --data.train results_10M_train.csv \\
      --data.videos /data/webvid --out runs/webvid
"""


def main(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        print(HELP)
        return
    out, args = take_option(args, "--out")
    config = config_of(args, command="encode-texts")
    if not getattr(config.objective, "cache_texts", False):
        raise HarvestError(f"{config.recipe} encodes captions at each step: give --objective.cache-texts")
    from harvest.objectives.text_store import Captions
    from harvest.parallel import world
    from harvest.training.loop import ready_objective
    from harvest.training.prepare import prepare

    run = Path(out) if out else Path("runs") / config.recipe
    with world() as here:
        captions = ready_objective(config, prepare(config, run, here), run, here).captions
        assert isinstance(captions, Captions)
        if here.is_main:
            print(f"{captions.num:,} captions are encoded: {captions.folder}")
