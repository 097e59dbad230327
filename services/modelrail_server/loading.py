"""Reads a configuration dataclass from the command line and the environment.

Precedence: command line > environment > default. Everything that is wrong is reported at once, and
stops the start with exit status 2: an unknown flag, an unknown `MODELRAIL_<SERVICE>_*` variable, a
value that does not convert or lies outside its range.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import math
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

__all__ = ["ConfigError", "load_config", "setting"]

C = TypeVar("C")

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})

# Kubernetes announces a Service called modelrail-registry to every pod of its namespace as
# MODELRAIL_REGISTRY_SERVICE_HOST, MODELRAIL_REGISTRY_PORT=tcp://10.0.0.7:8011,
# MODELRAIL_REGISTRY_PORT_8011_TCP_ADDR and so on. They are refused like every variable that is no
# field: letting them pass would need a list of names that a misspelt field could hide behind. The
# message says how to switch them off. No field may be called `port` or `service_host`.
_SERVICE_LINK = re.compile(r"SERVICE_HOST|SERVICE_PORT(_.+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_\w+)?)?")


class ConfigError(ValueError):
    """A field has a value that does not fit; the message says what was expected and what was got.

    Args:
        field: Name of the field in the dataclass.
        problem: What was expected and what was got.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


def setting(
    default: Any,
    help: str,  # noqa: A002 what the field is for reads best under its own name
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    secret: bool = False,
) -> Any:
    """Declares a field of a configuration dataclass.

    The type comes from the annotation: str, int, float, bool, Path, an Enum (spelled by its
    values), `T | None`, or `tuple[str, ...]` (a flag that repeats; separated by commas in the
    environment).

    Args:
        default: Value where neither the command line nor the environment says anything.
        help: One sentence for `--help`, with the unit.
        minimum: Smallest number allowed.
        maximum: Largest number allowed.
        secret: Whether the value stays out of the configuration's `repr`.
    """
    return dataclasses.field(
        default=default,
        repr=not secret,
        metadata={"help": help, "minimum": minimum, "maximum": maximum},
    )


@dataclass(frozen=True, slots=True)
class _Setting:
    """A field with everything that the loader needs to know about it."""

    name: str
    kind: Any
    optional: bool
    default: Any
    help: str
    minimum: float | None
    maximum: float | None

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def repeats(self) -> bool:
        return typing.get_origin(self.kind) is tuple

    @property
    def expected(self) -> str:
        if isinstance(self.kind, type) and issubclass(self.kind, enum.Enum):
            return "one of " + ", ".join(str(member.value) for member in self.kind)
        if self.kind is bool:
            return "true or false"
        if self.kind not in (int, float):
            return "a value that is not empty"
        noun = "a whole number" if self.kind is int else "a number"
        if self.minimum is not None and self.maximum is not None:
            return f"{noun} from {self.minimum:.15g} to {self.maximum:.15g}"
        if self.minimum is not None:
            return f"{noun} of at least {self.minimum:.15g}"
        return noun if self.maximum is None else f"{noun} of at most {self.maximum:.15g}"

    def convert(self, text: str) -> Any:
        """Returns the value that `text` spells.

        Raises:
            ValueError: It spells none; the message says what was expected and what was got.
        """
        if self.optional and not text:
            return None
        try:
            return self._convert(text)
        except ValueError:
            raise ValueError(f"expected {self.expected}, got {text!r}") from None

    def _convert(self, text: str) -> Any:
        if self.kind is bool:
            if text.lower() not in _TRUE | _FALSE:
                raise ValueError
            return text.lower() in _TRUE
        if self.kind in (int, float):
            number = self.kind(text)
            if not math.isfinite(number):
                raise ValueError
            if self.minimum is not None and number < self.minimum:
                raise ValueError
            if self.maximum is not None and number > self.maximum:
                raise ValueError
            return number
        if not text or "\0" in text:
            raise ValueError
        if isinstance(self.kind, type) and issubclass(self.kind, enum.Enum):
            return next(_matching(member for member in self.kind if str(member.value) == text))
        return self.kind(text)


def _matching(found: typing.Iterator[Any]) -> typing.Iterator[Any]:
    """Turns "no such member" into the ValueError of every other wrong value."""
    for member in found:
        yield member
        return
    raise ValueError


def _settings(config_type: type) -> list[_Setting]:
    hints = typing.get_type_hints(config_type)
    settings = []
    for field in dataclasses.fields(config_type):
        kind, optional = hints[field.name], False
        if typing.get_origin(kind) in (typing.Union, types.UnionType):
            kinds = [member for member in typing.get_args(kind) if member is not type(None)]
            if len(kinds) != 1:
                raise TypeError(f"{config_type.__name__}.{field.name}: one type or None")
            kind, optional = kinds[0], True
        if "help" not in field.metadata:
            raise TypeError(f"{config_type.__name__}.{field.name}: declare it with setting()")
        settings.append(_Setting(field.name, kind, optional, field.default, **field.metadata))
    return settings


def load_config(
    config_type: type[C],
    *,
    service: str,
    argv: Sequence[str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> C:
    """Reads the configuration of a service; `--help` prints all fields.

    Args:
        config_type: Dataclass whose fields are made with `setting`.
        service: Short name, which prefixes the variables: `registry` reads `MODELRAIL_REGISTRY_*`.
        argv: Arguments without the program's name; those of this process by default.
        environ: Environment; that of this process by default.

    Raises:
        SystemExit: With status 2 if something is wrong, after every problem was written to stderr;
            with status 0 after `--help`.
    """
    prefix = f"MODELRAIL_{service.upper().replace('-', '_')}_"
    settings = _settings(config_type)
    parser = _parser(settings, f"modelrail-{service}", prefix)
    arguments, unknown = parser.parse_known_args(sys.argv[1:] if argv is None else list(argv))
    environ = os.environ if environ is None else environ

    problems = [f"{argument}: unknown argument" for argument in unknown]
    problems += _unknown_variables(environ, prefix, {setting.name for setting in settings})
    values: dict[str, Any] = {}
    for field in settings:
        variable = prefix + field.name.upper()
        # The variable is converted even where the flag wins: a wrong one would strike later.
        if (text := environ.get(variable)) is not None:
            parts = [part.strip() for part in text.split(",")] if field.repeats else [text]
            _take(values, problems, field, variable, parts)
        if (parts := getattr(arguments, field.name)) is not None:
            _take(values, problems, field, field.flag, parts)
    if not problems:
        try:
            return config_type(**values)
        except ConfigError as error:
            problems.append(f"--{error.field.replace('_', '-')}: {error.problem}")
    return _refuse(parser.prog, problems)


def _take(
    values: dict[str, Any], problems: list[str], field: _Setting, source: str, parts: Sequence[str]
) -> None:
    try:
        if field.repeats:
            if "" in parts and list(parts) != [""]:
                raise ValueError(f"expected values that are not empty, got {','.join(parts)!r}")
            values[field.name] = tuple(part for part in parts if part)
        else:
            values[field.name] = field.convert(parts[-1])
    except ValueError as error:
        problems.append(f"{source}: {error}")


def _unknown_variables(environ: Mapping[str, str], prefix: str, names: set[str]) -> list[str]:
    problems = []
    for variable in sorted(environ):
        suffix = variable.removeprefix(prefix)
        if suffix == variable or (suffix.lower() in names and suffix == suffix.upper()):
            continue
        hint = ""
        if _SERVICE_LINK.fullmatch(suffix):
            hint = (
                "; Kubernetes sets it for a Service of that name:"
                " write `enableServiceLinks: false` into the pod's spec"
            )
        problems.append(f"{variable}: unknown variable{hint}")
    return problems


def _refuse(program: str, problems: Sequence[str]) -> NoReturn:
    for problem in problems:
        print(f"{program}: {problem}", file=sys.stderr)
    print(f"{program}: `{program} --help` lists every flag and variable", file=sys.stderr)
    raise SystemExit(2)


def _parser(settings: Sequence[_Setting], program: str, prefix: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        allow_abbrev=False,
        description="Each flag can be given as the environment variable beside it; the flag wins.",
        formatter_class=argparse.RawTextHelpFormatter,
    )
    for field in settings:
        default = _spelled(field.default)
        help_text = field.help.replace("%", "%%")
        details = f"{prefix}{field.name.upper()}; default: {default or 'none'}"
        keywords: dict[str, Any] = {"dest": field.name, "help": f"{help_text}\n[{details}]"}
        # Values stay text here: flag and variable go through one conversion with one message.
        if field.kind is bool:
            parser.add_argument(field.flag, action="store_const", const=["true"], **keywords)
            parser.add_argument(
                "--no-" + field.flag[2:],
                dest=field.name,
                action="store_const",
                const=["false"],
                help=argparse.SUPPRESS,
            )
        else:
            metavar = _metavar(field)
            parser.add_argument(field.flag, action="append", metavar=metavar, **keywords)
    return parser


def _metavar(field: _Setting) -> str:
    if isinstance(field.kind, type) and issubclass(field.kind, enum.Enum):
        return "|".join(str(member.value) for member in field.kind)
    metavars: dict[Any, str] = {int: "N", float: "X", Path: "PATH"}
    if field.kind is str and field.name.endswith("address"):
        return "HOST:PORT"
    return metavars.get(field.kind, "TEXT")


def _spelled(value: Any) -> str:
    spell: Callable[[Any], str] = str
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, tuple):
        return ",".join(map(spell, value))
    return "" if value is None else spell(value)
