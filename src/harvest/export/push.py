"""A model folder on the hub: a model card is written into it, and what is the model's is uploaded, nothing else."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harvest import __version__
from harvest.data.forms import FORMS, Form, Record, form_named, recognise
from harvest.data.tables import table_rows
from harvest.evaluation.card import Card, cell, figures_table, read_card
from harvest.export.hub import HUB_FILES
from harvest.files import write_file
from harvest.interfaces import HarvestError
from harvest.model.folder import MODEL_CARD, NOTES, digest_of, load_head, load_model, read_notes
from harvest.settings import read_json

_FOLDERS = re.compile(r"(?<![\w:/.~])~?/(?:[^\s/'\"]+/)+")
"""The folders of an absolute path within a text."""


@dataclass(frozen=True)
class Stated:
    """What a model card says that the model folder does not know."""

    licence: str | None = None
    base_model: str | None = None
    """Name on the hub of the model that training began with."""
    data: tuple[str, ...] = ()
    """Training data: names of published sets (`harvest dataset`), or descriptions of several words."""
    cards: tuple[Path, ...] = ()
    """Benchmark cards of these weights, besides those in the model folder."""


def push(
    folder: Path,
    name: str,
    stated: Stated | None = None,
    *,
    private: bool = False,
    dry_run: bool = False,
    new_card: bool = False,
) -> str:
    """Write FOLDER/README.md and upload the model folder to the repository `name` (user/name) of the hub.

    A README.md that is there is kept, unless `new_card`. `dry_run` uploads nothing. Returns the address, with the
    files and their sizes. Raises HarvestError for a folder that is damaged or no model, cards of other weights, files
    that are links to outside of the folder, a missing token and a refused upload.
    """
    _check_name(name)
    folder = folder.expanduser()
    folder = folder / "model" if (folder / "model" / "config.json").is_file() else folder
    readme = folder / MODEL_CARD
    if readme.exists() and not new_card:
        if stated not in (None, Stated()):
            raise HarvestError(
                f"{readme} is there and is kept as it is: change it by hand, or write it anew with --new-card"
            )
        load_model(folder)
    else:
        text = model_card(folder, name, stated or Stated())
        try:
            write_file(readme, text)
        except OSError as error:
            raise HarvestError(f"cannot write {readme}: {error.strerror or error}") from error
    with _upload_of(folder) as (staged, lines):
        url = _address(name) if dry_run else _upload(staged, name, private=private)
    return "\n".join([*lines, f"not uploaded, to go to {url}" if dry_run else url])


# ---- the model card ----------------------------------------------------------------------------------------------


def model_card(folder: Path, name: str, stated: Stated) -> str:
    """The text of README.md: YAML for the hub, then base model, recipe, data and their terms, figures, loading."""
    from huggingface_hub import ModelCardData

    model, tokenizer = load_model(folder)
    head = load_head(folder) if (folder / "head.json").is_file() else None
    notes, run = read_notes(folder), _run_of(folder)
    licence = stated.licence or notes.get("licence")
    base = stated.base_model or _hub_name(notes.get("started_from"))
    digest = digest_of(model)
    digests = {digest} if head is None else {digest, digest_of(model, head)}
    cards = [_card_of(path, folder, digests) for path in _card_files(folder, stated.cards)]
    opens_elsewhere = ["sentence-transformers"] if (folder / "modules.json").is_file() else []
    front = ModelCardData(
        license=licence,
        library_name="harvest-video",
        base_model=base,
        tags=["video", *([] if tokenizer is None else ["video-text-retrieval"]), *opens_elsewhere],
    )
    video = model.config.video
    frames = "1 frame" if video.num_frames == 1 else f"{video.num_frames} frames"
    facts = {
        "base model": base or _public(notes.get("started_from")) or "not stated",
        "recipe": notes.get("recipe") or "none: converted, not trained by Harvest",
        "schedule": _schedule(run),
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "video": f"{frames} of {video.image_size} x {video.image_size}, patches of {video.patch_size}",
        "text": "no text tower" if tokenizer is None else f"at most {tokenizer.config.context_length} tokens",
        "head": "" if head is None else f"{head.config.kind}, {len(head.config.names):,} classes or answers",
        "licence": licence or "not stated: the terms of the base model and of the training data apply",
        "weights": f"sha256 {digest} (names, shapes and values of the tensors)",
        "written by": f"harvest-video {__version__}",
    }
    lines = [f"---\n{front.to_yaml()}\n---", f"# {name.partition('/')[2]}", "", "| | |", "|---|---|"]
    lines += [f"| {title} | {cell(str(fact))} |" for title, fact in facts.items() if fact]
    lines += ["", "## How to load", "", "```python", *_loading(name, tokenizer is not None), "```"]
    lines += ["", "## Training data", "", *(f"- {line}" for line in _data_lines(stated.data, run))]
    lines += ["", "## Evaluation", "", *_evaluation(cards)]
    return "\n".join(lines) + "\n"


def _loading(name: str, has_texts: bool) -> list[str]:
    if has_texts:
        lines = ["import harvest", "", f'model = harvest.load("{name}")']
        lines += ['videos = model.embed_videos(["a.mp4", "b.mp4"])']
        lines += ['texts = model.embed_texts(["a dog catches a ball"])', "print(texts @ videos.T)"]
    else:
        lines = ["from harvest.model.importing.pretrained import load_any", ""]
        lines += [f'model, _, _ = load_any("{name}")']
        lines += ["features = model.encode_video(frames)  # uint8 [B, T, 3, S, S]"]
    return ["# pip install 'harvest-video[torch]'", *lines]


def _run_of(folder: Path) -> Mapping[str, Any]:
    """The settings of the run whose model this is; empty where none lies around the folder."""
    try:
        run = read_json(folder.absolute().parent / "config.json")
    except HarvestError:  # of something else
        return {}
    is_its = "recipe" in run and run["recipe"] == read_notes(folder).get("recipe")
    return run if is_its and isinstance(run.get("data"), dict) else {}


def _schedule(run: Mapping[str, Any]) -> str:
    loop = run.get("loop") or {}
    wanted = ("steps", "global_batch", "precision")
    return ", ".join(f"{key.replace('_', ' ')} {loop[key]}" for key in wanted if key in loop)


def _data_lines(said: Sequence[str], run: Mapping[str, Any]) -> list[str]:
    """What a model was trained on: as said, else as its run's settings have it."""
    if said:
        return [data if " " in data else _terms(form_named(data), data) for data in said]
    data = run.get("data", {})
    places = [str(data.get("train", "")), *map(str, data.get("more") or ()), str(data.get("images", ""))]
    lines = []
    for place in filter(None, places):
        form = FORMS.get(str(data.get("form"))) if place == places[0] else None
        form = form or _form_of(Path(place))
        file = Path(place).name
        lines.append(_terms(form, file) if form else f"{file}: terms not stated")
    return lines or ["not stated"]


def _form_of(path: Path) -> Form | None:
    """The published set that a file is, by its first row."""
    try:
        row = next((row for row in table_rows(path) if row.error is None), None) if path.is_file() else None
    except HarvestError:  # shards
        return None
    return None if row is None else recognise(Record(row, path))


def _terms(form: Form, name: str) -> str:
    parts = [form.title + ("" if name == form.name else f" ({name})"), form.size]
    parts.append(f"terms: {form.terms}" if form.terms else "terms not known")
    parts.append(f"may hold test videos of {form.overlaps}" if form.overlaps else "")
    return "; ".join(filter(None, parts))


def _card_files(folder: Path, given: Sequence[Path]) -> list[Path]:
    """The benchmark cards in a model folder, and those that were given, each once."""
    inside = sorted((*folder.glob("card.json"), *folder.glob("*/card.json")))
    files = [path / "card.json" if path.is_dir() else path for path in (*inside, *given)]
    return list({path.resolve(): path for path in files}.values())


def _card_of(path: Path, folder: Path, digests: set[str]) -> Card:
    card, _ = read_card(path)
    found = str(card.model.get("fingerprint"))
    if found not in digests:
        raise HarvestError(
            f"the card {path} is of other weights (sha256 {found[:12]}…) than {folder}: evaluate this folder"
        )
    return card


def _evaluation(cards: Sequence[Card]) -> list[str]:
    lines = [] if cards else ["No benchmark card of these weights was given."]
    for card in cards:
        missing = f", {len(card.split.missing):,} of them missing" if card.split.missing else ""
        seen = f", {card.settings['num_frames']} frames" if card.settings.get("num_frames") else ""
        lines += [f"### {card.task} on {card.split.name}", ""]
        lines += [f"{card.protocol}; {card.split.num_rows:,} rows{missing}{seen}; {card.date}.", ""]
        lines += [f"{finding}\n" for finding in card.findings]
        lines += [*figures_table(card), ""]
    return lines


# ---- the upload --------------------------------------------------------------------------------------------------


def _public(value: Any) -> Any:
    """A note without the folders of this machine that paths in it tell."""
    if isinstance(value, str):
        return Path(value).name if Path(value).is_absolute() else _FOLDERS.sub("", value)
    if isinstance(value, list):
        return [_public(one) for one in value]
    return {key: _public(one) for key, one in value.items()} if isinstance(value, dict) else value


def _hub_name(source: Any) -> str | None:
    """`source` where it names a model that was downloaded from the hub: a relative path can look the same."""
    from huggingface_hub import try_to_load_from_cache

    if not isinstance(source, str) or not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        return None
    try:
        return source if isinstance(try_to_load_from_cache(source, "config.json"), str) else None
    except ValueError:
        return None


@contextlib.contextmanager
def _upload_of(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """A folder of links to what is uploaded, and a line for each file. Notes in config.json lose this machine's paths."""
    own = sorted(path for path in folder.iterdir() if path.name in HUB_FILES)
    others = sorted(path.name for path in folder.iterdir() if path.name not in HUB_FILES)
    with tempfile.TemporaryDirectory() as name:
        staged = Path(name)
        for path in own:
            if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
                raise HarvestError(
                    f"{path} is no file of this folder, or a link to outside of it: copy the file"
                )
            (staged / path.name).symlink_to(path.resolve())
        config = read_json(folder / "config.json")
        (staged / "config.json").unlink()
        config |= {note: _public(config[note]) for note in NOTES if note in config}
        (staged / "config.json").write_text(json.dumps(config, indent=1))
        lines = [f"{path.stat().st_size:>15,} bytes  {path.name}" for path in sorted(staged.iterdir())]
        yield staged, [*lines, *([f"left out: {', '.join(others)}"] if others else [])]


def _check_name(name: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise HarvestError(f"{name!r} names no repository of the hub: {error}") from None
    if "/" not in name:
        raise HarvestError(f"{name!r} names no repository of the hub: expected user/name")


def _address(name: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{name}"


def _upload(staged: Path, name: str, *, private: bool) -> str:
    from huggingface_hub import HfApi, errors, get_token
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    token = get_token()
    if token is None:
        raise HarvestError("no token of the hub is known here: run `hf auth login`, or set HF_TOKEN")
    if not sys.stderr.isatty():
        disable_progress_bars()
    api = HfApi(token=token)
    try:
        url = str(api.create_repo(name, private=private or None, exist_ok=True))
        if private and not api.model_info(name).private:
            raise HarvestError(f"{url} is there and is public: make it private there, or leave out --private")
        api.upload_folder(repo_id=name, folder_path=staged, commit_message="Upload of a Harvest model")
    except HarvestError:
        raise
    except (errors.HTTPError, OSError, ValueError, RuntimeError) as error:  # type: ignore[attr-defined]
        raise HarvestError(_refusal(error, name).replace(token, "…")) from None
    return url


def _refusal(error: Exception, name: str) -> str:
    """What the hub said, in a sentence. Not the whole of the error, which holds signed addresses."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):  # of one file's upload
        error = error.__cause__
    if not isinstance(error, HfHubHTTPError):
        said = re.sub(r"\?\S+", "?…", " ".join(str(error).split()))[:200]
        return f"{name} was not uploaded: {_address(name)} ({type(error).__name__}: {said})"
    status = error.response.status_code
    said = " ".join((error.server_message or "").split())[:200]
    remedies = {
        401: "the token is not valid: make one that may write, and run `hf auth login`",
        403: "the token may not write there: is the user right, and may the token write?",
    }
    remedy = remedies.get(status, "try again later" if status >= 500 else "")
    answer = f"the hub answered {status}" + (f" ({said})" if said else "")
    return f"{name} was not uploaded: {answer}" + (f"; {remedy}" if remedy else "")
