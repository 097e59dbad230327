"""Verified files of versions on the local disk, and which version each reference pointed at last.

`models/MODEL/NUMBER/` holds a version's files and nothing else, as any name may be one of them;
`manifests/MODEL/NUMBER.json` says which they are. The folder appears by a rename when everything
is there, and its digests are computed again before it is served. `targets.json` is what lets a
server that starts without a registry serve what it served before.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from modelrail.names import ModelVersionName, check_sha256
from modelrail_inference.model.definition import MODEL_FILE

_MAX_MANIFEST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One file of a version: its path within the version, its digest and its size."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files of one version."""

    version: ModelVersionName
    files: tuple[ManifestFile, ...]

    def model_file(self) -> str | None:
        """Returns the path of the graph: `model.onnx`, or the only file ending in `.onnx`."""
        graphs = [file.path for file in self.files if file.path.endswith(".onnx")]
        if MODEL_FILE in graphs:
            return MODEL_FILE
        return graphs[0] if len(graphs) == 1 else None


class ModelCache:
    """The cache below one folder. Methods block; they run on a thread.

    Args:
        folder: The service's data directory.
    """

    def __init__(self, folder: Path) -> None:
        self._models = folder / "models"
        self._manifests = folder / "manifests"
        self._targets = folder / "targets.json"

    def folder(self, version: ModelVersionName) -> Path:
        """Returns where the version's files are, or will be."""
        return self._models / version.model / str(version.number)

    def staging(self, version: ModelVersionName) -> Path:
        """Returns the folder to download into; what an earlier try left there is kept."""
        folder = self._models / version.model / f".{version.number}.part"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder

    def find(self, version: ModelVersionName) -> Manifest | None:
        """Returns the manifest of a version whose files are all there and unchanged, or None."""
        folder = self.folder(version)
        try:
            manifest = _read_manifest(self._manifest(version), version)
            return manifest if _verified(folder, manifest) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def commit(self, manifest: Manifest) -> bool:
        """Moves a complete download into place; False when a file is not what the manifest says."""
        staging, folder = self.staging(manifest.version), self.folder(manifest.version)
        if not _verified(staging, manifest):
            shutil.rmtree(staging)
            return False
        if folder.exists():  # a version that was found damaged
            shutil.rmtree(folder)
        staging.rename(folder)
        _sync_folder(folder.parent)
        path = self._manifest(manifest.version)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write_atomically(path, {"files": [asdict(file) for file in manifest.files]})
        return True

    def prune(self, model: str, keep: Collection[int]) -> list[int]:
        """Deletes the versions of a model, and unfinished downloads, except those to keep.

        Returns:
            The numbers of the deleted versions.

        Raises:
            OSError: Something could not be deleted.
        """
        folder = self._models / model
        deleted = []
        for path in sorted(folder.iterdir() if folder.is_dir() else ()):
            name = path.name.removeprefix(".").removesuffix(".part")
            if not (name.isascii() and name.isdecimal()) or int(name) in keep:
                continue
            # Renamed first: a folder that is half deleted must not look like a version.
            doomed = path.with_name(f".{name}.part")
            if path != doomed:
                shutil.rmtree(doomed, ignore_errors=True)
                path.rename(doomed)
                self._manifest(ModelVersionName(model, int(name))).unlink(missing_ok=True)
                deleted.append(int(name))
            shutil.rmtree(doomed)
        return sorted(deleted)

    def _manifest(self, version: ModelVersionName) -> Path:
        return self._manifests / version.model / f"{version.number}.json"

    def load_targets(self) -> dict[str, int]:
        """Returns the number that each reference meant when it was last served."""
        try:
            document = json.loads(self._targets.read_text(encoding="utf-8"))
            return {str(key): int(value) for key, value in document.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def save_targets(self, targets: Mapping[str, int]) -> None:
        """Remembers the version number of each reference."""
        self._targets.parent.mkdir(parents=True, exist_ok=True)
        _write_atomically(self._targets, dict(targets))


def _read_manifest(path: Path, version: ModelVersionName) -> Manifest:
    if path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise ValueError("the manifest is too large")
    document = json.loads(path.read_text(encoding="utf-8"))
    return Manifest(
        version,
        tuple(
            ManifestFile(file["path"], check_sha256(file["sha256"]), int(file["size_bytes"]))
            for file in document["files"]
        ),
    )


def _verified(folder: Path, manifest: Manifest) -> bool:
    """Whether the folder holds the manifest's files and no other that a model could read."""
    expected = {file.path for file in manifest.files}
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    return found == expected and all(_matches(folder / file.path, file) for file in manifest.files)


def _matches(path: Path, file: ManifestFile) -> bool:
    if path.is_symlink() or path.stat().st_size != file.size_bytes:
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256


def _write_atomically(path: Path, document: Mapping[str, object]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump(document, stream)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
