"""Which function `module:function` means, and what of the machine a text for clients may hold."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modelrail_trainer.code_roots import CodeRoots, EntryPointError
from modelrail_trainer.failure.redaction import without_directories

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a module below the test's folder."""

    def write_module(name: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise RuntimeError('nothing is imported to find it')\n")
        return path

    return write_module


def refused(roots: CodeRoots, entry_point: str) -> str:
    with pytest.raises(EntryPointError) as caught:
        roots.find(entry_point)
    return str(caught.value)


def test_a_function_is_found_without_importing_its_module(tmp_path: Path, write: Write) -> None:
    file = write("code/house_nets.py")
    found = CodeRoots([tmp_path / "code"]).find("house_nets:build")
    assert (found.module, found.function, found.file) == ("house_nets", "build", file)
    assert str(found) == "house_nets:build"
    assert "house_nets" not in sys.modules


def test_packages_and_modules_in_them_are_found(tmp_path: Path, write: Write) -> None:
    package, module = write("code/house/__init__.py"), write("code/house/rooms/kitchen.py")
    roots = CodeRoots([tmp_path / "code"])
    assert roots.find("house:build").file == package
    assert roots.find("house.rooms.kitchen:build").file == module


def test_a_package_stands_before_a_module_of_its_name_as_in_python(
    tmp_path: Path, write: Write
) -> None:
    write("code/house.py")
    package = write("code/house/__init__.py")
    assert CodeRoots([tmp_path / "code"]).find("house:build").file == package


def test_the_first_folder_that_has_the_module_counts(tmp_path: Path, write: Write) -> None:
    second = write("second/both.py")
    alone = write("first/alone.py")
    roots = CodeRoots([tmp_path / "second", tmp_path / "first"])
    write("first/both.py")
    assert roots.find("both:build").file == second
    assert roots.find("alone:build").file == alone


def test_without_folders_the_operator_is_named_and_what_to_ask_for() -> None:
    assert refused(CodeRoots([]), "nets:build") == (
        "this trainer runs no code of the owners of jobs; ask its operator to start it with "
        "--user-code and a folder that has the module 'nets'"
    )


@pytest.mark.parametrize("name", ["json", "numpy", "sys", "modelrail_trainer", "os"])
def test_what_is_installed_stands_before_a_file_of_its_name(
    name: str, tmp_path: Path, write: Write
) -> None:
    write(f"code/{name}.py")
    told = refused(CodeRoots([tmp_path / "code"]), f"{name}:build")
    assert f"{name!r} is the name of an installed package" in told
    assert told.endswith("rename yours")
    assert str(tmp_path) not in told


def test_a_folder_that_is_on_pythons_path_is_still_the_owners(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write("code/house_nets.py")
    monkeypatch.syspath_prepend(tmp_path / "code")
    assert CodeRoots([tmp_path / "code"]).find("house_nets:build").file == file


@pytest.mark.parametrize("target", ["outside/secret.py", "code/loop.py", "code/gone.py"])
def test_links_that_lead_out_around_or_nowhere_are_no_modules(
    target: str, tmp_path: Path, write: Write
) -> None:
    write("outside/secret.py")
    write("code/own.py")
    (tmp_path / "code" / "loop.py").symlink_to(tmp_path / target)
    told = refused(CodeRoots([tmp_path / "code"]), "loop:build")
    assert told == (
        "expected a module in a --user-code folder of the trainer, got 'loop'; ask its operator "
        "to put 'loop' there"
    )


def test_links_within_a_folder_and_to_a_folder_are_followed(tmp_path: Path, write: Write) -> None:
    file = write("code/own.py")
    (tmp_path / "code" / "other.py").symlink_to(file)
    (tmp_path / "link").symlink_to(tmp_path / "code")
    assert CodeRoots([tmp_path / "link"]).find("other:build").file == file


@pytest.mark.parametrize("module", ["a\0b", "x" * 5000, "house.", "folder"])
def test_names_that_no_file_can_have_and_folders_are_no_modules(
    module: str, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.py").mkdir()
    told = refused(CodeRoots([tmp_path]), f"{module}:build")
    assert told.startswith("expected a module in a --user-code folder of the trainer")
    assert len(told) < 400


def test_files_are_named_below_their_folder_and_others_not_at_all(
    tmp_path: Path, write: Write
) -> None:
    file, outside = write("code/house/rooms.py"), write("codes/other.py")
    roots = CodeRoots([tmp_path / "code"])
    assert roots.relative(file) == "house/rooms.py"
    assert roots.relative(tmp_path / "code" / ".." / "code" / "a.py") == "a.py"
    assert roots.relative(outside) is None
    assert roots.relative("<string>") is None
    assert roots.relative("\0") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no such file: /srv/models/x.py", "no such file: x.py"),
        ("'/srv/models/x.py'", "'x.py'"),
        ("'/srv/my models/a b/x.py'", "'x.py'"),
        ('File "/srv/my models/x.py", line 3', 'File "x.py", line 3'),
        ("(/srv/models/x.py:7)", "(x.py:7)"),
        ("PATH=/srv/bin:/srv/other/bin", "PATH=bin:bin"),
        ("file:///srv/models/x.py", "file://x.py"),
        ("https://example.org/srv/x", "https://example.org/srv/x"),
        ("user/models/x.py", "user/models/x.py"),
        ("a / b, rows/s and 3/4", "a / b, rows/s and 3/4"),
        ("", ""),
    ],
)
def test_of_absolute_paths_only_the_files_own_name_is_told(text: str, expected: str) -> None:
    assert without_directories(text) == expected
