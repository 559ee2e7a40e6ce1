"""A model folder that also opens in `transformers` (AutoModel, AutoProcessor) and in `sentence-transformers`.

OUT/config.json, model.safetensors, tokenizer.json     as every model folder; `harvest.load(OUT)` opens it
OUT/modeling_harvest.py, processor_config.json         for transformers, with trust_remote_code=True
OUT/modules.json, config_sentence_transformers.json    for sentence-transformers, with trust_remote_code=True
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harvest.evaluation.embed import default_frames, mode_of
from harvest.files import new_folder
from harvest.interfaces import HarvestError
from harvest.model.folder import FILES, MODEL_CARD, check_room, load_head, read_notes, write_model
from harvest.model.heads import Head
from harvest.model.importing.pretrained import load_pretrained
from harvest.model.importing.sources import find_model
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_text import VideoTextModel

MODELING = Path(__file__).with_name("modeling_harvest.py")
_AUTO = {"AutoConfig": "HarvestConfig", "AutoModel": "HarvestModel", "AutoProcessor": "HarvestProcessor"}
TRANSFORMERS = {
    "model_type": "harvest-video",
    "architectures": ["HarvestModel"],
    "auto_map": {auto: f"{MODELING.stem}.{name}" for auto, name in _AUTO.items()},
}
"""What `transformers` reads of config.json."""
_MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "harvest.export.sentence_transformers.VideoTextModule"}
]
_SENTENCE_TRANSFORMERS = {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"}
HUB_FILES = (
    *FILES,
    *(MODELING.name, "processor_config.json", "modules.json", "config_sentence_transformers.json"),
    *(MODEL_CARD, ".gitattributes"),
)


def export_hub(source: str | Path, out: Path) -> None:
    """Write the model that `source` names, in any form that `harvest.load` takes, as such a folder."""
    check_room(out, HUB_FILES)
    folder = find_model(source)
    model, tokenizer, _ = load_pretrained(folder)
    notes = read_notes(folder) if folder.is_dir() else {}
    head = load_head(folder) if (folder / "head.json").is_file() else None
    try:
        with new_folder(out) as temporary:
            write_hub_files(
                temporary, model, tokenizer, head=head, notes={"started_from": str(source), **notes}
            )
            (temporary / "modules.json").write_text(json.dumps(_MODULES, indent=1))
            settings = json.dumps(_SENTENCE_TRANSFORMERS, indent=1)
            (temporary / "config_sentence_transformers.json").write_text(settings)
    except OSError as error:
        raise HarvestError(f"could not write {out}: {error}") from error


def write_hub_files(
    folder: Path,
    model: VideoTextModel,
    tokenizer: Tokenizer,
    *,
    head: Head | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """The model folder with what `transformers` needs, into a folder that exists."""
    write_model(folder, model, tokenizer, head=head, notes={**(notes or {}), **TRANSFORMERS})
    shutil.copyfile(MODELING, folder / MODELING.name)
    video = model.config.video
    processor = {
        "processor_class": _AUTO["AutoProcessor"],
        "auto_map": TRANSFORMERS["auto_map"],
        "num_frames": default_frames(model, mode_of(model)),
        "squares": video.squares,
        "tokenizer": dataclasses.asdict(tokenizer.config),
    }
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=1))
