"""Resource names (https://google.aip.dev/122) as values that cannot be malformed.

Every id is checked here and nowhere else, so no other module ever handles a raw name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

# Lower-case letters, digits, `._-` between them: existing model names hold underscores and dots.
_ID = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHOWN = 80
# Longer than any well-formed name, which has at most two ids.
_LONGEST = 256


class InvalidName(ValueError):
    """A resource name or id that breaks the rules; the message says which rule."""


def check_id(value: str, *, what: str) -> str:
    """Returns `value` when it is a well-formed id.

    Raises:
        InvalidName: It is empty, too long, or holds other characters than `a-z 0-9 . _ -`.
    """
    if not _ID.fullmatch(value) or ".." in value:
        raise InvalidName(
            f"{what} {_shown(value)} must match ^{_ID.pattern}$ and must not hold '..'"
        )
    return value


def _shown(value: str) -> str:
    return repr(value if len(value) <= _SHOWN else value[:_SHOWN] + "…")


def _split(name: str, *collections: str) -> list[str]:
    """Cuts `a/{x}/b/{y}` into `[x, y]` when the collections are `a, b`."""
    # A text of any length may come in, and most of one is not worth looking at.
    parts = name.split("/") if len(name) <= _LONGEST else []
    if len(parts) != 2 * len(collections) or tuple(parts[::2]) != collections:
        pattern = "/".join(f"{collection}/{{id}}" for collection in collections)
        raise InvalidName(f"name {_shown(name)} must have the form {pattern}")
    return parts[1::2]


@dataclass(frozen=True, slots=True, order=True)
class ModelName:
    """`models/{model}`."""

    model: str

    def __post_init__(self) -> None:
        check_id(self.model, what="model id")

    @classmethod
    def parse(cls, name: str) -> Self:
        """Reads `models/{model}`.

        Raises:
            InvalidName: The text has another form.
        """
        (model,) = _split(name, "models")
        return cls(model)

    def __str__(self) -> str:
        return f"models/{self.model}"


@dataclass(frozen=True, slots=True, order=True)
class ModelVersionName:
    """`models/{model}/versions/{number}`, with numbers from 1."""

    model: str
    number: int

    def __post_init__(self) -> None:
        check_id(self.model, what="model id")
        if self.number < 1:
            raise InvalidName(f"version number {self.number} must be at least 1")

    @classmethod
    def parse(cls, name: str) -> Self:
        """Reads `models/{model}/versions/{number}`.

        Raises:
            InvalidName: The text has another form, or the number is no decimal number from 1.
        """
        model, number = _split(name, "models", "versions")
        if not _NUMBER.fullmatch(number):
            raise InvalidName(f"version {_shown(number)} must be a decimal number from 1")
        return cls(model, int(number))

    @property
    def parent(self) -> ModelName:
        """The model that the version belongs to."""
        return ModelName(self.model)

    def __str__(self) -> str:
        return f"models/{self.model}/versions/{self.number}"


@dataclass(frozen=True, slots=True, order=True)
class ModelAliasName:
    """`models/{model}/aliases/{alias}`; an alias is no number, so `MODEL@3` means a version."""

    model: str
    alias: str

    def __post_init__(self) -> None:
        check_id(self.model, what="model id")
        check_id(self.alias, what="alias id")
        if self.alias.isdecimal():
            raise InvalidName(f"alias id {_shown(self.alias)} must not be a number")

    @classmethod
    def parse(cls, name: str) -> Self:
        """Reads `models/{model}/aliases/{alias}`.

        Raises:
            InvalidName: The text has another form, or the alias is a number.
        """
        model, alias = _split(name, "models", "aliases")
        return cls(model, alias)

    @property
    def parent(self) -> ModelName:
        """The model that the alias belongs to."""
        return ModelName(self.model)

    def __str__(self) -> str:
        return f"models/{self.model}/aliases/{self.alias}"


@dataclass(frozen=True, slots=True, order=True)
class BlobName:
    """`blobs/{sha256}`."""

    sha256: str

    def __post_init__(self) -> None:
        check_sha256(self.sha256)

    @classmethod
    def parse(cls, name: str) -> Self:
        """Reads `blobs/{sha256}`.

        Raises:
            InvalidName: The text has another form.
        """
        (sha256,) = _split(name, "blobs")
        return cls(sha256)

    def __str__(self) -> str:
        return f"blobs/{self.sha256}"


@dataclass(frozen=True, slots=True, order=True)
class TrainingJobName:
    """`trainingJobs/{training_job}`."""

    training_job: str

    def __post_init__(self) -> None:
        check_id(self.training_job, what="training job id")

    @classmethod
    def parse(cls, name: str) -> Self:
        """Reads `trainingJobs/{training_job}`.

        Raises:
            InvalidName: The text has another form.
        """
        (training_job,) = _split(name, "trainingJobs")
        return cls(training_job)

    def __str__(self) -> str:
        return f"trainingJobs/{self.training_job}"


def check_sha256(value: str) -> str:
    """Returns `value` when it is a SHA-256 digest in lower-case hexadecimal digits.

    Raises:
        InvalidName: It is anything else.
    """
    if not _SHA256.fullmatch(value):
        raise InvalidName(f"sha256 {_shown(value)} must be 64 lower-case hexadecimal digits")
    return value


def parse_model_reference(text: str) -> ModelName | ModelVersionName | ModelAliasName:
    """Reads the short form that people type: `MODEL`, `MODEL@3` or `MODEL@production`.

    Raises:
        InvalidName: The model, the version or the alias breaks the rules of ids.
    """
    model, at, target = text.partition("@")
    if not at:
        return ModelName(model)
    if _NUMBER.fullmatch(target):
        return ModelVersionName(model, int(target))
    return ModelAliasName(model, target)
