"""`harvest convert`: a model folder from any source."""

from pathlib import Path
from typing import Annotated, Any

from harvest.cli.parsing import run


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
