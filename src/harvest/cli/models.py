"""`harvest convert` and `harvest blend`: a model folder from any source, and one between two models."""

from pathlib import Path
from typing import Annotated, Any, Literal

from harvest.cli.parsing import run
from harvest.cli.scoring import on_device


def convert_command(args: list[str]) -> None:
    import tyro

    def convert(
        source: Annotated[str, tyro.conf.Positional],
        out: Annotated[Path, tyro.conf.Positional],
        /,
        vocabulary: Path | None = None,
        image_size: int | None = None,
        num_frames: int | None = None,
        head_width: int = 64,
        classes: Path | None = None,
    ) -> None:
        """Write a Harvest model folder from other weights, and say what was used, ignored and new.

        $ harvest convert openai/clip-vit-base-patch16 models/clip-b16
        $ harvest convert ViT-B-16.pt models/clip-b16 --vocabulary bpe_simple_vocab_16e6.txt.gz
        $ harvest convert b16_25m.pth models/umt-b16 --vocabulary vocab.txt --num-frames 12
        $ harvest convert b16_ptk710_ftk710_ftk400_f8_res224.pth models/umt-k400 --classes k400.txt

        Args:
            source: A hub name, a folder (transformers, OpenCLIP, Harvest), or a state-dict file (OpenAI, OpenCLIP, ViCLIP, UMT).
            out: The model folder to write.
            vocabulary: The vocabulary of CLIP or BERT, for state dicts that come without a tokenizer.
            image_size: Another picture size than the model's: positions are resized (bicubic), and the report says so.
            num_frames: Frames a clip, for UMT's files, whose positions go on or are resized.
            head_width: Width of an attention head, for state dicts, which do not say.
            classes: What a fine-tuned classifier of UMT tells apart, in its order: one a line or a JSON list; or with
                their numbers, a JSON object or a .csv with the columns id and name.
        """
        from harvest.model.folder import check_room, save_model
        from harvest.model.importing.pretrained import load_any
        from harvest.model.importing.umt import convert_classifier

        check_room(out)  # before anything is opened
        sizes: dict[str, Any] = {"image_size": image_size, "num_frames": num_frames, "head_width": head_width}
        if classes is not None:
            from harvest.data.labels import read_class_names

            model, head, report = convert_classifier(source, names=read_class_names(classes), **sizes)
            save_model(out, model, None, head=head, notes={"started_from": source})
        else:
            model, tokenizer, report = load_any(source, vocabulary=vocabulary, **sizes)
            save_model(out, model, tokenizer, notes={"started_from": source})
        print(report)
        print(f"model: {out}")

    run(convert, args)


def blend_command(args: list[str]) -> None:
    import tyro

    def blend(
        image_model: Annotated[str, tyro.conf.Positional],
        video_model: Annotated[str, tyro.conf.Positional],
        /,
        evaluate: Path,
        image_evaluate: Path,
        task: Literal["retrieval", "choice", "recognition"] = "retrieval",
        image_task: Literal["retrieval", "choice", "recognition"] = "retrieval",
        videos: Path | None = None,
        image_videos: Path | None = None,
        shares: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
        image_limit: float = 1.0,
        video_limit: float = 2.0,
        batch_size: int = 32,
        precision: Literal["fp32", "bf16"] = "fp32",
        workers: int = 2,
        out: Path = Path("runs/blend"),
    ) -> None:
        """Weights between an image model and the video model made of it: which share keeps most of both skills.

        $ harvest blend mini-image runs/demo/model --task choice --image-task choice --out runs/blend \\
            --evaluate runs/demo/world/motion_choice.jsonl --image-evaluate runs/demo/world/appearance_choice.jsonl

        Writes OUT/model with the best share, OUT/curve.json and OUT/curve.svg. The best share is the one whose losses,
        of image skill against the image model and of video skill against the video model, use least of their limits,
        the greater of the two counted; of equal ones that with more video skill.

        Args:
            image_model: The image model that the video model was made of, as `harvest convert` takes it, or mini-image.
            video_model: The model folder of the video model.
            evaluate: Manifest of video skill.
            image_evaluate: Manifest of image skill.
            task: How video skill is scored: t2v R@1, accuracy or top-1.
            image_task: How image skill is scored.
            videos: Folder that the paths of --evaluate are relative to.
            image_videos: Folder that the paths of --image-evaluate are relative to.
            shares: Shares of the video model to try; 1 is tried always.
            image_limit: Points of image skill that may be lost.
            video_limit: Points of video skill that may be lost.
            out: Folder for the model and the curve.
        """
        import dataclasses
        import json

        from rich.console import Console
        from rich.table import Table

        from harvest.data.manifest import read_manifest
        from harvest.evaluation import EvalSettings
        from harvest.evaluation import evaluate as score
        from harvest.evaluation.blending import draw_curve, sweep
        from harvest.evaluation.embed import Mode
        from harvest.evaluation.result import Result
        from harvest.files import write_file
        from harvest.model.folder import check_room, save_model
        from harvest.model.importing.pretrained import load_pretrained
        from harvest.model.inflation import blend as mix
        from harvest.model.video_text import VideoTextModel
        from harvest.parallel import world
        from harvest.progress import bar

        check_room(out / "model")  # before hours of scoring
        start = load_pretrained(image_model)[0]
        model, tokenizer, _ = load_pretrained(video_model)
        sets = {
            "image": (read_manifest(image_evaluate, videos=image_videos), image_task),
            "video": (read_manifest(evaluate, videos=videos), task),
        }
        done = 0
        settings = EvalSettings(
            num_frames=model.config.video.num_frames,
            batch_size=batch_size,
            precision=precision,
            workers=workers,
        )
        of = 2 * len({1.0, *shares}) + 1

        with world() as here:
            on_device(here, start, model)
            with bar("scoring blends", quiet=not here.is_main) as progress:

                def skill(kind: str, scored: VideoTextModel, mode: Mode) -> Result:
                    nonlocal done
                    examples, how = sets[kind]
                    result = score(
                        scored,
                        tokenizer,
                        examples,
                        task=how,
                        settings=dataclasses.replace(settings, image=mode == "image"),
                        progress=lambda *_: None,
                    )
                    done += 1
                    progress(done, of)
                    return result

                found = sweep(
                    start,
                    model,
                    image_skill=lambda scored, mode: skill("image", scored, mode),
                    video_skill=lambda scored, mode: skill("video", scored, mode),
                    shares=shares,
                    image_limit=image_limit,
                    video_limit=video_limit,
                )
        if not here.is_main:
            return
        best = found.best
        grid = Table(show_edge=False)
        for title in ("share", "image skill", "95 %", "video skill", "95 %", ""):
            grid.add_column(title, justify="right")
        for point in found.points:
            cells = []
            for part in (point.image, point.video):
                low, high = part.interval
                cells += [f"{100 * part.value:.1f} %", f"{100 * low:.1f} to {100 * high:.1f}"]
            grid.add_row(f"{point.video_ratio:g}", *cells, "best" if point is best else "")
        console = Console()
        console.print(grid)
        lost = found.losses(best)
        verdict = "within" if found.used(best) <= 1 else "and none is within"
        console.print(
            f"the image model alone: {100 * found.image_model.value:.1f} % of image skill. Share {best.video_ratio:g}"
            f" loses {lost[0]:.1f} points on images and {lost[1]:.1f} on video, {verdict} the limits of {image_limit:g}"
            f" and {video_limit:g}",
            highlight=False,
        )
        mix(start, model, video_ratio=best.video_ratio)
        save_model(
            out / "model",
            model,
            tokenizer,
            notes={"started_from": image_model, "blended": video_model, "video_ratio": best.video_ratio},
        )
        names = {
            "image_name": f"{image_task}, {image_evaluate.stem}",
            "video_name": f"{task}, {evaluate.stem}",
        }
        facts = {**dataclasses.asdict(found), "best": best.video_ratio, **names}
        write_file(out / "curve.json", json.dumps(facts, indent=1) + "\n")
        write_file(out / "curve.svg", draw_curve(found, **names))
        print(f"model: {out / 'model'}\ncurve: {out / 'curve.svg'}")

    run(blend, args)
