"""The benchmark card: every number with what decides it, and what it is a mean of.

DIR/card.json     for programs, and for `harvest compare`
DIR/card.md       for a model's README
DIR/card.html     a page that needs no other file
DIR/credits.npz   what each query of each figure earned, in the order of the manifest; no pickle in it
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import platform
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from torch import Tensor, nn

from harvest import __version__
from harvest.evaluation.result import Credits, Result, is_fraction, parts_of, shown
from harvest.files import new_folder
from harvest.interfaces import Example, HarvestError
from harvest.model.folder import digest_of
from harvest.model.video_text import VideoTextModel
from harvest.settings import read_settings

FORMAT = 1
TEMPLATE = Path(__file__).with_name("card.html.j2")

_BY_VARIANT = {
    "dual_softmax": "dual softmax: all queries at once",
    "reranked": "re-ranked by the matching head",
    "matching": "matching head",
    "mixture": "matching head and embeddings, mixed",
    "reversed": "clips reversed",
    "shuffled": "frames shuffled",
    "one_frame": "one frame of each clip",
}


@dataclass(frozen=True)
class ScoredRows:
    """The rows that were scored."""

    name: str
    digest: str
    """A hash of the annotation: equal for equal rows, wherever the videos are."""
    num_rows: int
    missing: Mapping[str, str]
    """Rows without a score, with the reason."""


@dataclass(frozen=True)
class Card:
    """A complete record of one evaluation; the fields of card.json."""

    task: str
    mode: str
    protocol: str
    split: ScoredRows
    settings: Mapping[str, Any]
    numbers: tuple[Mapping[str, Any], ...]
    """Each with its `name`, how it was `scored`, `value`, 95 % `interval` or None, and `unit` (fraction, rank or error)."""
    counts: Mapping[str, int]
    findings: tuple[str, ...]
    model: Mapping[str, Any]
    """Where it came from, the hash of its weights, how many there are."""
    command: str
    hardware: Mapping[str, Any]
    date: str
    versions: Mapping[str, str]
    format: int = FORMAT


def split_of(examples: Sequence[Example], name: str, names: Sequence[str] | None = None) -> ScoredRows:
    """The split that a manifest is; `names` are its classes or answers, where they are given apart."""
    rows = [
        [
            e.id,
            e.texts,
            e.label,
            e.labels,
            e.start_s,
            e.end_s,
            e.question,
            e.answer,
            [[b.sides, b.labels] for b in e.boxes],
        ]
        for e in examples
    ]
    digest = hashlib.sha256(json.dumps([rows, names]).encode()).hexdigest()[:16]
    return ScoredRows(name, digest, len(examples), {})


def make_card(
    result: Result,
    split: ScoredRows,
    model: VideoTextModel,
    *,
    head: nn.Module | None = None,
    source: str,
    command: str,
    hardware: Mapping[str, Any],
) -> Card:
    """The card of a result. `source` is the name by which the model was given."""
    modules: list[nn.Module] = [model] if head is None else [model, head]
    return Card(
        task=result.task,
        mode=result.mode,
        protocol=result.protocol,
        split=dataclasses.replace(split, missing=dict(result.missing)),
        settings=dict(result.settings),
        numbers=tuple(_number(result, name) for name in result.metrics if name != "share_of_rows"),
        counts=dict(result.counts),
        findings=result.findings,
        model={
            "source": source,
            "fingerprint": digest_of(*modules),
            "parameters": sum(p.numel() for module in modules for p in module.parameters()),
        },
        command=command,
        hardware=dict(hardware),
        date=datetime.date.today().isoformat(),
        versions={
            "harvest": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    )


def _number(result: Result, name: str) -> dict[str, Any]:
    plain, variant = parts_of(name)
    interval = result.intervals.get(name)
    scored = _BY_VARIANT.get(variant, result.scored_by or result.task)
    is_given = plain in ("chance", "commonest_answer")  # a property of the set
    return {
        "name": name,
        "scored": "nothing: it is what guessing gives" if is_given else scored,
        "value": result.metrics[name],
        "interval": None if interval is None else list(interval),
        "unit": "fraction" if is_fraction(plain) else plain.rpartition("_")[2],
    }


def write_card(folder: Path, card: Card, result: Result) -> None:
    """Write the card's four files, whole or not at all; a card that is there already makes room."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "card.json").is_file():
        raise HarvestError(f"{folder} is not empty and holds no card: give another folder with --card")
    arrays = {
        f"{kind}/{name}": t.numpy() for name, c in result.credits.items() for kind, t in c._asdict().items()
    }
    arrays |= {f"resampled/{name}": values.numpy() for name, values in result.resampled.items()}
    try:
        with new_folder(folder) as temporary:
            text = json.dumps(dataclasses.asdict(card), indent=1, ensure_ascii=False)
            (temporary / "card.json").write_text(text + "\n", encoding="utf-8")
            (temporary / "card.md").write_text(as_markdown(card), encoding="utf-8")
            (temporary / "card.html").write_text(as_page(card), encoding="utf-8")
            with (temporary / "credits.npz").open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **arrays)
    except OSError as error:
        raise HarvestError(f"cannot write the card {folder}: {error}") from error


def read_card(path: str | Path) -> tuple[Card, Result]:
    """A card and its result, from card.json or its folder."""
    path = Path(path)
    path = path / "card.json" if path.is_dir() else path
    try:
        values = read_settings(dict[str, Any], path)
        if values["format"] > FORMAT:
            raise HarvestError(f"{path} was written by a newer Harvest: update Harvest")
        split = ScoredRows(**values.pop("split"))
        card = Card(**values, split=split)
        credits, resampled = _read_credits(path.with_name("credits.npz"))
    except OSError as error:
        raise HarvestError(f"cannot read the card {path}: {error}") from None
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise HarvestError(f"{path} is not a benchmark card: {error}") from None
    result = Result(
        task=card.task,
        mode="image" if card.mode == "image" else "video",
        protocol=card.protocol,
        metrics={number["name"]: number["value"] for number in card.numbers},
        counts=card.counts,
        missing=split.missing,
        settings=card.settings,
        findings=tuple(card.findings),
        credits=credits,
        resampled=resampled,
    )
    return card, result


def _read_credits(path: Path) -> tuple[dict[str, Credits], dict[str, Tensor]]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        found = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    names = [key.removeprefix("values/") for key in found if key.startswith("values/")]
    credits = {name: Credits(found[f"values/{name}"], found[f"group/{name}"]) for name in names}
    resampled = {
        key.removeprefix("resampled/"): t for key, t in found.items() if key.startswith("resampled/")
    }
    return credits, resampled


# ---- for people --------------------------------------------------------------------------------------------------


def _figures(card: Card) -> list[tuple[str, str, str, str]]:
    """Name, how it was scored, value, interval."""
    rows = []
    for number in card.numbers:
        plain, _ = parts_of(number["name"])
        ends = number["interval"]
        between = "" if ends is None else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}"
        rows.append((plain.replace("_", " "), number["scored"], shown(plain, number["value"]), between))
    return rows


def _facts(card: Card, machine: str) -> list[tuple[str, str]]:
    """What decides the figures."""
    settings, split = card.settings, card.split
    facts = [
        ("protocol", card.protocol),
        ("split", f"{split.name}, {split.num_rows:,} rows, annotation {split.digest}"),
        ("missing", f"{len(split.missing):,} of {split.num_rows:,} rows" if split.missing else "nothing"),
        ("model", f"{card.model['source']}, {card.model['parameters']:,} parameters"),
        ("weights", f"sha256 {card.model['fingerprint']}"),
        ("counts", ", ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in card.counts.items())),
    ]
    titles = {
        "num_frames": "frames",
        "num_clips": "clips a video",
        "num_crops": "crops",
        "image_size": "resolution",
        "seen": "seen of a clip",
        "dim": "entries of an embedding",
    }
    for key, title in titles.items():
        if settings.get(key) is not None:
            facts.append((title, str(settings[key])))
    for key, value in settings.items():
        if key not in titles and value not in (None, False, 0):
            text = f"{len(value)}: {'; '.join(value[:3])}" if isinstance(value, list) else str(value)
            facts.append((key.replace("_", " "), text))
    versions = ", ".join(f"{name} {version}" for name, version in card.versions.items())
    facts += [
        ("command", card.command),
        ("hardware", machine),
        ("versions", versions),
        ("date", card.date),
    ]
    return facts


def _machine(card: Card) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in card.hardware.items() if value)


def cell(text: str) -> str:
    """Text as a cell of a table in Markdown."""
    return text.replace("|", "\\|").replace("\n", " ")


def figures_table(card: Card) -> list[str]:
    """The figures of a card with their intervals, as lines of a table in Markdown."""
    lines = ["| figure | scored by | value | 95 % interval |", "|---|---|---:|---:|"]
    return lines + ["| " + " | ".join(map(cell, row)) + " |" for row in _figures(card)]


def as_markdown(card: Card) -> str:
    lines = [f"# {card.task} on {card.split.name}", ""]
    lines += [f"{finding}\n" for finding in card.findings]
    lines += figures_table(card)
    lines += ["", "| | |", "|---|---|"]
    lines += [f"| {name} | {cell(value)} |" for name, value in _facts(card, _machine(card))]
    if card.split.missing:
        lines += ["", "Missing:", ""]
        lines += [f"- {id}: {reason}" for id, reason in list(card.split.missing.items())[:50]]
        if len(card.split.missing) > 50:
            lines.append(f"- and {len(card.split.missing) - 50:,} more, in card.json")
    return "\n".join(lines) + "\n"


def as_page(card: Card) -> str:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(card=card, figures=_figures(card), facts=_facts(card, _machine(card)))
