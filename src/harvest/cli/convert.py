"""`harvest convert`: a model folder from any source."""

from pathlib import Path
from typing import Annotated

from harvest.cli.parsing import asks_help, run

HELP = """usage: harvest convert SOURCE OUT [options]

Writes a Harvest model folder from other weights, and says what was used,
ignored and new.

  harvest convert openai/clip-vit-base-patch16 models/clip-b16
  harvest convert ViT-B-16.pt models/clip-b16 \\
      --vocabulary bpe_simple_vocab_16e6.txt.gz
  harvest convert epoch_32.pt models/own --preset open_clip \\
      --vocabulary bpe_simple_vocab_16e6.txt.gz
  harvest convert b16_25m.pth models/umt-b16 --vocabulary vocab.txt \\
      --num-frames 12

  SOURCE             hub name, folder (transformers, OpenCLIP, Harvest), or
                     state dict (OpenAI, OpenCLIP, ViCLIP, UMT)
  OUT                the model folder to write
  --image-size N     another picture size: positions are resized
  --num-frames N     frames of a clip, for UMT's files
  --vocabulary FILE  tokenizer, where none lies beside the weights
  --preset NAME      openai or open_clip, for a single file in OpenAI's names
  --classes FILE     classes of a fine-tuned UMT classifier, one a line

Every option: harvest convert --help-all
"""


def main(args: list[str]) -> None:
    if asks_help(args, HELP):
        return
    import dataclasses

    import tyro

    from harvest.model.importing.assembly import ImportOptions

    def convert(
        source: Annotated[str, tyro.conf.Positional],
        out: Annotated[Path, tyro.conf.Positional],
        /,
        options: ImportOptions = ImportOptions(),  # noqa: B008  # frozen
        classes: Path | None = None,
    ) -> None:
        """Write a Harvest model folder from other weights, and say what was used, ignored and new.

        $ harvest convert openai/clip-vit-base-patch16 models/clip-b16
        $ harvest convert ViT-B-16.pt models/clip-b16 --vocabulary bpe_simple_vocab_16e6.txt.gz
        $ harvest convert epoch_32.pt models/own --preset open_clip --vocabulary bpe_simple_vocab_16e6.txt.gz
        $ harvest convert b16_25m.pth models/umt-b16 --vocabulary vocab.txt --num-frames 12
        $ harvest convert b16_ptk710_ftk710_ftk400_f8_res224.pth models/umt-k400 --classes k400.txt

        Args:
            source: A hub name, a folder (transformers, OpenCLIP, Harvest), or a state-dict file (OpenAI, OpenCLIP, ViCLIP, UMT).
            out: The model folder to write.
            classes: What a fine-tuned classifier of UMT tells apart, in its order: one a line or a JSON list; or with
                their numbers, a JSON object or a .csv with the columns id and name.
        """
        from harvest.model.folder import check_room, save_model
        from harvest.model.importing.pretrained import load_any
        from harvest.model.importing.umt import convert_classifier

        check_room(out)  # before anything is opened
        if classes is not None:
            from harvest.data.labels import read_class_names

            model, head, report = convert_classifier(
                source,
                names=read_class_names(classes),
                num_frames=options.num_frames,
                image_size=options.image_size,
                head_width=options.head_width or 64,
            )
            tokenizer = None
        else:
            (model, tokenizer, report), head = load_any(source, **vars(options)), None
        notes = {"started_from": source, "import_report": dataclasses.asdict(report)}
        save_model(out, model, tokenizer, head=head, notes=notes)
        print(report)
        print(f"model: {out}")

    run(convert, args, prog="harvest convert")
