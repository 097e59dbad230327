"""The parts of object stores that objects may be read from."""

from __future__ import annotations

from collections.abc import Sequence

from modelrail_trainer.data_roots import DataPathError
from modelrail_trainer.objects.uri import SCHEMES, is_folder_uri, is_object_uri


class ObjectRoots:
    """The buckets and folders of keys that the operator has opened for training data.

    Args:
        roots: `scheme://bucket` or `scheme://bucket/folder`; none means that no objects are read.

    Raises:
        ValueError: One is neither.
    """

    def __init__(self, roots: Sequence[str]) -> None:
        self._roots = tuple(root.rstrip("/") + "/" for root in roots)
        for root in self._roots:
            if not is_object_uri(root + "x"):
                schemes = ", ".join(f"{scheme}://" for scheme in SCHEMES)
                raise ValueError(
                    f"expected a bucket or a folder in one, behind one of {schemes}, got {root!r}"
                )

    def check(self, uri: str) -> None:
        """Returns when an object may be read. What lies outside is not told from what is not there.

        Raises:
            DataPathError: It may not.
        """
        self._check(uri, "an object below", is_good=is_object_uri(uri) and self._has(uri))

    def check_folder(self, uri: str) -> None:
        """Returns when the objects below a folder may be read, as `check` does for one object.

        Raises:
            DataPathError: They may not.
        """
        is_good = is_folder_uri(uri) and self._has(uri.rstrip("/") + "/")
        self._check(uri, "a folder that is, or is below,", is_good=is_good)

    def _has(self, uri: str) -> bool:
        return uri.startswith(self._roots)

    def _check(self, uri: str, wanted: str, *, is_good: bool) -> None:
        if not self._roots:
            raise DataPathError(
                "this trainer reads no objects: it was started without --object-root"
            )
        if not is_good:
            raise DataPathError(
                f"expected {wanted} an --object-root of the trainer, got {uri[:200]!r}"
            )
