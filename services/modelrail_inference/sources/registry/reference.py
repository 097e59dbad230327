"""What `--serve` can name."""

from __future__ import annotations

from dataclasses import dataclass

from modelrail.names import (
    InvalidName,
    ModelAliasName,
    ModelName,
    ModelVersionName,
    check_id,
    parse_model_reference,
)

_DEFAULT_ALIAS = "production"
_EVERY_MODEL = "*@"

Reference = ModelVersionName | ModelAliasName
"""One version of one model: a fixed one, or the one that an alias points at."""


@dataclass(frozen=True, slots=True)
class EveryModelWith:
    """`*@ALIAS`: every model that has the alias, now and later."""

    alias: str

    def __post_init__(self) -> None:
        check_id(self.alias, what="alias id")
        if self.alias.isdecimal():
            raise InvalidName(f"'*@{self.alias}' must name an alias: versions differ by model")

    def __str__(self) -> str:
        return f"{_EVERY_MODEL}{self.alias}"


def parse_reference(text: str) -> Reference | EveryModelWith:
    """Reads `MODEL@ALIAS`, `MODEL@3`, `MODEL` for its alias `production`, or `*@ALIAS`.

    Raises:
        InvalidName: The text is none of these.
    """
    if text.startswith(_EVERY_MODEL):
        return EveryModelWith(text.removeprefix(_EVERY_MODEL))
    name = parse_model_reference(text)
    return ModelAliasName(name.model, _DEFAULT_ALIAS) if isinstance(name, ModelName) else name
