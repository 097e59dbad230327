"""From a job specification in protobuf to the trainer's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import struct_pb2

from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer import spec

_PRECISIONS = {pb.TrainingJobSpec.PRECISION_MIXED_BF16: spec.Precision.MIXED_BF16}
_DEVICES = {
    pb.TrainingJobSpec.DEVICE_CPU: spec.Device.CPU,
    pb.TrainingJobSpec.DEVICE_CUDA: spec.Device.CUDA,
}


def spec_from_pb(message: pb.TrainingJobSpec) -> spec.TrainingJobSpec:
    """Reads a specification as it stands; `spec.validate` tells whether it is a good one."""
    split = message.split
    return spec.TrainingJobSpec(
        display_name=message.display_name,
        dataset=_dataset(message.dataset),
        split=spec.Split(
            validation_fraction=split.validation_fraction,
            test_fraction=split.test_fraction,
            seed=split.seed,
            column=split.column,
            group_column=split.group_column,
            validation_paths=tuple(split.validation_paths),
            test_paths=tuple(split.test_paths),
        ),
        preprocessing=tuple(_preprocessing(step) for step in message.preprocessing),
        model=_model(message.model),
        loss=_loss(message.loss),
        optimizer=_optimizer(message.optimizer),
        epochs=message.epochs,
        batch_size=message.batch_size,
        seed=message.seed,
        log_every_epochs=message.log_every_epochs,
        schedule=_schedule(message.schedule),
        max_gradient_norm=message.max_gradient_norm,
        checkpoint_every_steps=message.checkpoint_every_steps,
        validate_every_steps=message.validate_every_steps,
        precision=_PRECISIONS.get(message.precision, spec.Precision.FP32),
        device=_DEVICES.get(message.device, spec.Device.ANY),
        selection=spec.Selection(
            metric=message.selection.metric,
            patience_epochs=message.selection.patience_epochs,
            keep_last=message.selection.keep_last,
        ),
        publication=spec.Publication(
            model=message.publication.model,
            alias=message.publication.alias,
            description=message.publication.description,
        ),
    )


def _dataset(message: pb.Dataset) -> spec.Dataset:  # noqa: PLR0911  # one return a kind
    match message.WhichOneof("source"):
        case "bundled":
            return spec.BundledDataset(name=message.bundled)
        case "line":
            line = message.line
            return spec.LineDataset(
                slope=line.slope,
                intercept=line.intercept,
                points=line.points,
                minimum_x=line.minimum_x,
                maximum_x=line.maximum_x,
                noise_stddev=line.noise_stddev,
            )
        case "table":
            table = message.table
            return spec.TableDataset(
                paths=tuple(table.paths),
                target=table.target,
                columns=tuple(_column(column) for column in table.columns),
                skip_unusable_rows=table.skip_unusable_rows,
            )
        case "lines":
            return spec.LinesDataset(
                paths=tuple(message.lines.paths), context_length=message.lines.context_length
            )
        case "images":
            return _images(message.images)
        case "custom":
            return spec.CustomDataset(
                entry_point=message.custom.entry_point,
                arguments=_arguments(message.custom.arguments),
            )
        case _:
            return None


def _arguments(message: struct_pb2.Struct) -> Mapping[str, Any]:
    return {name: _value(value) for name, value in message.fields.items()}


def _value(message: struct_pb2.Value) -> Any:
    match message.WhichOneof("kind"):
        case "number_value":
            number = message.number_value
            # JSON has one kind of number; a width of 64.0 would be no width.
            return int(number) if number.is_integer() else number
        case "string_value":
            return message.string_value
        case "bool_value":
            return message.bool_value
        case "list_value":
            return [_value(item) for item in message.list_value.values]
        case "struct_value":
            return dict(_arguments(message.struct_value))
        case _:
            return None


# An unspecified value of an enumeration is its default; so is one that only a newer client knows,
# as proto3 hands it on: `requests.py` has refused it before.
_MISSING = {
    pb.NumberEncoding.MISSING_MEDIAN: spec.Missing.MEDIAN,
    pb.NumberEncoding.MISSING_CONSTANT: spec.Missing.CONSTANT,
    pb.NumberEncoding.MISSING_REFUSED: spec.Missing.REFUSED,
}
_SCALES = {
    pb.NumberEncoding.SCALE_MIN_MAX: spec.Scale.MIN_MAX,
    pb.NumberEncoding.SCALE_NONE: spec.Scale.NONE,
}
_METHODS = {pb.CategoryEncoding.METHOD_ORDINAL: spec.CategoryMethod.ORDINAL}


def _column(message: pb.TableColumn) -> spec.TableColumn:
    encoding: spec.Encoding | None = None
    match message.WhichOneof("encoding"):
        case "number":
            number = message.number
            encoding = spec.NumberEncoding(
                missing=_MISSING.get(number.missing, spec.Missing.MEAN),
                constant=number.constant,
                missing_indicator=number.missing_indicator,
                log=number.log,
                scale=_SCALES.get(number.scale, spec.Scale.STANDARDIZED),
            )
        case "category":
            category = message.category
            encoding = spec.CategoryEncoding(
                method=_METHODS.get(category.method, spec.CategoryMethod.ONE_HOT),
                max_categories=category.max_categories or 100,
            )
        case "text":
            encoding = _text(message.text)
        case "hash":
            encoding = spec.HashEncoding(buckets=message.hash.buckets or 256)
        case _:
            pass
    return spec.TableColumn(name=message.name, encoding=encoding)


def _text(message: pb.TextEncoding) -> spec.TextEncoding:
    tokens: spec.WordTokens | spec.ByteTokens | None = None
    match message.WhichOneof("tokens"):
        case "words":
            words = message.words
            tokens = spec.WordTokens(
                max_vocabulary=words.max_vocabulary or 20_000,
                min_count=words.min_count or 1,
                lower_case=words.lower_case,
            )
        case "bytes":
            tokens = spec.ByteTokens()
        case _:
            pass
    return spec.TextEncoding(tokens=tokens, max_tokens=message.max_tokens or 256)


_COLORS = {pb.ImageDataset.COLOR_GREY: spec.Color.GREY, pb.ImageDataset.COLOR_RGB: spec.Color.RGB}
_PIXEL_SCALES = {
    pb.ImageDataset.SCALE_UNIT: spec.PixelScale.UNIT,
    pb.ImageDataset.SCALE_NONE: spec.PixelScale.NONE,
}


def _images(message: pb.ImageDataset) -> spec.ImageDataset:
    source: spec.ImageFolder | spec.IdxFiles | None = None
    match message.WhichOneof("source"):
        case "folder":
            source = spec.ImageFolder(path=message.folder.path, divided=message.folder.divided)
        case "idx":
            source = spec.IdxFiles(
                images=message.idx.images,
                labels=message.idx.labels,
                test_images=message.idx.test_images,
                test_labels=message.idx.test_labels,
                class_names=tuple(message.idx.class_names),
            )
        case _:
            pass
    size = spec.ImageSize(height=message.size.height, width=message.size.width)
    return spec.ImageDataset(
        source=source,
        color=_COLORS.get(message.color),
        size=size if message.HasField("size") else None,
        scale=_PIXEL_SCALES.get(message.scale, spec.PixelScale.STANDARDIZED),
        skip_unusable_images=message.skip_unusable_images,
    )


def _preprocessing(message: pb.Preprocessing) -> spec.Preprocessing:
    match message.WhichOneof("step"):
        case "standardize":
            return spec.Standardize()
        case "min_max_scale":
            return spec.MinMaxScale()
        case _:
            return None


def _model(message: pb.ModelSpec) -> spec.Model:  # noqa: PLR0911  # one return a kind
    match message.WhichOneof("architecture"):
        case "linear":
            return spec.LinearModel()
        case "mlp":
            return spec.MlpModel(hidden_units=tuple(message.mlp.hidden_units))
        case "cnn":
            return spec.CnnModel(
                channels=tuple(message.cnn.channels),
                hidden_units=message.cnn.hidden_units,
                dropout=message.cnn.dropout,
            )
        case "resnet":
            return spec.ResNetModel(
                channels=tuple(message.resnet.channels),
                blocks_per_stage=message.resnet.blocks_per_stage,
            )
        case "gru":
            return spec.GruModel(
                embedding_size=message.gru.embedding_size,
                hidden_units=message.gru.hidden_units,
                layers=message.gru.layers,
                bidirectional=message.gru.bidirectional,
            )
        case "transformer":
            return spec.TransformerModel(
                width=message.transformer.width,
                layers=message.transformer.layers,
                heads=message.transformer.heads,
                feed_forward=message.transformer.feed_forward,
                dropout=message.transformer.dropout,
            )
        case "gpt":
            return spec.GptModel(
                width=message.gpt.width,
                layers=message.gpt.layers,
                heads=message.gpt.heads,
                dropout=message.gpt.dropout,
            )
        case "custom":
            return spec.CustomModel(
                entry_point=message.custom.entry_point,
                arguments=_arguments(message.custom.arguments),
            )
        case _:
            return None


def _loss(message: pb.Loss) -> spec.Loss:  # noqa: PLR0911  # one return a kind
    match message.WhichOneof("kind"):
        case "mse":
            return spec.MeanSquaredError()
        case "cross_entropy":
            return spec.CrossEntropy(
                class_weights=tuple(message.cross_entropy.class_weights),
                label_smoothing=message.cross_entropy.label_smoothing,
            )
        case "mae":
            return spec.MeanAbsoluteError()
        case "huber":
            return spec.Huber(delta=message.huber.delta)
        case "bce":
            return spec.BinaryCrossEntropy()
        case "kl":
            return spec.KlDivergence(temperature=message.kl.temperature)
        case _:
            return None


def _optimizer(message: pb.Optimizer) -> spec.Optimizer:
    match message.WhichOneof("kind"):
        case "gradient_descent":
            return spec.GradientDescent(learning_rate=message.gradient_descent.learning_rate)
        case "sgd":
            return spec.Sgd(
                learning_rate=message.sgd.learning_rate,
                momentum=message.sgd.momentum,
                weight_decay=message.sgd.weight_decay,
            )
        case "adam":
            adam = message.adam
            return spec.Adam(
                learning_rate=adam.learning_rate,
                beta1=adam.beta1,
                beta2=adam.beta2,
                epsilon=adam.epsilon,
            )
        case "adamw":
            adamw = message.adamw
            return spec.AdamW(
                learning_rate=adamw.learning_rate,
                beta1=adamw.beta1,
                beta2=adamw.beta2,
                epsilon=adamw.epsilon,
                weight_decay=adamw.weight_decay,
            )
        case _:
            return None


def _schedule(message: pb.Schedule) -> spec.Schedule:
    shape: spec.ConstantSchedule | spec.StepSchedule | spec.CosineSchedule
    match message.WhichOneof("kind"):
        case "step":
            shape = spec.StepSchedule(
                every_epochs=message.step.every_epochs, factor=message.step.factor
            )
        case "cosine":
            shape = spec.CosineSchedule(final_fraction=message.cosine.final_fraction)
        case _:
            shape = spec.ConstantSchedule()
    return spec.Schedule(shape=shape, warmup_steps=message.warmup_steps)
