"""`harvest probe`: what a frozen tower knows."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from harvest.cli.parsing import asks_help, run
from harvest.errors import HarvestError

if TYPE_CHECKING:
    from harvest.evaluation.probe import ProbeConfig

HELP = """usage: harvest probe MODEL --train FILE --test FILE --classes FILE [options]
       harvest probe MODEL --benchmark NAME --annotations FOLDER \\
           --videos FOLDER [options]

What a frozen tower knows: a head trained on features that are computed once.

  harvest probe runs/demo/model --train train.jsonl --test test.jsonl \\
      --classes names.txt
  harvest probe runs/webvid/model --benchmark ucf101 --videos UCF-101 \\
      --annotations ucfTrainTestlist --train-split train1 --test-split test1

  MODEL                 run or model folder, hub name, or what harvest convert
                        takes
  --train, --test FILE  manifests of labelled clips
  --classes FILE        class names in the order of the labels
  --benchmark NAME      a recognition benchmark in place of manifests
  --kind KIND           linear (default) or attentive
  --shots N             learn from N clips of each class
  --cache FOLDER        keep the features for the next probe
  --json                print the result as JSON
  --out FILE            write the result as JSON to a file

Every option: harvest probe --help-all
"""


@dataclass(frozen=True)
class ProbeOptions:
    """What is learned from, and scored: manifests, or two splits of a benchmark."""

    model: Annotated[str, tyro.conf.Positional]
    """A run or model folder, mini-image, or any source that `harvest convert` takes."""
    train: Path | None = None
    """Manifest of labelled clips to learn from."""
    test: Path | None = None
    """Manifest of labelled clips to score."""
    classes: Path | None = None
    """Class names in the order of the labels: one a line or a JSON list; or with their numbers, a JSON object or a .csv
    with the columns id and name."""
    videos: Path | None = None
    """Folder that video paths are relative to, or that holds the benchmark's videos."""
    benchmark: str | None = None
    """A recognition benchmark (docs/benchmarks.md) instead of manifests."""
    annotations: Path | None = None
    """Folder of its official annotation files."""
    train_split: str = "train"
    """Its split to learn from."""
    test_split: str | None = None
    """Its split to score; without it its first one."""
    allow_missing: bool = False
    """Score what is there, and give the share of the rows beside it."""
    json: bool = False
    """Print the result as JSON."""
    out: Path | None = None
    """Write the result as JSON to this file."""


def main(args: list[str]) -> None:
    if asks_help(args, HELP):
        return
    from harvest.evaluation.probe import ProbeConfig

    def probe(options: ProbeOptions, config: ProbeConfig = ProbeConfig(workers=2)) -> None:  # noqa: B008
        """What a frozen tower knows: a head trained on features that are computed once.

        $ harvest probe runs/demo/model --train train.jsonl --test test.jsonl --classes names.txt
        $ harvest probe runs/webvid/model --benchmark ucf101 --annotations ucfTrainTestlist --videos UCF-101 \\
            --train-split train1 --test-split test1 --kind attentive --shots 4
        """
        _probe(options, config)

    run(probe, args, prog="harvest probe")


def _probe(given: ProbeOptions, config: "ProbeConfig") -> None:
    from harvest.cli.results import open_model, show
    from harvest.data.benchmarks import read
    from harvest.data.labels import read_class_names
    from harvest.data.manifest import read_manifest
    from harvest.evaluation.benchmark import probe_benchmark
    from harvest.evaluation.probe import probe
    from harvest.parallel import world
    from harvest.progress import bar

    of_benchmark = None not in (given.benchmark, given.annotations, given.videos)
    of_manifests = given.benchmark is None and None not in (given.train, given.test, given.classes)
    if not of_benchmark and not of_manifests:
        raise HarvestError(
            "probe needs --train, --test and --classes, or --benchmark with --annotations and --videos"
        )
    model, _, _ = open_model(given.model, zero_shot=True)
    with world() as here, bar("encoding", quiet=not here.is_main) as progress:
        model.to(here.device)
        if given.benchmark is not None and given.annotations is not None:
            splits = (
                read(given.benchmark, given.annotations, split=split, videos=given.videos)
                for split in (given.train_split, given.test_split)
            )
            result = probe_benchmark(
                model, *splits, config=config, allow_missing=given.allow_missing, progress=progress
            )
        else:
            assert given.train is not None and given.test is not None and given.classes is not None
            sets = (read_manifest(path, videos=given.videos) for path in (given.train, given.test))
            names = read_class_names(given.classes)
            result = probe(model, *sets, class_names=names, config=config, progress=progress)
        if here.is_main:
            show(result, given.out, json=given.json)
