"""The example of a model and data of one's own, which README.md shows."""

from __future__ import annotations

from pathlib import Path

import modelrail

ROOT = Path(__file__).parents[2]
EXAMPLES = Path(modelrail.__file__).parent / "examples"


def test_readme_shows_the_example_as_it_is() -> None:
    shown = (ROOT / "README.md").read_text().partition("<!-- file: code/rings.py -->\n```python\n")
    assert shown[2].partition("```")[0] == (EXAMPLES / "rings.py").read_text()
