"""The folders whose Python modules jobs may name, and the modules in them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class EntryPointError(ValueError):
    """No function may be called by that name; the message is for the owner of the job."""


@dataclass(frozen=True, slots=True)
class EntryPoint:
    """A function by its name, and the file that its module is read from.

    Attributes:
        module: Dotted name.
        function: Its name in the module.
        file: The module's source, with links followed.
    """

    module: str
    function: str
    file: Path

    def __str__(self) -> str:
        return f"{self.module}:{self.function}"


class CodeRoots:
    """The folders that the operator has opened for code of the jobs' owners.

    Args:
        roots: The folders; none means that no such code runs.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = tuple(root.resolve() for root in roots)

    def find(self, text: str) -> EntryPoint:
        """Returns the function that `module:function` means. Nothing is imported.

        Raises:
            EntryPointError: No such code may run here, no folder has the module, or the module is
                one that is installed: those stand before the folders, and are not the owner's.
        """
        module, _, function = text.partition(":")
        if not self.roots:
            raise EntryPointError(
                "this trainer runs no code of the owners of jobs; ask its operator to start it "
                f"with --user-code and a folder that has the module {module[:80]!r}"
            )
        top = module.partition(".")[0]
        if self._is_installed(top):
            raise EntryPointError(
                "expected a module in a --user-code folder of the trainer, got "
                f"{module[:80]!r}, and {top[:80]!r} is the name of an installed package, which "
                "comes first; rename yours"
            )
        for root in self.roots:
            if (file := self._source(root, module)) is not None:
                return EntryPoint(module, function, file)
        raise EntryPointError(
            "expected a module in a --user-code folder of the trainer, got "
            f"{module[:80]!r}; ask its operator to put {top[:80]!r} there"
        )

    def relative(self, path: str | Path) -> str | None:
        """Returns the path of a file below its folder; None when it is in none of them."""
        try:
            real = Path(path).resolve()
        except (OSError, RuntimeError, ValueError):  # a loop of links, odd characters
            return None
        for root in self.roots:
            if real.is_relative_to(root):
                return real.relative_to(root).as_posix()
        return None

    def _source(self, root: Path, module: str) -> Path | None:
        place = root.joinpath(*module.split("."))
        for file in (place / "__init__.py", place.with_name(f"{place.name}.py")):
            try:
                real = file.resolve(strict=True)
            except (OSError, RuntimeError, ValueError):  # absent, a loop of links, odd characters
                continue
            # A link may lead elsewhere in the folder, and not out of it.
            if real.is_file() and real.is_relative_to(root):
                return real
        return None

    def _is_installed(self, top: str) -> bool:
        if top in sys.stdlib_module_names or top in sys.builtin_module_names:
            return True
        try:
            spec = importlib.util.find_spec(top)  # of a name without dots: nothing is imported
        except (ImportError, ValueError):  # a module of this process without a specification
            return top in sys.modules
        # A folder without `__init__.py` that lies on the path by chance stands behind every module.
        if spec is None or spec.origin is None:
            return False
        return self.relative(spec.origin) is None
