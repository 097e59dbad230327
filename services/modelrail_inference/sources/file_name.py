"""The name that a model file is served under when nobody chose one."""

from __future__ import annotations

import re
from pathlib import Path

from modelrail.names import check_id


def name_of_file(path: Path) -> str:
    """Returns the model name that a file gets: its stem in the form of an id.

    Raises:
        InvalidName: Nothing of the stem is left.
    """
    name = re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower())
    name = re.sub(r"\.{2,}", ".", name).strip("._-")[:64].strip("._-")
    return check_id(name, what="model name")
