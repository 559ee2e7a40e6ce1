"""Sets of pictures with captions, used beside videos. Addresses are fetched by img2dataset, whose tars are read."""

from __future__ import annotations

from collections.abc import Iterator

from harvest.data.cells import text_of
from harvest.data.forms.record import Entry, Form, Record


def coco(record: Record) -> Iterator[Entry]:
    """Two tables: images and captions."""
    texts: dict[str, list[str]] = {}
    for said in record["annotations"]:
        texts.setdefault(str(said["image_id"]), []).append(text_of(said["caption"]))
    for image in record["images"]:
        id = str(image["id"])
        yield Entry(id, tuple(texts.get(id, ())), cut=(str(image["file_name"]),))


def sbu(record: Record) -> Iterator[Entry]:
    yield Entry(str(record.number + 1), record.texts("captions"), address=record.name("image_urls"))


def pixel_prose(record: Record) -> Iterator[Entry]:
    yield Entry(record.name("uid"), record.texts("vlm_caption"), address=record.name("url"))


FORMS = (
    Form(
        "cc3m",
        "CC3M (Conceptual Captions)",
        ("caption", "video"),
        size="3.3 M pictures",
        terms="free to use, Google's; the owners' on the pictures",
        hosted="addresses",
        note="A file without a header, the caption first; read without being named too.",
        automatic=False,
    ),
    Form(
        "cc12m",
        "CC12M (Conceptual 12M)",
        ("video", "caption"),
        size="12.4 M pictures",
        terms="free to use, Google's; the owners' on the pictures",
        hosted="addresses",
        note="A file without a header, the address first; read without being named too. Names of people are <PERSON>.",
        automatic=False,
    ),
    Form(
        "coco",
        "COCO Captions",
        ("images", "annotations"),
        coco,
        "118,287 pictures, 5 captions each",
        "CC-BY-4.0 on the captions; Flickr's on the pictures",
        "videos",
    ),
    Form("sbu", "SBU Captions", ("image_urls", "captions"), sbu, "860,000", "research", "addresses"),
    Form(
        "pixelprose",
        "PixelProse",
        ("uid", "url", "vlm_caption"),
        pixel_prose,
        "16 M pictures",
        "CC-BY-4.0 on the captions",
        "addresses",
        note='Captions begin with "This image displays".',
    ),
    Form(
        "coyo",
        "COYO-700M",
        ("id", "url", "text", "image_phash"),
        size="747 M pictures",
        terms="CC-BY-4.0 on the metadata",
        hosted="addresses",
    ),
)
