"""Write the generated Python packages from the .proto files beside this program.

    python protos/generate.py            write the packages under clients/modelrail anew
    python protos/generate.py --check    write nothing; exit 1 and name what is out of date

The Open Inference Protocol is public under the package `inference`, and so are the stubs of
tritonclient and kserve: two of them in one process fail on duplicate symbols. The wire carries no
package, except in the method path. For Python the same messages are therefore derived under the
package `modelrail.oip.v2`, and only the method path keeps the public name.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import sysconfig
import tempfile
from importlib import metadata, resources
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parent
CLIENTS = PROTOS.parent / "clients"
PACKAGES = ("modelrail/oip/v2", "modelrail/registry/v1", "modelrail/trainer/v1")

# Generated code refuses to run below the version that wrote it; this one is the lowest we support.
GENERATOR = "1.81."

PUBLIC_PACKAGE = "inference"
PRIVATE_PACKAGE = "modelrail.oip.v2"
PUBLIC_SERVICE = f"{PUBLIC_PACKAGE}.GRPCInferenceService"


def require_generator() -> None:
    """Stop with a message when the installed grpcio-tools is not the pinned release line."""
    installed = metadata.version("grpcio-tools")
    if not installed.startswith(GENERATOR):
        sys.exit(
            f"generate.py: grpcio-tools {GENERATOR}x is needed, {installed} is installed."
            " Code from a later one does not import on the declared floors of grpcio and"
            " protobuf.\n"
            f"    pip install 'grpcio-tools=={GENERATOR}*'"
        )


def stage(target: Path) -> list[str]:
    """Copy the .proto files to `target`, the public protocol under its private package.

    Returns:
        The paths of all staged files, relative to `target`, sorted.
    """
    shutil.copytree(PROTOS / "modelrail", target / "modelrail")
    derived = target / PRIVATE_PACKAGE.replace(".", "/")
    derived.mkdir(parents=True)
    for source in (PROTOS / PUBLIC_PACKAGE).glob("*.proto"):
        text = source.read_text(encoding="utf-8")
        text = text.replace(f"package {PUBLIC_PACKAGE};", f"package {PRIVATE_PACKAGE};")
        text = text.replace(
            f'import "{PUBLIC_PACKAGE}/', f'import "{PRIVATE_PACKAGE.replace(".", "/")}/'
        )
        (derived / source.name).write_text(text, encoding="utf-8")
    return sorted(str(path.relative_to(target)) for path in target.rglob("*.proto"))


def compile_protos(files: list[str], *, include: Path, outputs: list[str]) -> None:
    """Run protoc over `files`; stop with its message when it fails."""
    plugin = Path(sysconfig.get_path("scripts")) / "protoc-gen-mypy_grpc"
    arguments = ["protoc", f"-I{include}", f"-I{resources.files('grpc_tools') / '_proto'}"]
    arguments += [f"--plugin=protoc-gen-mypy_grpc={plugin}", *outputs, *files]
    if protoc.main(arguments) != 0:
        sys.exit("generate.py: protoc failed")


def generate(target: Path) -> None:
    """Generate every package of `PACKAGES` below the empty directory `target`."""
    with tempfile.TemporaryDirectory() as directory:
        include = Path(directory)
        files = stage(include)
        services = [
            name for name in files if "\nservice " in (include / name).read_text(encoding="utf-8")
        ]
        compile_protos(
            files, include=include, outputs=[f"--python_out={target}", f"--pyi_out={target}"]
        )
        compile_protos(
            services,
            include=include,
            outputs=[f"--grpc_python_out={target}", f"--mypy_grpc_out=quiet,only_async:{target}"],
        )
    for stub in (target / PRIVATE_PACKAGE.replace(".", "/")).glob("*_pb2_grpc.py"):
        text = stub.read_text(encoding="utf-8")
        text = text.replace(f"{PRIVATE_PACKAGE}.GRPCInferenceService", PUBLIC_SERVICE)
        stub.write_text(text, encoding="utf-8")
    for package in PACKAGES:
        name = package.replace("/", ".")
        (target / package / "__init__.py").write_text(
            f'"""Messages and stubs of `{name}`, written by protos/generate.py."""\n',
            encoding="utf-8",
        )


def files_below(root: Path) -> dict[str, bytes]:
    """Return the content of every generated file below `root` by its relative path."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for package in PACKAGES
        for path in (root / package).glob("*.py*")
        if path.is_file()
    }


def stale_files(fresh: Path, committed: Path) -> list[str]:
    """Return the paths that differ, are missing or are left over, sorted."""
    expected, found = files_below(fresh), files_below(committed)
    return sorted(
        name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
    )


def main() -> int:
    """Run the program and return its exit status."""
    parser = argparse.ArgumentParser(description="Write the generated Python packages.")
    parser.add_argument(
        "--check", action="store_true", help="only compare; exit 1 when out of date"
    )
    check: bool = parser.parse_args().check
    require_generator()
    with tempfile.TemporaryDirectory() as directory:
        fresh = Path(directory)
        generate(fresh)
        if check:
            stale = stale_files(fresh, CLIENTS)
            for name in stale:
                print(f"clients/{name} is out of date: run protos/generate.py", file=sys.stderr)
            return 1 if stale else 0
        for package in PACKAGES:
            shutil.rmtree(CLIENTS / package, ignore_errors=True)
            shutil.copytree(fresh / package, CLIENTS / package)
    return 0


if __name__ == "__main__":
    sys.exit(main())
