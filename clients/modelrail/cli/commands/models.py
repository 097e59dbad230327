"""`modelrail models`: what the registry holds."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from modelrail.cli.command import command
from modelrail.cli.console import as_json, cell, say, say_json, stdout
from modelrail.cli.session import Session
from modelrail.client.registry import AsyncRegistryClient
from modelrail.names import (
    ModelAliasName,
    ModelName,
    ModelVersionName,
    parse_model_reference,
)
from modelrail.registry.v1 import registry_pb2 as pb

app = typer.Typer(help="Models, versions and aliases of the registry.", no_args_is_help=True)
alias_app = typer.Typer(help="Names that point at versions.", no_args_is_help=True)
app.add_typer(alias_app, name="alias")

AsJson = Annotated[bool, typer.Option("--json", help="Write JSON for programs.")]
Reference = Annotated[str, typer.Argument(help="MODEL, MODEL@VERSION or MODEL@ALIAS.")]


@command(app, "list", "registry")
async def list_models(session: Session, *, json: AsJson = False) -> None:
    """List all models."""
    async with session.registry() as registry:
        models = [model async for model in registry.list_models()]
    if json:
        say_json([as_json(model) for model in models])
        return
    table = Table("model", "newest version", "created", "description", box=None, pad_edge=False)
    for model in models:
        table.add_row(
            ModelName.parse(model.name).model,
            str(model.latest_version_number or "-"),
            f"{model.create_time.ToDatetime():%Y-%m-%d %H:%M:%S}",
            cell(model.description.partition("\n")[0]),
        )
    stdout().print(table if models else "no models yet")


@command(app, "versions", "registry")
async def list_versions(session: Session, model: str, *, json: AsJson = False) -> None:
    """List the versions of a model, the newest first."""
    async with session.registry() as registry:
        versions = [
            version async for version in registry.list_model_versions(str(ModelName(model)))
        ]
    if json:
        say_json([as_json(version) for version in versions])
        return
    table = Table("version", "aliases", "created", "size", "metrics", box=None, pad_edge=False)
    for version in versions:
        table.add_row(
            str(version.number),
            cell(", ".join(version.aliases) or "-"),
            f"{version.create_time.ToDatetime():%Y-%m-%d %H:%M:%S}",
            f"{sum(file.size_bytes for file in version.files):,} bytes",
            cell(_metrics(version)),
        )
    stdout().print(table if versions else f"{model} has no versions yet")


@command(app, "show", "registry")
async def show(session: Session, reference: Reference, *, json: AsJson = False) -> None:
    """Show everything about one version; without one, about the newest."""
    async with session.registry() as registry:
        version = await resolve(registry, reference)
    if json:
        say_json(as_json(version))
        return
    say(version.name, style="bold")
    _rows(
        ("aliases", ", ".join(version.aliases) or "-"),
        ("created", f"{version.create_time.ToDatetime():%Y-%m-%d %H:%M:%S} UTC"),
        ("description", version.description or "-"),
        *(
            ("file", f"{file.path}  {file.size_bytes:,} bytes  sha256 {file.sha256}")
            for file in version.files
        ),
        *(("input", tensor_text(tensor)) for tensor in version.signature.inputs),
        *(("output", tensor_text(tensor)) for tensor in version.signature.outputs),
        ("training job", version.lineage.training_job or "-"),
        ("data set", version.lineage.dataset or "-"),
        *((("trained on", version.lineage.hardware),) if version.lineage.hardware else ()),
    )
    if version.HasField("certificate"):
        _show_proof(version)
    if version.metrics:
        _show_metrics(version)


def _show_metrics(version: pb.ModelVersion) -> None:
    """Shows each figure as it was measured with each runtime."""
    runtimes = dict.fromkeys(metric.runtime for metric in version.metrics)
    values = {(m.split, m.name, m.runtime): m.value for m in version.metrics}
    table = Table("rows", "figure", box=None)
    for runtime in runtimes:
        table.add_column(cell(runtime or "value"))
    for split, name in dict.fromkeys((m.split, m.name) for m in version.metrics):
        found = [values.get((split, name, runtime)) for runtime in runtimes]
        figures = ("-" if value is None else f"{value:.6g}" for value in found)
        table.add_row(cell(split), cell(name), *figures)
    stdout().print(table)


def _show_proof(version: pb.ModelVersion) -> None:
    """Says how the export was compared with PyTorch."""
    proof = version.certificate
    _rows(
        *(
            ("proof", f"{output.name} differs by at most {output.max_absolute_difference:.2g}")
            for output in proof.outputs
        ),
        ("compared", f"{proof.rows} validation rows, zeros and large values, with PyTorch"),
        ("allowed", f"{proof.absolute_tolerance:g} + {proof.relative_tolerance:g} of the value"),
        ("batch sizes", ", ".join(map(str, proof.batch_sizes)) or "-"),
        ("opset", str(proof.opset)),
        ("tools", ", ".join(f"{name} {number}" for name, number in sorted(proof.tools.items()))),
        *(
            ("export", attempt.method + (f" failed: {attempt.failure}" if attempt.failure else ""))
            for attempt in proof.attempts
        ),
    )


@command(alias_app, "set", "registry")
async def set_alias(session: Session, model: str, alias: str, version: int) -> None:
    """Point an alias at a version."""
    name = str(ModelAliasName(model, alias))
    target = str(ModelVersionName(model, version))
    async with session.registry() as registry:
        await registry.set_alias(name, target)
    say(f"{model}@{alias} is now version {version}")


@command(alias_app, "delete", "registry")
async def delete_alias(session: Session, model: str, alias: str) -> None:
    """Remove an alias; the version stays."""
    async with session.registry() as registry:
        await registry.delete_alias(str(ModelAliasName(model, alias)))
    say(f"{model}@{alias} is gone")


@command(alias_app, "list", "registry")
async def list_aliases(session: Session, model: str, *, json: AsJson = False) -> None:
    """List the aliases of a model."""
    async with session.registry() as registry:
        aliases = [alias async for alias in registry.list_aliases(str(ModelName(model)))]
    if json:
        say_json([as_json(alias) for alias in aliases])
        return
    table = Table("alias", "version", "moved", box=None, pad_edge=False)
    for alias in aliases:
        table.add_row(
            ModelAliasName.parse(alias.name).alias,
            str(ModelVersionName.parse(alias.model_version).number),
            f"{alias.update_time.ToDatetime():%Y-%m-%d %H:%M:%S}",
        )
    stdout().print(table if aliases else f"{model} has no aliases yet")


async def resolve(registry: AsyncRegistryClient, reference: str) -> pb.ModelVersion:
    """Returns the version that `MODEL`, `MODEL@VERSION` or `MODEL@ALIAS` means.

    Raises:
        InvalidName: The reference has another form.
        ModelrailError: There is no such version.
    """
    name = parse_model_reference(reference)
    if isinstance(name, ModelName):
        model = await registry.get_model(str(name))
        # A model without versions has the number 0: the registry then says what is missing.
        name = ModelVersionName(name.model, max(model.latest_version_number, 1))
    return await registry.get_model_version(str(name))


def tensor_text(tensor: pb.TensorSpec) -> str:
    """Returns a tensor in one line: `image FP32 [batch, 8, 8]`."""
    shape = ", ".join(
        size.symbol if size.WhichOneof("extent") == "symbol" else str(size.size)
        for size in tensor.shape
    )
    text = f"{tensor.name} {tensor.datatype} [{shape}]"
    if tensor.meaning:
        text += f"  {tensor.meaning}"
    if tensor.HasField("value_range"):
        text += f", from {tensor.value_range.minimum:g} to {tensor.value_range.maximum:g}"
    if tensor.labels:
        text += f", labels {', '.join(tensor.labels)}"
    return text


def _metrics(version: pb.ModelVersion) -> str:
    return ", ".join(
        f"{metric.split} {metric.name} {metric.value:.4g} ({metric.runtime})".replace(" ()", "")
        for metric in version.metrics
    )


def _rows(*rows: tuple[str, str]) -> None:
    for name, value in rows:
        # A line of a longer text must not look like a row of its own.
        say(f"  {name:<13} {value}".replace("\n", "\n" + " " * 16))
