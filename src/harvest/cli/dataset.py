"""`harvest dataset`: training sets as they are published."""

from pathlib import Path
from typing import Annotated

import tyro


def dataset_command(
    name: Annotated[str, tyro.conf.Positional] = "",
    files: Annotated[Path | None, tyro.conf.Positional] = None,
    /,
    videos: Path | None = None,
    out: Path | None = None,
    columns: tuple[str, ...] = (),
    leave_out: Path | None = None,
    missing: Path | None = None,
) -> None:
    """List training sets that are read as published, or write a manifest of one.

    $ harvest dataset                   all of them: size, terms, what is hosted
    $ harvest dataset panda-70m         one of them
    $ harvest dataset panda-70m panda70m_training_2m.csv \\
        --videos /data/panda --out clips.jsonl
    $ harvest dataset internvid InternVid-10M-flt.jsonl --videos /data/iv \\
        --out clips.jsonl --leave-out MSRVTT_JSFUSION_test.csv

    Args:
        name: Name of the set; table for a table that is read by the names of its columns.
        files: Its annotation file, a folder of such files, or a pattern with *.
        videos: Folder of its videos, also inside tars, under the names that downloaders give them.
        out: Manifest (.jsonl) to write.
        columns: What a column of a table is: caption=long_text video=file start=t0 ignore=t1.
        leave_out: Rows of these videos are left out: a benchmark's test split, as a file in which their ids are.
        missing: Write the expected paths of videos that are not there into this file.
    """
    from harvest.data.forms import FORMS, form_named
    from harvest.data.manifest import read_manifest, write_manifest
    from harvest.data.overlap import without_videos_of
    from harvest.files import write_file
    from harvest.interfaces import HarvestError

    if files is None:
        for form in [form_named(name)] if name else FORMS.values():
            if not form.refusal:
                print(form.description(at_length=bool(name)))
        return
    if out is None:
        raise HarvestError("say where the manifest goes: --out clips.jsonl")
    rows = read_manifest(files, videos=videos, captions_required=False, form=name, columns=columns)
    print(rows.summary())
    kept = list(rows)
    if leave_out is not None:
        kept, shared = without_videos_of(rows, leave_out)
        first = f", first: {next(iter(shared))}" if shared else ""
        print(
            f"{len(shared):,} videos are in {leave_out.name} too{first}: {len(rows) - len(kept):,} clips left out"
        )
    if missing is not None:
        write_file(missing, "".join(f"{path}\n" for path in rows.missing.values()))
        print(f"{len(rows.missing):,} expected paths: {missing}")
    write_manifest(out, kept)
    print(f"{len(kept):,} clips: {out}")
