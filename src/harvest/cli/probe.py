"""`harvest probe`: what a frozen tower knows."""

from pathlib import Path
from typing import Annotated

from harvest.cli.parsing import asks_help, run
from harvest.errors import HarvestError

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


def main(args: list[str]) -> None:
    if asks_help(args, HELP):
        return
    import tyro

    from harvest.cli.results import open_model, show
    from harvest.data.benchmarks import read
    from harvest.data.labels import read_class_names
    from harvest.data.manifest import read_manifest
    from harvest.evaluation.benchmark import probe_benchmark
    from harvest.evaluation.probe import ProbeConfig
    from harvest.evaluation.probe import probe as score_probe
    from harvest.parallel import world
    from harvest.progress import bar

    plain = ProbeConfig(workers=2)

    def probe(
        model: Annotated[str, tyro.conf.Positional],
        /,
        train: Path | None = None,
        test: Path | None = None,
        classes: Path | None = None,
        videos: Path | None = None,
        benchmark: str | None = None,
        annotations: Path | None = None,
        train_split: str = "train",
        test_split: str | None = None,
        allow_missing: bool = False,
        config: ProbeConfig = plain,
        json: bool = False,
        out: Path | None = None,
    ) -> None:
        """What a frozen tower knows: a head trained on features that are computed once.

        $ harvest probe runs/demo/model --train train.jsonl --test test.jsonl --classes names.txt
        $ harvest probe runs/webvid/model --benchmark ucf101 --annotations ucfTrainTestlist --videos UCF-101 \\
            --train-split train1 --test-split test1 --kind attentive --shots 4

        Args:
            model: A run or model folder, mini-image, or any source that `harvest convert` takes.
            train: Manifest of labelled clips to learn from.
            test: Manifest of labelled clips to score.
            classes: Class names in the order of the labels: one a line or a JSON list; or with their numbers, a JSON
                object or a .csv with the columns id and name.
            videos: Folder that video paths are relative to, or that holds the benchmark's videos.
            benchmark: A recognition benchmark (docs/benchmarks.md) instead of manifests.
            annotations: Folder of its official annotation files.
            train_split: Its split to learn from.
            test_split: Its split to score; without it its first one.
            allow_missing: Score what is there, and give the share of the rows beside it.
            json: Print the result as JSON.
            out: Write the result as JSON to this file.
        """
        of_benchmark = benchmark is not None and annotations is not None and videos is not None
        of_manifests = benchmark is None and train is not None and test is not None and classes is not None
        if not of_benchmark and not of_manifests:
            raise HarvestError(
                "probe needs --train, --test and --classes, or --benchmark with --annotations and --videos"
            )
        loaded, _, _ = open_model(model, zero_shot=True)

        with world() as here, bar("encoding", quiet=not here.is_main) as progress:
            loaded.to(here.device)
            if benchmark is not None and annotations is not None:
                splits = (
                    read(benchmark, annotations, split=split, videos=videos)
                    for split in (train_split, test_split)
                )
                result = probe_benchmark(
                    loaded, *splits, config=config, allow_missing=allow_missing, progress=progress
                )
            else:
                assert train is not None and test is not None and classes is not None
                sets = (read_manifest(path, videos=videos) for path in (train, test))
                names = read_class_names(classes)
                result = score_probe(loaded, *sets, class_names=names, config=config, progress=progress)
            if here.is_main:
                show(result, out, json=json)

    run(probe, args, prog="harvest probe")
