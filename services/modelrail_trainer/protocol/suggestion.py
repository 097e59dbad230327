"""A specification to start from, after a look into a table."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer.handover.inspection import InspectedColumn, Inspection, TargetTask, Use

# Rows from which a wider network, larger batches and fewer epochs pay.
_SIZES = (
    (1_000, (16,), 32, 50),
    (20_000, (32,), 64, 30),
    (500_000, (64, 32), 256, 20),
    (1 << 63, (128, 64), 1024, 10),
)
_FEW_ROWS = 100
_PATIENCE_EPOCHS = 5
_MAX_ID_CHARACTERS = 63


def suggested_spec(
    found: Inspection, table: pb.TableDataset, split: pb.Split | None = None
) -> pb.TrainingJobSpec | None:
    """Returns a sensible first specification; None when nothing can be learned as it stands.

    Args:
        found: What the table holds.
        table: The files, and what was asked about them.
        split: How they are to be divided, if that was asked for.
    """
    target = found.target
    unlearned = (Use.LEFT_OUT, Use.TARGET, Use.SPLIT)
    columns = [one for one in found.columns if one.use not in unlearned]
    if target is None or target.task is TargetTask.NONE or not columns:
        return None
    reads_text = any(column.use is Use.TEXT for column in columns)
    hidden, batch_size, epochs = next(
        (hidden, batch, epochs) for most, hidden, batch, epochs in _SIZES if found.rows < most
    )
    if reads_text:
        model = pb.ModelSpec(gru=pb.GruModel())
    elif found.rows < _FEW_ROWS:
        model = pb.ModelSpec(linear=pb.LinearModel())
    else:
        model = pb.ModelSpec(mlp=pb.MlpModel(hidden_units=hidden))
    is_classes = target.task is TargetTask.CLASSIFICATION
    loss = pb.Loss()
    if is_classes:
        loss.cross_entropy.SetInParent()
    else:
        loss.mse.SetInParent()
    name = _model_id(table.paths[0])
    return pb.TrainingJobSpec(
        display_name=name,
        dataset=pb.Dataset(
            table=pb.TableDataset(
                paths=table.paths,
                target=target.name,
                columns=[_column(column) for column in columns],
                # Rows without a target teach nothing; what else is wrong had better be seen.
                skip_unusable_rows=target.missing > 0 or table.skip_unusable_rows,
            )
        ),
        split=_split(found, split or pb.Split()),
        model=model,
        loss=loss,
        optimizer=pb.Optimizer(adam=pb.Adam(learning_rate=0.003 if reads_text else 0.01)),
        epochs=epochs,
        batch_size=batch_size,
        seed=1,
        selection=pb.Selection(metric="loss", patience_epochs=_PATIENCE_EPOCHS),
        publication=pb.Publication(model=name, alias="production"),
    )


def _split(found: Inspection, asked: pb.Split) -> pb.Split:
    """Returns what was asked for, or what the table itself says, or fractions."""
    split = pb.Split()
    split.CopyFrom(asked)
    says_parts = [column.name for column in found.columns if column.use is Use.SPLIT]
    if says_parts and not (split.column or split.group_column):
        split.column = says_parts[0]
    if split.column:
        return split
    if not split.validation_paths:
        split.validation_fraction = split.validation_fraction or 0.15
    if not split.test_paths:
        split.test_fraction = split.test_fraction or 0.15
    split.seed = split.seed or 1
    return split


def _column(column: InspectedColumn) -> pb.TableColumn:
    message = pb.TableColumn(name=column.name)
    match column.use:
        case Use.NUMBER:
            message.number.missing = pb.NumberEncoding.MISSING_MEAN
            message.number.missing_indicator = column.missing > 0
        case Use.HASH:
            message.hash.buckets = 256 if column.distinct < 1_000 else 1024
        case Use.TEXT:
            message.text.words.SetInParent()
        case _:
            message.category.SetInParent()
    return message


def _model_id(path: str) -> str:
    """Returns a name for the model after a file: lower-case letters, digits and hyphens."""
    stem = re.sub(r"[^a-z0-9]+", "-", PurePosixPath(path).stem.lower()).strip("-")
    name = stem if stem[:1].isalpha() else f"table-{stem}".rstrip("-")
    return name[:_MAX_ID_CHARACTERS].rstrip("-")
