"""`modelrail data`: a look at the files before anybody learns from them."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated

import typer

from modelrail.cli.command import Failure, command
from modelrail.cli.commands.models import AsJson
from modelrail.cli.commands.train import needs_own_services
from modelrail.cli.commands.up import EVERY_PRODUCTION_MODEL
from modelrail.cli.console import as_json, note, say, say_json, waiting
from modelrail.cli.inspection import show_inspection
from modelrail.cli.session import Session
from modelrail.cli.specification import specification_text
from modelrail.cli.stack.launch import running_stack
from modelrail.cli.stack.stack import StackPlan
from modelrail.trainer.v1 import trainer_pb2 as pb

app = typer.Typer(help="Files to learn from.", no_args_is_help=True)

# The trainer has a limit of its own, and one inspection may wait for others.
_SECONDS = 3600.0


@app.callback()
def data() -> None:
    """Files to learn from."""


@command(app, "inspect", "trainer")
async def inspect(
    session: Session,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH…", help="Files of one table, as a specification would name them."
        ),
    ],
    *,
    target: Annotated[
        str, typer.Option(metavar="COLUMN", help="Column to predict; guessed when not given.")
    ] = "",
    split_column: Annotated[
        str,
        typer.Option(
            metavar="COLUMN", help="Column that says `train`, `validation` or `test` for each row."
        ),
    ] = "",
    group_column: Annotated[
        str,
        typer.Option(metavar="COLUMN", help="Column whose equal values shall stay in one part."),
    ] = "",
    validation: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="File of the validation part; may be repeated."),
    ] = None,
    test: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="File of the test part; may be repeated."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, max=100, help="Rows to show.")] = 10,
    json: AsJson = False,
    write_spec: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the suggested specification there.", dir_okay=False
        ),
    ] = None,
    data_root: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR",
            help="Folder that the files lie below, where the services are started for this look"
            " alone; may be repeated. Else the folder of the files.",
        ),
    ] = None,
) -> None:
    """Show what a table holds, what to mind, and a specification to start from."""
    if write_spec is not None and write_spec.exists():
        raise Failure(f"{write_spec} is there already; name another file, or remove it")
    counts = [len(paths), len(validation or []), len(test or [])]
    paths = [*paths, *(validation or []), *(test or [])]
    async with AsyncExitStack() as cleanup:
        roots: list[str] = []
        if await needs_own_services(
            session, "trainer", purpose="look", shaping={"--data-root": data_root}
        ):
            note("no trainer is running: starting the services for this look only")
            if data_root:
                roots = data_root
            else:
                root, paths = below_one_folder(paths)
                roots = [root]
            plan = StackPlan(
                data_dir=session.data_dir,
                serve=[EVERY_PRODUCTION_MODEL],
                data_roots=[Path(root) for root in roots],
            )
            stack = await cleanup.enter_async_context(running_stack(plan))
            session = stack.session
        trainer = await cleanup.enter_async_context(session.trainer())
        of_table, of_validation, of_test = (
            paths[sum(counts[:place]) : sum(counts[: place + 1])] for place in range(3)
        )
        dataset = pb.Dataset(table=pb.TableDataset(paths=of_table, target=target))
        split = pb.Split(
            column=split_column,
            group_column=group_column,
            validation_paths=of_validation,
            test_paths=of_test,
        )
        with waiting("looking into the files"):
            found = await trainer.with_timeout(_SECONDS).inspect_dataset(
                dataset, rows=rows, split=split
            )
    if write_spec is not None:
        _write(found, write_spec)
    if json:
        say_json(as_json(found))
        return
    show_inspection(found)
    if not found.HasField("suggested_spec"):
        say("there is nothing to learn yet: name another --target, or mend the columns above")
        return
    train = f"modelrail train {write_spec or 'FILE'}"
    options = "".join(f" --data-root {root}" for root in roots)
    if write_spec is None:
        say("a specification to start from (`--write-spec FILE` writes it):\n")
        say(specification_text(found.suggested_spec))
        say("next: write it to a file, then")
    else:
        say(f"wrote {write_spec}; next: read it, then")
    say(f"  {train}{options} --dry-run    # one batch through the whole path")
    say(f"  {train}{options}")


def below_one_folder(paths: list[str]) -> tuple[str, list[str]]:
    """Returns the folder that all files lie below, and the files as they are called from there.

    Raises:
        Failure: One of them is not there.
    """
    for path in paths:
        if not Path(path).is_file():
            raise Failure(f"{path} is no file" if Path(path).exists() else f"{path} does not exist")
    folders = [str(Path(path).absolute().parent) for path in paths]
    root = os.path.commonpath(folders)
    shown = os.path.relpath(root)
    return shown, [str(Path(path).absolute().relative_to(root)) for path in paths]


def _write(found: pb.InspectDatasetResponse, file: Path) -> None:
    if not found.HasField("suggested_spec"):
        note(f"{file} is not written: there is nothing to suggest", style="yellow")
        return
    head = (
        "# Suggested by `modelrail data inspect`: a start, to be read and changed.\n"
        "# A message of type modelrail.trainer.v1.TrainingJobSpec; field names as in "
        "trainer.proto.\n"
    )
    # Not over a file that came meanwhile.
    with file.open("x", encoding="utf-8") as out:
        out.write(head + specification_text(found.suggested_spec))
