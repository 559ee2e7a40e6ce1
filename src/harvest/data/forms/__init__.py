"""Training sets as they are published: recognised by their columns, read as their owners mean them.

One record a set (`FORMS`). A set whose rows need no more than the general rules for columns has a record for its name
and terms alone.
"""

from __future__ import annotations

import difflib

from harvest.data.forms import image_sets, video_sets
from harvest.data.forms.record import Entry, Form, Record, column_name
from harvest.interfaces import HarvestError

__all__ = ["FORMS", "Entry", "Form", "Record", "column_name", "form_named", "recognise"]

FORMS: dict[str, Form] = {form.name: form for form in (*image_sets.FORMS, *video_sets.FORMS)}


def form_named(name: str) -> Form:
    if name not in FORMS:
        near = difflib.get_close_matches(name, FORMS, n=1)
        hint = f": did you mean {near[0]!r}?" if near else ""
        raise HarvestError(f"no training set {name!r}{hint}; there are {', '.join(FORMS)}")
    return FORMS[name]


def recognise(first: Record) -> Form | None:
    """The form that a file's first row has, if it is a known one: of several that fit the first in `FORMS`."""
    return next((form for form in FORMS.values() if form.fits(first)), None)
