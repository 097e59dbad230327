"""One run from a data set to a model version."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from modelrail_trainer.optimizers import Optimizer
from modelrail_trainer.preprocessing import Step
from modelrail_trainer.rules.bounds import zeros_replaced
from modelrail_trainer.spec.data import (
    CustomDataset,
    Dataset,
    Split,
    dataset_with_defaults,
    split_with_defaults,
)
from modelrail_trainer.spec.learning import (
    Device,
    Loss,
    Precision,
    Schedule,
    Selection,
)
from modelrail_trainer.spec.model import CustomModel, Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """What is published: a version of `model`; `alias` moves to it unless that is empty."""

    model: str
    alias: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJobSpec:
    """One run from a data set to a model version.

    Fields as in `modelrail.trainer.v1.TrainingJobSpec`. None stands for a oneof in which nothing
    was set; `validate` refuses it.
    """

    dataset: Dataset
    model: Model | None
    loss: Loss | None
    optimizer: Optimizer | None
    epochs: int
    publication: Publication
    display_name: str = ""
    split: Split = field(default_factory=Split)
    preprocessing: tuple[Step | None, ...] = ()
    batch_size: int = 32
    seed: int = 0
    log_every_epochs: int = 1
    schedule: Schedule = field(default_factory=Schedule)
    max_gradient_norm: float = 0.0
    selection: Selection = field(default_factory=Selection)
    checkpoint_every_steps: int = 0
    validate_every_steps: int = 0
    precision: Precision = Precision.FP32
    device: Device = Device.ANY


def entry_points_of(spec: TrainingJobSpec) -> dict[str, str]:
    """Returns the functions of the job's owner that a specification names, by field."""
    found = {}
    if isinstance(spec.dataset, CustomDataset):
        found["dataset.custom.entry_point"] = spec.dataset.entry_point
    if isinstance(spec.model, CustomModel):
        found["model.custom.entry_point"] = spec.model.entry_point
    return found


def with_defaults(spec: TrainingJobSpec) -> TrainingJobSpec:
    """Returns the specification with every zero that means a default replaced by it. Idempotent."""
    return replace(
        spec,
        dataset=dataset_with_defaults(spec.dataset),
        model=spec.model and zeros_replaced(spec.model),
        loss=spec.loss and zeros_replaced(spec.loss),
        optimizer=spec.optimizer and zeros_replaced(spec.optimizer),
        split=split_with_defaults(spec.split),
        batch_size=spec.batch_size or 32,
        log_every_epochs=spec.log_every_epochs or 1,
        selection=replace(spec.selection, metric=spec.selection.metric or "loss"),
    )
