"""From a trained module to a file that is proven: one way of exporting after the other.

The exporter can fail, freeze an axis or compute something else, and often another way of calling it
does not. Each rung is tried until one passes the gate; all of them are on the certificate. The last
gives up batches: such a file answers one row at a time, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from torch import Tensor, nn

from modelrail_trainer.failure import ExportFailed, GateFailed
from modelrail_trainer.failure.redaction import without_directories
from modelrail_trainer.handover.artifact import (
    BARE_NAME,
    MODEL_NAME,
    ExportAttempt,
    ExportCertificate,
    Signature,
)
from modelrail_trainer.handover.journal import Metric
from modelrail_trainer.worker.export import acceptance
from modelrail_trainer.worker.export.exporter import export, exporter_report
from modelrail_trainer.worker.export.reference import Reference, ReferenceCase
from modelrail_trainer.worker.training_data import TrainingData

_MAX_FAILURE_CHARACTERS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """A way of exporting.

    Attributes:
        name: For the certificate.
        optimize: Whether the exporter folds constants and fuses operators.
        renames: Whether every weight gets another name.
        has_batch: Whether the graph takes batches of any size.
    """

    name: str
    optimize: bool
    renames: bool = False
    has_batch: bool = True


RUNGS = (
    Rung(name="optimized", optimize=True),
    # Fusions have computed wrong numbers (pytorch issues 166797 and 168224).
    Rung(name="not optimized", optimize=False),
    # A weight may be called like a tensor inside the graph (pytorch issue 168211).
    Rung(name="renamed", optimize=False, renames=True),
    Rung(name="one row at a time", optimize=False, has_batch=False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proven:
    """An export that passed the gate.

    Attributes:
        signatures: Inputs and outputs of each file, by its name, the one to serve first.
        certificate: What was compared.
        metrics: Figures of the validation and test rows, recomputed with ONNX Runtime.
        reference: Rows that were compared, and what PyTorch makes of them.
    """

    signatures: Mapping[str, Signature]
    certificate: ExportCertificate
    metrics: tuple[Metric, ...]
    reference: Reference


def export_and_prove(
    module: nn.Module,
    signature: Signature,
    data: TrainingData,
    figures: Mapping[str, Mapping[str, float]],
    *,
    directory: Path,
    log: Callable[[str], None],
) -> Proven:
    """Exports a module into files that compute what the module computes.

    They are `model.onnx`, and where raw values are encoded `bare.onnx`, the network without that.

    Args:
        module: In evaluation mode.
        signature: What its graph shall look like.
        data: Whose rows are compared.
        figures: PyTorch's figures for `validation` and `test`.
        directory: Where the files are written.
        log: Told of every way that failed, and of what the exporter reports if all did.

    Raises:
        ExportFailed: No way of exporting gave a file.
        GateFailed: None of the files passed the gate.
    """
    attempts: list[ExportAttempt] = []
    last: ExportFailed | GateFailed | None = None
    for rung in RUNGS:
        try:
            proven = _climb(rung, module, signature, data, figures, directory=directory)
        except (ExportFailed, GateFailed) as failure:
            said = without_directories(str(failure))
            attempts.append(ExportAttempt(rung.name, said[:_MAX_FAILURE_CHARACTERS]))
            log(f"export, {rung.name}: {said}")
            # A file with wrong numbers tells more than an exporter that gave up on another way.
            last = failure if isinstance(failure, GateFailed) else last or failure
            continue
        attempts.append(ExportAttempt(rung.name))
        if not rung.has_batch:
            log("the exported model answers one row at a time, and cannot be batched")
        certificate = replace(proven.certificate, attempts=tuple(attempts))
        return replace(proven, certificate=certificate)
    assert last is not None  # noqa: S101  # there is more than one rung
    for name in (MODEL_NAME, BARE_NAME):
        (directory / name).unlink(missing_ok=True)
    if isinstance(last, ExportFailed):
        for line in exporter_report(module, signature, directory):
            log(f"exporter: {line}")
    raise type(last)(
        "; ".join(f"{attempt.method}: {attempt.failure}" for attempt in attempts)
    ) from last


def _climb(
    rung: Rung,
    module: nn.Module,
    signature: Signature,
    data: TrainingData,
    figures: Mapping[str, Mapping[str, float]],
    *,
    directory: Path,
) -> Proven:
    wanted = signature if rung.has_batch else signature.of_one_row()
    exported = Renamed(module).eval() if rung.renames else module
    model = export(exported, wanted, data.task, optimize=rung.optimize)
    name = MODEL_NAME if data.raw is None else BARE_NAME
    path = directory / name
    onnx.save(model, path)
    certificate, metrics, cases = acceptance.check(path, module, wanted, data, figures)
    signatures: dict[str, Signature] = {name: wanted}
    reference: dict[str, Sequence[ReferenceCase]] = {name: cases}
    if data.raw is not None:
        whole = data.raw.export(model, wanted, module, directory / MODEL_NAME)
        certificate = certificate.with_outputs(whole.parity)
        signatures = {MODEL_NAME: whole.signature} | signatures
        reference = {MODEL_NAME: whole.cases} | reference
    return Proven(
        signatures=signatures, certificate=certificate, metrics=metrics, reference=reference
    )


class Renamed(nn.Module):
    """A module whose weights have a prefix that no tensor of a graph has."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.modelrail_exported = module

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Maps [B, *row_shape] to what the module gives."""
        outputs: Tensor | tuple[Tensor, ...] = self.modelrail_exported(x)
        return outputs
