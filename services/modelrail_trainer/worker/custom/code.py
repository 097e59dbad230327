"""The functions of the job's owner, imported and called."""

from __future__ import annotations

import hashlib
import importlib
import random
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modelrail_trainer.code_roots import CodeRoots, EntryPoint, EntryPointError
from modelrail_trainer.failure import UserCodeError
from modelrail_trainer.worker.custom.blame import Blame
from modelrail_trainer.worker.progress import made_progress

_NUMPY_SEEDS = 1 << 32


class UserCode:
    """The folders of user code in this process.

    Args:
        roots: The folders.
        on_end: Told why, when the code ends the process without an exception.
    """

    def __init__(self, roots: CodeRoots, on_end: Callable[[str], None]) -> None:
        self._roots = roots
        self._blame = Blame(roots, on_end)

    def blamed(self, name: str) -> AbstractContextManager[None]:
        """Returns a context in which what the code does wrong fails the job as its own fault.

        Args:
            name: What runs, for the message.
        """
        return self._blame.on(name)

    def call(self, entry_point: str, *given: object, seed: int, **arguments: Any) -> Any:
        """Imports a function and calls it.

        Args:
            entry_point: `module:function`.
            given: What it is given by place.
            seed: Of every generator that it may draw from.
            arguments: What it is given by name.

        Raises:
            UserCodeError: It may not run here, is not there, raised an exception, or ended the
                process.
        """
        try:
            found = self._roots.find(entry_point)
        except EntryPointError as error:
            raise UserCodeError(f"{entry_point}: {error}") from None
        random.seed(seed)
        np.random.seed(seed % _NUMPY_SEEDS)  # for code that draws from it
        torch.manual_seed(seed)
        with self._blame.on(entry_point, alone=True):
            result = self._imported(found)(*given, **arguments)
        made_progress()
        return result

    def digests(self) -> dict[str, str]:
        """Returns the SHA-256 of the source of every module of the folders that is imported by now.

        The names are those of the modules, with `user-code:` before them.
        """
        found: dict[str, str] = {}
        for name, module in sorted(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if isinstance(file, str) and self._roots.relative(file) is not None:
                content = Path(file).read_bytes()
                found[f"user-code:{name}"] = hashlib.sha256(content).hexdigest()
        return found

    def _imported(self, found: EntryPoint) -> Callable[..., Any]:
        self._open_folders()
        module = importlib.import_module(found.module)
        # Whatever the search above said, what was imported is what counts.
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or self._roots.relative(file) is None:
            raise UserCodeError(
                f"expected the module {found.module!r} of a --user-code folder, and it came from "
                "elsewhere; rename yours"
            )
        function = getattr(module, found.function, None)
        if not callable(function):
            got = "nothing" if function is None else f"a {type(function).__name__}"
            raise UserCodeError(
                f"expected a function {found.function!r} in the module {found.module!r}, got {got}"
            )
        return function  # type: ignore[no-any-return]

    def _open_folders(self) -> None:
        """Puts the folders behind everything that is installed, so that they shadow nothing."""
        # The folders are not this process's to write in, and a source that changed must be read.
        sys.dont_write_bytecode = True
        sys.pycache_prefix = "/nonexistent"
        for root in map(str, self._roots.roots):
            if root not in sys.path:
                sys.path.append(root)
