import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TrainingJob(_message.Message):
    __slots__ = ("name", "uid", "spec", "state", "error", "progress", "metrics", "model_version", "attempt", "create_time", "start_time", "end_time", "isolation", "priority", "max_run_duration", "expire_time", "max_retries", "parent_job", "trainer", "processes", "evaluation", "data_summary")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[TrainingJob.State]
        STATE_QUEUED: _ClassVar[TrainingJob.State]
        STATE_PREPARING: _ClassVar[TrainingJob.State]
        STATE_RUNNING: _ClassVar[TrainingJob.State]
        STATE_EXPORTING: _ClassVar[TrainingJob.State]
        STATE_REGISTERING: _ClassVar[TrainingJob.State]
        STATE_SUCCEEDED: _ClassVar[TrainingJob.State]
        STATE_CANCELLING: _ClassVar[TrainingJob.State]
        STATE_CANCELLED: _ClassVar[TrainingJob.State]
        STATE_FAILED: _ClassVar[TrainingJob.State]
        STATE_EXPIRED: _ClassVar[TrainingJob.State]
        STATE_PAUSED: _ClassVar[TrainingJob.State]
        STATE_PAUSING: _ClassVar[TrainingJob.State]
        STATE_RESTARTING: _ClassVar[TrainingJob.State]
        STATE_LOST: _ClassVar[TrainingJob.State]
    STATE_UNSPECIFIED: TrainingJob.State
    STATE_QUEUED: TrainingJob.State
    STATE_PREPARING: TrainingJob.State
    STATE_RUNNING: TrainingJob.State
    STATE_EXPORTING: TrainingJob.State
    STATE_REGISTERING: TrainingJob.State
    STATE_SUCCEEDED: TrainingJob.State
    STATE_CANCELLING: TrainingJob.State
    STATE_CANCELLED: TrainingJob.State
    STATE_FAILED: TrainingJob.State
    STATE_EXPIRED: TrainingJob.State
    STATE_PAUSED: TrainingJob.State
    STATE_PAUSING: TrainingJob.State
    STATE_RESTARTING: TrainingJob.State
    STATE_LOST: TrainingJob.State
    NAME_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    ISOLATION_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    MAX_RUN_DURATION_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    MAX_RETRIES_FIELD_NUMBER: _ClassVar[int]
    PARENT_JOB_FIELD_NUMBER: _ClassVar[int]
    TRAINER_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    DATA_SUMMARY_FIELD_NUMBER: _ClassVar[int]
    name: str
    uid: str
    spec: TrainingJobSpec
    state: TrainingJob.State
    error: JobError
    progress: Progress
    metrics: _containers.RepeatedCompositeFieldContainer[Metric]
    model_version: str
    attempt: int
    create_time: _timestamp_pb2.Timestamp
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    isolation: _containers.RepeatedCompositeFieldContainer[IsolationLayer]
    priority: int
    max_run_duration: _duration_pb2.Duration
    expire_time: _timestamp_pb2.Timestamp
    max_retries: int
    parent_job: str
    trainer: str
    processes: int
    evaluation: Evaluation
    data_summary: DataSummary
    def __init__(self, name: _Optional[str] = ..., uid: _Optional[str] = ..., spec: _Optional[_Union[TrainingJobSpec, _Mapping]] = ..., state: _Optional[_Union[TrainingJob.State, str]] = ..., error: _Optional[_Union[JobError, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., metrics: _Optional[_Iterable[_Union[Metric, _Mapping]]] = ..., model_version: _Optional[str] = ..., attempt: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., isolation: _Optional[_Iterable[_Union[IsolationLayer, _Mapping]]] = ..., priority: _Optional[int] = ..., max_run_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., max_retries: _Optional[int] = ..., parent_job: _Optional[str] = ..., trainer: _Optional[str] = ..., processes: _Optional[int] = ..., evaluation: _Optional[_Union[Evaluation, _Mapping]] = ..., data_summary: _Optional[_Union[DataSummary, _Mapping]] = ...) -> None: ...

class JobError(_message.Message):
    __slots__ = ("reason", "message")
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        REASON_UNSPECIFIED: _ClassVar[JobError.Reason]
        REASON_DATA: _ClassVar[JobError.Reason]
        REASON_NAN_LOSS: _ClassVar[JobError.Reason]
        REASON_EXPORT_FAILED: _ClassVar[JobError.Reason]
        REASON_GATE_FAILED: _ClassVar[JobError.Reason]
        REASON_PROCESS_DIED: _ClassVar[JobError.Reason]
        REASON_REGISTRY_UNAVAILABLE: _ClassVar[JobError.Reason]
        REASON_REGISTRY_REFUSED: _ClassVar[JobError.Reason]
        REASON_CANCELLED_BY_USER: _ClassVar[JobError.Reason]
        REASON_INTERNAL: _ClassVar[JobError.Reason]
        REASON_OOM: _ClassVar[JobError.Reason]
        REASON_TIMEOUT: _ClassVar[JobError.Reason]
        REASON_NODE_LOST: _ClassVar[JobError.Reason]
        REASON_STALLED: _ClassVar[JobError.Reason]
        REASON_USER_CODE: _ClassVar[JobError.Reason]
        REASON_DATA_UNAVAILABLE: _ClassVar[JobError.Reason]
        REASON_DISK_FULL: _ClassVar[JobError.Reason]
        REASON_DEVICE_UNAVAILABLE: _ClassVar[JobError.Reason]
    REASON_UNSPECIFIED: JobError.Reason
    REASON_DATA: JobError.Reason
    REASON_NAN_LOSS: JobError.Reason
    REASON_EXPORT_FAILED: JobError.Reason
    REASON_GATE_FAILED: JobError.Reason
    REASON_PROCESS_DIED: JobError.Reason
    REASON_REGISTRY_UNAVAILABLE: JobError.Reason
    REASON_REGISTRY_REFUSED: JobError.Reason
    REASON_CANCELLED_BY_USER: JobError.Reason
    REASON_INTERNAL: JobError.Reason
    REASON_OOM: JobError.Reason
    REASON_TIMEOUT: JobError.Reason
    REASON_NODE_LOST: JobError.Reason
    REASON_STALLED: JobError.Reason
    REASON_USER_CODE: JobError.Reason
    REASON_DATA_UNAVAILABLE: JobError.Reason
    REASON_DISK_FULL: JobError.Reason
    REASON_DEVICE_UNAVAILABLE: JobError.Reason
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    reason: JobError.Reason
    message: str
    def __init__(self, reason: _Optional[_Union[JobError.Reason, str]] = ..., message: _Optional[str] = ...) -> None: ...

class IsolationLayer(_message.Message):
    __slots__ = ("name", "active", "detail")
    class Name(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        NAME_UNSPECIFIED: _ClassVar[IsolationLayer.Name]
        NAME_SESSION: _ClassVar[IsolationLayer.Name]
        NAME_CLEAN_ENVIRONMENT: _ClassVar[IsolationLayer.Name]
        NAME_MEMORY: _ClassVar[IsolationLayer.Name]
        NAME_CPU_TIME: _ClassVar[IsolationLayer.Name]
        NAME_FILE_SIZE: _ClassVar[IsolationLayer.Name]
        NAME_PROCESSES: _ClassVar[IsolationLayer.Name]
        NAME_NO_NEW_PRIVILEGES: _ClassVar[IsolationLayer.Name]
        NAME_FILES: _ClassVar[IsolationLayer.Name]
        NAME_NETWORK: _ClassVar[IsolationLayer.Name]
        NAME_SIGNALS: _ClassVar[IsolationLayer.Name]
    NAME_UNSPECIFIED: IsolationLayer.Name
    NAME_SESSION: IsolationLayer.Name
    NAME_CLEAN_ENVIRONMENT: IsolationLayer.Name
    NAME_MEMORY: IsolationLayer.Name
    NAME_CPU_TIME: IsolationLayer.Name
    NAME_FILE_SIZE: IsolationLayer.Name
    NAME_PROCESSES: IsolationLayer.Name
    NAME_NO_NEW_PRIVILEGES: IsolationLayer.Name
    NAME_FILES: IsolationLayer.Name
    NAME_NETWORK: IsolationLayer.Name
    NAME_SIGNALS: IsolationLayer.Name
    NAME_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    name: IsolationLayer.Name
    active: bool
    detail: str
    def __init__(self, name: _Optional[_Union[IsolationLayer.Name, str]] = ..., active: _Optional[bool] = ..., detail: _Optional[str] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("epoch", "epochs", "step", "rows_per_second", "eta", "steps")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ROWS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    ETA_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    epochs: int
    step: int
    rows_per_second: float
    eta: _duration_pb2.Duration
    steps: int
    def __init__(self, epoch: _Optional[int] = ..., epochs: _Optional[int] = ..., step: _Optional[int] = ..., rows_per_second: _Optional[float] = ..., eta: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., steps: _Optional[int] = ...) -> None: ...

class Metric(_message.Message):
    __slots__ = ("name", "value", "split", "epoch", "runtime", "step")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: float
    split: str
    epoch: int
    runtime: str
    step: int
    def __init__(self, name: _Optional[str] = ..., value: _Optional[float] = ..., split: _Optional[str] = ..., epoch: _Optional[int] = ..., runtime: _Optional[str] = ..., step: _Optional[int] = ...) -> None: ...

class Evaluation(_message.Message):
    __slots__ = ("split", "rows", "labels", "confusion", "confusion_note", "reliability", "expected_calibration_error", "residuals", "predictions", "baseline")
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    CONFUSION_FIELD_NUMBER: _ClassVar[int]
    CONFUSION_NOTE_FIELD_NUMBER: _ClassVar[int]
    RELIABILITY_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_CALIBRATION_ERROR_FIELD_NUMBER: _ClassVar[int]
    RESIDUALS_FIELD_NUMBER: _ClassVar[int]
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    BASELINE_FIELD_NUMBER: _ClassVar[int]
    split: str
    rows: int
    labels: _containers.RepeatedScalarFieldContainer[str]
    confusion: _containers.RepeatedScalarFieldContainer[int]
    confusion_note: str
    reliability: _containers.RepeatedCompositeFieldContainer[ReliabilityBin]
    expected_calibration_error: float
    residuals: _containers.RepeatedCompositeFieldContainer[HistogramBin]
    predictions: _containers.RepeatedCompositeFieldContainer[Prediction]
    baseline: Metric
    def __init__(self, split: _Optional[str] = ..., rows: _Optional[int] = ..., labels: _Optional[_Iterable[str]] = ..., confusion: _Optional[_Iterable[int]] = ..., confusion_note: _Optional[str] = ..., reliability: _Optional[_Iterable[_Union[ReliabilityBin, _Mapping]]] = ..., expected_calibration_error: _Optional[float] = ..., residuals: _Optional[_Iterable[_Union[HistogramBin, _Mapping]]] = ..., predictions: _Optional[_Iterable[_Union[Prediction, _Mapping]]] = ..., baseline: _Optional[_Union[Metric, _Mapping]] = ...) -> None: ...

class ReliabilityBin(_message.Message):
    __slots__ = ("lower", "upper", "rows", "mean_confidence", "accuracy")
    LOWER_FIELD_NUMBER: _ClassVar[int]
    UPPER_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    MEAN_CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    lower: float
    upper: float
    rows: int
    mean_confidence: float
    accuracy: float
    def __init__(self, lower: _Optional[float] = ..., upper: _Optional[float] = ..., rows: _Optional[int] = ..., mean_confidence: _Optional[float] = ..., accuracy: _Optional[float] = ...) -> None: ...

class HistogramBin(_message.Message):
    __slots__ = ("lower", "upper", "count")
    LOWER_FIELD_NUMBER: _ClassVar[int]
    UPPER_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    lower: float
    upper: float
    count: int
    def __init__(self, lower: _Optional[float] = ..., upper: _Optional[float] = ..., count: _Optional[int] = ...) -> None: ...

class Prediction(_message.Message):
    __slots__ = ("target", "predicted")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_FIELD_NUMBER: _ClassVar[int]
    target: float
    predicted: float
    def __init__(self, target: _Optional[float] = ..., predicted: _Optional[float] = ...) -> None: ...

class DataSummary(_message.Message):
    __slots__ = ("parts", "labels", "classes", "input_shape", "columns", "column_count", "unusable")
    PARTS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    INPUT_SHAPE_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    COLUMN_COUNT_FIELD_NUMBER: _ClassVar[int]
    UNUSABLE_FIELD_NUMBER: _ClassVar[int]
    parts: _containers.RepeatedCompositeFieldContainer[PartSummary]
    labels: _containers.RepeatedCompositeFieldContainer[LabelCount]
    classes: int
    input_shape: _containers.RepeatedScalarFieldContainer[int]
    columns: _containers.RepeatedCompositeFieldContainer[ColumnSummary]
    column_count: int
    unusable: _containers.RepeatedCompositeFieldContainer[UnusableRows]
    def __init__(self, parts: _Optional[_Iterable[_Union[PartSummary, _Mapping]]] = ..., labels: _Optional[_Iterable[_Union[LabelCount, _Mapping]]] = ..., classes: _Optional[int] = ..., input_shape: _Optional[_Iterable[int]] = ..., columns: _Optional[_Iterable[_Union[ColumnSummary, _Mapping]]] = ..., column_count: _Optional[int] = ..., unusable: _Optional[_Iterable[_Union[UnusableRows, _Mapping]]] = ...) -> None: ...

class PartSummary(_message.Message):
    __slots__ = ("split", "rows")
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    split: str
    rows: int
    def __init__(self, split: _Optional[str] = ..., rows: _Optional[int] = ...) -> None: ...

class LabelCount(_message.Message):
    __slots__ = ("label", "rows")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    label: str
    rows: int
    def __init__(self, label: _Optional[str] = ..., rows: _Optional[int] = ...) -> None: ...

class ColumnSummary(_message.Message):
    __slots__ = ("name", "encoding", "features", "figures", "categories")
    class FiguresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    name: str
    encoding: str
    features: int
    figures: _containers.ScalarMap[str, float]
    categories: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., encoding: _Optional[str] = ..., features: _Optional[int] = ..., figures: _Optional[_Mapping[str, float]] = ..., categories: _Optional[_Iterable[str]] = ...) -> None: ...

class UnusableRows(_message.Message):
    __slots__ = ("reason", "rows")
    REASON_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    reason: str
    rows: int
    def __init__(self, reason: _Optional[str] = ..., rows: _Optional[int] = ...) -> None: ...

class TrainingJobSpec(_message.Message):
    __slots__ = ("display_name", "dataset", "split", "preprocessing", "model", "loss", "optimizer", "epochs", "batch_size", "seed", "log_every_epochs", "publication", "schedule", "max_gradient_norm", "selection", "checkpoint_every_steps", "validate_every_steps", "precision", "device")
    class Precision(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        PRECISION_UNSPECIFIED: _ClassVar[TrainingJobSpec.Precision]
        PRECISION_FP32: _ClassVar[TrainingJobSpec.Precision]
        PRECISION_MIXED_BF16: _ClassVar[TrainingJobSpec.Precision]
    PRECISION_UNSPECIFIED: TrainingJobSpec.Precision
    PRECISION_FP32: TrainingJobSpec.Precision
    PRECISION_MIXED_BF16: TrainingJobSpec.Precision
    class Device(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        DEVICE_UNSPECIFIED: _ClassVar[TrainingJobSpec.Device]
        DEVICE_CPU: _ClassVar[TrainingJobSpec.Device]
        DEVICE_CUDA: _ClassVar[TrainingJobSpec.Device]
    DEVICE_UNSPECIFIED: TrainingJobSpec.Device
    DEVICE_CPU: TrainingJobSpec.Device
    DEVICE_CUDA: TrainingJobSpec.Device
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    PREPROCESSING_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    LOG_EVERY_EPOCHS_FIELD_NUMBER: _ClassVar[int]
    PUBLICATION_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    MAX_GRADIENT_NORM_FIELD_NUMBER: _ClassVar[int]
    SELECTION_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_EVERY_STEPS_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_EVERY_STEPS_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    display_name: str
    dataset: Dataset
    split: Split
    preprocessing: _containers.RepeatedCompositeFieldContainer[Preprocessing]
    model: ModelSpec
    loss: Loss
    optimizer: Optimizer
    epochs: int
    batch_size: int
    seed: int
    log_every_epochs: int
    publication: Publication
    schedule: Schedule
    max_gradient_norm: float
    selection: Selection
    checkpoint_every_steps: int
    validate_every_steps: int
    precision: TrainingJobSpec.Precision
    device: TrainingJobSpec.Device
    def __init__(self, display_name: _Optional[str] = ..., dataset: _Optional[_Union[Dataset, _Mapping]] = ..., split: _Optional[_Union[Split, _Mapping]] = ..., preprocessing: _Optional[_Iterable[_Union[Preprocessing, _Mapping]]] = ..., model: _Optional[_Union[ModelSpec, _Mapping]] = ..., loss: _Optional[_Union[Loss, _Mapping]] = ..., optimizer: _Optional[_Union[Optimizer, _Mapping]] = ..., epochs: _Optional[int] = ..., batch_size: _Optional[int] = ..., seed: _Optional[int] = ..., log_every_epochs: _Optional[int] = ..., publication: _Optional[_Union[Publication, _Mapping]] = ..., schedule: _Optional[_Union[Schedule, _Mapping]] = ..., max_gradient_norm: _Optional[float] = ..., selection: _Optional[_Union[Selection, _Mapping]] = ..., checkpoint_every_steps: _Optional[int] = ..., validate_every_steps: _Optional[int] = ..., precision: _Optional[_Union[TrainingJobSpec.Precision, str]] = ..., device: _Optional[_Union[TrainingJobSpec.Device, str]] = ...) -> None: ...

class Dataset(_message.Message):
    __slots__ = ("bundled", "line", "table", "images", "lines", "custom")
    BUNDLED_FIELD_NUMBER: _ClassVar[int]
    LINE_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    CUSTOM_FIELD_NUMBER: _ClassVar[int]
    bundled: str
    line: LineDataset
    table: TableDataset
    images: ImageDataset
    lines: LinesDataset
    custom: CustomDataset
    def __init__(self, bundled: _Optional[str] = ..., line: _Optional[_Union[LineDataset, _Mapping]] = ..., table: _Optional[_Union[TableDataset, _Mapping]] = ..., images: _Optional[_Union[ImageDataset, _Mapping]] = ..., lines: _Optional[_Union[LinesDataset, _Mapping]] = ..., custom: _Optional[_Union[CustomDataset, _Mapping]] = ...) -> None: ...

class TableDataset(_message.Message):
    __slots__ = ("paths", "target", "columns", "skip_unusable_rows")
    PATHS_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    SKIP_UNUSABLE_ROWS_FIELD_NUMBER: _ClassVar[int]
    paths: _containers.RepeatedScalarFieldContainer[str]
    target: str
    columns: _containers.RepeatedCompositeFieldContainer[TableColumn]
    skip_unusable_rows: bool
    def __init__(self, paths: _Optional[_Iterable[str]] = ..., target: _Optional[str] = ..., columns: _Optional[_Iterable[_Union[TableColumn, _Mapping]]] = ..., skip_unusable_rows: _Optional[bool] = ...) -> None: ...

class TableColumn(_message.Message):
    __slots__ = ("name", "number", "category", "hash", "text")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    name: str
    number: NumberEncoding
    category: CategoryEncoding
    hash: HashEncoding
    text: TextEncoding
    def __init__(self, name: _Optional[str] = ..., number: _Optional[_Union[NumberEncoding, _Mapping]] = ..., category: _Optional[_Union[CategoryEncoding, _Mapping]] = ..., hash: _Optional[_Union[HashEncoding, _Mapping]] = ..., text: _Optional[_Union[TextEncoding, _Mapping]] = ...) -> None: ...

class NumberEncoding(_message.Message):
    __slots__ = ("missing", "constant", "missing_indicator", "log", "scale")
    class Missing(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        MISSING_UNSPECIFIED: _ClassVar[NumberEncoding.Missing]
        MISSING_MEAN: _ClassVar[NumberEncoding.Missing]
        MISSING_CONSTANT: _ClassVar[NumberEncoding.Missing]
        MISSING_REFUSED: _ClassVar[NumberEncoding.Missing]
        MISSING_MEDIAN: _ClassVar[NumberEncoding.Missing]
    MISSING_UNSPECIFIED: NumberEncoding.Missing
    MISSING_MEAN: NumberEncoding.Missing
    MISSING_CONSTANT: NumberEncoding.Missing
    MISSING_REFUSED: NumberEncoding.Missing
    MISSING_MEDIAN: NumberEncoding.Missing
    class Scale(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        SCALE_UNSPECIFIED: _ClassVar[NumberEncoding.Scale]
        SCALE_STANDARDIZED: _ClassVar[NumberEncoding.Scale]
        SCALE_MIN_MAX: _ClassVar[NumberEncoding.Scale]
        SCALE_NONE: _ClassVar[NumberEncoding.Scale]
    SCALE_UNSPECIFIED: NumberEncoding.Scale
    SCALE_STANDARDIZED: NumberEncoding.Scale
    SCALE_MIN_MAX: NumberEncoding.Scale
    SCALE_NONE: NumberEncoding.Scale
    MISSING_FIELD_NUMBER: _ClassVar[int]
    CONSTANT_FIELD_NUMBER: _ClassVar[int]
    MISSING_INDICATOR_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    missing: NumberEncoding.Missing
    constant: float
    missing_indicator: bool
    log: bool
    scale: NumberEncoding.Scale
    def __init__(self, missing: _Optional[_Union[NumberEncoding.Missing, str]] = ..., constant: _Optional[float] = ..., missing_indicator: _Optional[bool] = ..., log: _Optional[bool] = ..., scale: _Optional[_Union[NumberEncoding.Scale, str]] = ...) -> None: ...

class CategoryEncoding(_message.Message):
    __slots__ = ("method", "max_categories")
    class Method(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        METHOD_UNSPECIFIED: _ClassVar[CategoryEncoding.Method]
        METHOD_ONE_HOT: _ClassVar[CategoryEncoding.Method]
        METHOD_ORDINAL: _ClassVar[CategoryEncoding.Method]
    METHOD_UNSPECIFIED: CategoryEncoding.Method
    METHOD_ONE_HOT: CategoryEncoding.Method
    METHOD_ORDINAL: CategoryEncoding.Method
    METHOD_FIELD_NUMBER: _ClassVar[int]
    MAX_CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    method: CategoryEncoding.Method
    max_categories: int
    def __init__(self, method: _Optional[_Union[CategoryEncoding.Method, str]] = ..., max_categories: _Optional[int] = ...) -> None: ...

class HashEncoding(_message.Message):
    __slots__ = ("buckets",)
    BUCKETS_FIELD_NUMBER: _ClassVar[int]
    buckets: int
    def __init__(self, buckets: _Optional[int] = ...) -> None: ...

class TextEncoding(_message.Message):
    __slots__ = ("words", "bytes", "max_tokens")
    WORDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    words: WordTokens
    bytes: ByteTokens
    max_tokens: int
    def __init__(self, words: _Optional[_Union[WordTokens, _Mapping]] = ..., bytes: _Optional[_Union[ByteTokens, _Mapping]] = ..., max_tokens: _Optional[int] = ...) -> None: ...

class WordTokens(_message.Message):
    __slots__ = ("max_vocabulary", "min_count", "lower_case")
    MAX_VOCABULARY_FIELD_NUMBER: _ClassVar[int]
    MIN_COUNT_FIELD_NUMBER: _ClassVar[int]
    LOWER_CASE_FIELD_NUMBER: _ClassVar[int]
    max_vocabulary: int
    min_count: int
    lower_case: bool
    def __init__(self, max_vocabulary: _Optional[int] = ..., min_count: _Optional[int] = ..., lower_case: _Optional[bool] = ...) -> None: ...

class ByteTokens(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LinesDataset(_message.Message):
    __slots__ = ("paths", "context_length")
    PATHS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    paths: _containers.RepeatedScalarFieldContainer[str]
    context_length: int
    def __init__(self, paths: _Optional[_Iterable[str]] = ..., context_length: _Optional[int] = ...) -> None: ...

class ImageDataset(_message.Message):
    __slots__ = ("folder", "idx", "color", "size", "scale", "skip_unusable_images")
    class Color(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        COLOR_UNSPECIFIED: _ClassVar[ImageDataset.Color]
        COLOR_GREY: _ClassVar[ImageDataset.Color]
        COLOR_RGB: _ClassVar[ImageDataset.Color]
    COLOR_UNSPECIFIED: ImageDataset.Color
    COLOR_GREY: ImageDataset.Color
    COLOR_RGB: ImageDataset.Color
    class Scale(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        SCALE_UNSPECIFIED: _ClassVar[ImageDataset.Scale]
        SCALE_STANDARDIZED: _ClassVar[ImageDataset.Scale]
        SCALE_UNIT: _ClassVar[ImageDataset.Scale]
        SCALE_NONE: _ClassVar[ImageDataset.Scale]
    SCALE_UNSPECIFIED: ImageDataset.Scale
    SCALE_STANDARDIZED: ImageDataset.Scale
    SCALE_UNIT: ImageDataset.Scale
    SCALE_NONE: ImageDataset.Scale
    FOLDER_FIELD_NUMBER: _ClassVar[int]
    IDX_FIELD_NUMBER: _ClassVar[int]
    COLOR_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    SKIP_UNUSABLE_IMAGES_FIELD_NUMBER: _ClassVar[int]
    folder: ImageFolder
    idx: IdxFiles
    color: ImageDataset.Color
    size: ImageSize
    scale: ImageDataset.Scale
    skip_unusable_images: bool
    def __init__(self, folder: _Optional[_Union[ImageFolder, _Mapping]] = ..., idx: _Optional[_Union[IdxFiles, _Mapping]] = ..., color: _Optional[_Union[ImageDataset.Color, str]] = ..., size: _Optional[_Union[ImageSize, _Mapping]] = ..., scale: _Optional[_Union[ImageDataset.Scale, str]] = ..., skip_unusable_images: _Optional[bool] = ...) -> None: ...

class ImageFolder(_message.Message):
    __slots__ = ("path", "divided")
    PATH_FIELD_NUMBER: _ClassVar[int]
    DIVIDED_FIELD_NUMBER: _ClassVar[int]
    path: str
    divided: bool
    def __init__(self, path: _Optional[str] = ..., divided: _Optional[bool] = ...) -> None: ...

class IdxFiles(_message.Message):
    __slots__ = ("images", "labels", "test_images", "test_labels", "class_names")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    TEST_IMAGES_FIELD_NUMBER: _ClassVar[int]
    TEST_LABELS_FIELD_NUMBER: _ClassVar[int]
    CLASS_NAMES_FIELD_NUMBER: _ClassVar[int]
    images: str
    labels: str
    test_images: str
    test_labels: str
    class_names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, images: _Optional[str] = ..., labels: _Optional[str] = ..., test_images: _Optional[str] = ..., test_labels: _Optional[str] = ..., class_names: _Optional[_Iterable[str]] = ...) -> None: ...

class ImageSize(_message.Message):
    __slots__ = ("height", "width")
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    height: int
    width: int
    def __init__(self, height: _Optional[int] = ..., width: _Optional[int] = ...) -> None: ...

class CustomDataset(_message.Message):
    __slots__ = ("entry_point", "arguments")
    ENTRY_POINT_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    entry_point: str
    arguments: _struct_pb2.Struct
    def __init__(self, entry_point: _Optional[str] = ..., arguments: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class LineDataset(_message.Message):
    __slots__ = ("slope", "intercept", "points", "minimum_x", "maximum_x", "noise_stddev")
    SLOPE_FIELD_NUMBER: _ClassVar[int]
    INTERCEPT_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    MINIMUM_X_FIELD_NUMBER: _ClassVar[int]
    MAXIMUM_X_FIELD_NUMBER: _ClassVar[int]
    NOISE_STDDEV_FIELD_NUMBER: _ClassVar[int]
    slope: float
    intercept: float
    points: int
    minimum_x: float
    maximum_x: float
    noise_stddev: float
    def __init__(self, slope: _Optional[float] = ..., intercept: _Optional[float] = ..., points: _Optional[int] = ..., minimum_x: _Optional[float] = ..., maximum_x: _Optional[float] = ..., noise_stddev: _Optional[float] = ...) -> None: ...

class Split(_message.Message):
    __slots__ = ("validation_fraction", "test_fraction", "seed", "column", "group_column", "validation_paths", "test_paths")
    VALIDATION_FRACTION_FIELD_NUMBER: _ClassVar[int]
    TEST_FRACTION_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    COLUMN_FIELD_NUMBER: _ClassVar[int]
    GROUP_COLUMN_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_PATHS_FIELD_NUMBER: _ClassVar[int]
    TEST_PATHS_FIELD_NUMBER: _ClassVar[int]
    validation_fraction: float
    test_fraction: float
    seed: int
    column: str
    group_column: str
    validation_paths: _containers.RepeatedScalarFieldContainer[str]
    test_paths: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, validation_fraction: _Optional[float] = ..., test_fraction: _Optional[float] = ..., seed: _Optional[int] = ..., column: _Optional[str] = ..., group_column: _Optional[str] = ..., validation_paths: _Optional[_Iterable[str]] = ..., test_paths: _Optional[_Iterable[str]] = ...) -> None: ...

class Preprocessing(_message.Message):
    __slots__ = ("standardize", "min_max_scale")
    STANDARDIZE_FIELD_NUMBER: _ClassVar[int]
    MIN_MAX_SCALE_FIELD_NUMBER: _ClassVar[int]
    standardize: Standardize
    min_max_scale: MinMaxScale
    def __init__(self, standardize: _Optional[_Union[Standardize, _Mapping]] = ..., min_max_scale: _Optional[_Union[MinMaxScale, _Mapping]] = ...) -> None: ...

class Standardize(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MinMaxScale(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ModelSpec(_message.Message):
    __slots__ = ("linear", "mlp", "cnn", "resnet", "gru", "transformer", "gpt", "custom")
    LINEAR_FIELD_NUMBER: _ClassVar[int]
    MLP_FIELD_NUMBER: _ClassVar[int]
    CNN_FIELD_NUMBER: _ClassVar[int]
    RESNET_FIELD_NUMBER: _ClassVar[int]
    GRU_FIELD_NUMBER: _ClassVar[int]
    TRANSFORMER_FIELD_NUMBER: _ClassVar[int]
    GPT_FIELD_NUMBER: _ClassVar[int]
    CUSTOM_FIELD_NUMBER: _ClassVar[int]
    linear: LinearModel
    mlp: MlpModel
    cnn: CnnModel
    resnet: ResNetModel
    gru: GruModel
    transformer: TransformerModel
    gpt: GptModel
    custom: CustomModel
    def __init__(self, linear: _Optional[_Union[LinearModel, _Mapping]] = ..., mlp: _Optional[_Union[MlpModel, _Mapping]] = ..., cnn: _Optional[_Union[CnnModel, _Mapping]] = ..., resnet: _Optional[_Union[ResNetModel, _Mapping]] = ..., gru: _Optional[_Union[GruModel, _Mapping]] = ..., transformer: _Optional[_Union[TransformerModel, _Mapping]] = ..., gpt: _Optional[_Union[GptModel, _Mapping]] = ..., custom: _Optional[_Union[CustomModel, _Mapping]] = ...) -> None: ...

class LinearModel(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MlpModel(_message.Message):
    __slots__ = ("hidden_units",)
    HIDDEN_UNITS_FIELD_NUMBER: _ClassVar[int]
    hidden_units: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, hidden_units: _Optional[_Iterable[int]] = ...) -> None: ...

class CnnModel(_message.Message):
    __slots__ = ("channels", "hidden_units", "dropout")
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_UNITS_FIELD_NUMBER: _ClassVar[int]
    DROPOUT_FIELD_NUMBER: _ClassVar[int]
    channels: _containers.RepeatedScalarFieldContainer[int]
    hidden_units: int
    dropout: float
    def __init__(self, channels: _Optional[_Iterable[int]] = ..., hidden_units: _Optional[int] = ..., dropout: _Optional[float] = ...) -> None: ...

class ResNetModel(_message.Message):
    __slots__ = ("channels", "blocks_per_stage")
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_PER_STAGE_FIELD_NUMBER: _ClassVar[int]
    channels: _containers.RepeatedScalarFieldContainer[int]
    blocks_per_stage: int
    def __init__(self, channels: _Optional[_Iterable[int]] = ..., blocks_per_stage: _Optional[int] = ...) -> None: ...

class GruModel(_message.Message):
    __slots__ = ("embedding_size", "hidden_units", "layers", "bidirectional")
    EMBEDDING_SIZE_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_UNITS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    BIDIRECTIONAL_FIELD_NUMBER: _ClassVar[int]
    embedding_size: int
    hidden_units: int
    layers: int
    bidirectional: bool
    def __init__(self, embedding_size: _Optional[int] = ..., hidden_units: _Optional[int] = ..., layers: _Optional[int] = ..., bidirectional: _Optional[bool] = ...) -> None: ...

class TransformerModel(_message.Message):
    __slots__ = ("width", "layers", "heads", "feed_forward", "dropout")
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    FEED_FORWARD_FIELD_NUMBER: _ClassVar[int]
    DROPOUT_FIELD_NUMBER: _ClassVar[int]
    width: int
    layers: int
    heads: int
    feed_forward: int
    dropout: float
    def __init__(self, width: _Optional[int] = ..., layers: _Optional[int] = ..., heads: _Optional[int] = ..., feed_forward: _Optional[int] = ..., dropout: _Optional[float] = ...) -> None: ...

class GptModel(_message.Message):
    __slots__ = ("width", "layers", "heads", "dropout")
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    DROPOUT_FIELD_NUMBER: _ClassVar[int]
    width: int
    layers: int
    heads: int
    dropout: float
    def __init__(self, width: _Optional[int] = ..., layers: _Optional[int] = ..., heads: _Optional[int] = ..., dropout: _Optional[float] = ...) -> None: ...

class CustomModel(_message.Message):
    __slots__ = ("entry_point", "arguments")
    ENTRY_POINT_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    entry_point: str
    arguments: _struct_pb2.Struct
    def __init__(self, entry_point: _Optional[str] = ..., arguments: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class Loss(_message.Message):
    __slots__ = ("mse", "cross_entropy", "mae", "huber", "bce", "kl")
    MSE_FIELD_NUMBER: _ClassVar[int]
    CROSS_ENTROPY_FIELD_NUMBER: _ClassVar[int]
    MAE_FIELD_NUMBER: _ClassVar[int]
    HUBER_FIELD_NUMBER: _ClassVar[int]
    BCE_FIELD_NUMBER: _ClassVar[int]
    KL_FIELD_NUMBER: _ClassVar[int]
    mse: MeanSquaredError
    cross_entropy: CrossEntropy
    mae: MeanAbsoluteError
    huber: Huber
    bce: BinaryCrossEntropy
    kl: KlDivergence
    def __init__(self, mse: _Optional[_Union[MeanSquaredError, _Mapping]] = ..., cross_entropy: _Optional[_Union[CrossEntropy, _Mapping]] = ..., mae: _Optional[_Union[MeanAbsoluteError, _Mapping]] = ..., huber: _Optional[_Union[Huber, _Mapping]] = ..., bce: _Optional[_Union[BinaryCrossEntropy, _Mapping]] = ..., kl: _Optional[_Union[KlDivergence, _Mapping]] = ...) -> None: ...

class MeanSquaredError(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CrossEntropy(_message.Message):
    __slots__ = ("class_weights", "label_smoothing")
    CLASS_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    LABEL_SMOOTHING_FIELD_NUMBER: _ClassVar[int]
    class_weights: _containers.RepeatedScalarFieldContainer[float]
    label_smoothing: float
    def __init__(self, class_weights: _Optional[_Iterable[float]] = ..., label_smoothing: _Optional[float] = ...) -> None: ...

class MeanAbsoluteError(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Huber(_message.Message):
    __slots__ = ("delta",)
    DELTA_FIELD_NUMBER: _ClassVar[int]
    delta: float
    def __init__(self, delta: _Optional[float] = ...) -> None: ...

class BinaryCrossEntropy(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class KlDivergence(_message.Message):
    __slots__ = ("temperature",)
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    def __init__(self, temperature: _Optional[float] = ...) -> None: ...

class Optimizer(_message.Message):
    __slots__ = ("gradient_descent", "sgd", "adam", "adamw")
    GRADIENT_DESCENT_FIELD_NUMBER: _ClassVar[int]
    SGD_FIELD_NUMBER: _ClassVar[int]
    ADAM_FIELD_NUMBER: _ClassVar[int]
    ADAMW_FIELD_NUMBER: _ClassVar[int]
    gradient_descent: GradientDescent
    sgd: Sgd
    adam: Adam
    adamw: AdamW
    def __init__(self, gradient_descent: _Optional[_Union[GradientDescent, _Mapping]] = ..., sgd: _Optional[_Union[Sgd, _Mapping]] = ..., adam: _Optional[_Union[Adam, _Mapping]] = ..., adamw: _Optional[_Union[AdamW, _Mapping]] = ...) -> None: ...

class GradientDescent(_message.Message):
    __slots__ = ("learning_rate",)
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    learning_rate: float
    def __init__(self, learning_rate: _Optional[float] = ...) -> None: ...

class Sgd(_message.Message):
    __slots__ = ("learning_rate", "momentum", "weight_decay")
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    MOMENTUM_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    learning_rate: float
    momentum: float
    weight_decay: float
    def __init__(self, learning_rate: _Optional[float] = ..., momentum: _Optional[float] = ..., weight_decay: _Optional[float] = ...) -> None: ...

class Adam(_message.Message):
    __slots__ = ("learning_rate", "beta1", "beta2", "epsilon")
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    BETA1_FIELD_NUMBER: _ClassVar[int]
    BETA2_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    learning_rate: float
    beta1: float
    beta2: float
    epsilon: float
    def __init__(self, learning_rate: _Optional[float] = ..., beta1: _Optional[float] = ..., beta2: _Optional[float] = ..., epsilon: _Optional[float] = ...) -> None: ...

class AdamW(_message.Message):
    __slots__ = ("learning_rate", "beta1", "beta2", "epsilon", "weight_decay")
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    BETA1_FIELD_NUMBER: _ClassVar[int]
    BETA2_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    learning_rate: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    def __init__(self, learning_rate: _Optional[float] = ..., beta1: _Optional[float] = ..., beta2: _Optional[float] = ..., epsilon: _Optional[float] = ..., weight_decay: _Optional[float] = ...) -> None: ...

class Schedule(_message.Message):
    __slots__ = ("constant", "step", "cosine", "warmup_steps")
    CONSTANT_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    COSINE_FIELD_NUMBER: _ClassVar[int]
    WARMUP_STEPS_FIELD_NUMBER: _ClassVar[int]
    constant: ConstantSchedule
    step: StepSchedule
    cosine: CosineSchedule
    warmup_steps: int
    def __init__(self, constant: _Optional[_Union[ConstantSchedule, _Mapping]] = ..., step: _Optional[_Union[StepSchedule, _Mapping]] = ..., cosine: _Optional[_Union[CosineSchedule, _Mapping]] = ..., warmup_steps: _Optional[int] = ...) -> None: ...

class ConstantSchedule(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StepSchedule(_message.Message):
    __slots__ = ("every_epochs", "factor")
    EVERY_EPOCHS_FIELD_NUMBER: _ClassVar[int]
    FACTOR_FIELD_NUMBER: _ClassVar[int]
    every_epochs: int
    factor: float
    def __init__(self, every_epochs: _Optional[int] = ..., factor: _Optional[float] = ...) -> None: ...

class CosineSchedule(_message.Message):
    __slots__ = ("final_fraction",)
    FINAL_FRACTION_FIELD_NUMBER: _ClassVar[int]
    final_fraction: float
    def __init__(self, final_fraction: _Optional[float] = ...) -> None: ...

class Selection(_message.Message):
    __slots__ = ("metric", "patience_epochs", "keep_last")
    METRIC_FIELD_NUMBER: _ClassVar[int]
    PATIENCE_EPOCHS_FIELD_NUMBER: _ClassVar[int]
    KEEP_LAST_FIELD_NUMBER: _ClassVar[int]
    metric: str
    patience_epochs: int
    keep_last: bool
    def __init__(self, metric: _Optional[str] = ..., patience_epochs: _Optional[int] = ..., keep_last: _Optional[bool] = ...) -> None: ...

class Publication(_message.Message):
    __slots__ = ("model", "alias", "description")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    model: str
    alias: str
    description: str
    def __init__(self, model: _Optional[str] = ..., alias: _Optional[str] = ..., description: _Optional[str] = ...) -> None: ...

class TrainingJobEvent(_message.Message):
    __slots__ = ("sequence", "create_time", "state_change", "metric_report", "log_line")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    STATE_CHANGE_FIELD_NUMBER: _ClassVar[int]
    METRIC_REPORT_FIELD_NUMBER: _ClassVar[int]
    LOG_LINE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    create_time: _timestamp_pb2.Timestamp
    state_change: StateChange
    metric_report: MetricReport
    log_line: LogLine
    def __init__(self, sequence: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., state_change: _Optional[_Union[StateChange, _Mapping]] = ..., metric_report: _Optional[_Union[MetricReport, _Mapping]] = ..., log_line: _Optional[_Union[LogLine, _Mapping]] = ...) -> None: ...

class StateChange(_message.Message):
    __slots__ = ("old_state", "new_state", "error", "actor")
    OLD_STATE_FIELD_NUMBER: _ClassVar[int]
    NEW_STATE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    old_state: TrainingJob.State
    new_state: TrainingJob.State
    error: JobError
    actor: str
    def __init__(self, old_state: _Optional[_Union[TrainingJob.State, str]] = ..., new_state: _Optional[_Union[TrainingJob.State, str]] = ..., error: _Optional[_Union[JobError, _Mapping]] = ..., actor: _Optional[str] = ...) -> None: ...

class MetricReport(_message.Message):
    __slots__ = ("progress", "metrics")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    progress: Progress
    metrics: _containers.RepeatedCompositeFieldContainer[Metric]
    def __init__(self, progress: _Optional[_Union[Progress, _Mapping]] = ..., metrics: _Optional[_Iterable[_Union[Metric, _Mapping]]] = ...) -> None: ...

class LogLine(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...

class GetTrainingJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListTrainingJobsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListTrainingJobsResponse(_message.Message):
    __slots__ = ("training_jobs", "next_page_token")
    TRAINING_JOBS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    training_jobs: _containers.RepeatedCompositeFieldContainer[TrainingJob]
    next_page_token: str
    def __init__(self, training_jobs: _Optional[_Iterable[_Union[TrainingJob, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CreateTrainingJobRequest(_message.Message):
    __slots__ = ("training_job", "request_id", "dry_run", "validate_only")
    TRAINING_JOB_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    training_job: TrainingJob
    request_id: str
    dry_run: bool
    validate_only: bool
    def __init__(self, training_job: _Optional[_Union[TrainingJob, _Mapping]] = ..., request_id: _Optional[str] = ..., dry_run: _Optional[bool] = ..., validate_only: _Optional[bool] = ...) -> None: ...

class CancelTrainingJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class PauseTrainingJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ResumeTrainingJobRequest(_message.Message):
    __slots__ = ("name", "processes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    name: str
    processes: int
    def __init__(self, name: _Optional[str] = ..., processes: _Optional[int] = ...) -> None: ...

class CloneTrainingJobRequest(_message.Message):
    __slots__ = ("name", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class WatchTrainingJobRequest(_message.Message):
    __slots__ = ("name", "after_sequence")
    NAME_FIELD_NUMBER: _ClassVar[int]
    AFTER_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    after_sequence: int
    def __init__(self, name: _Optional[str] = ..., after_sequence: _Optional[int] = ...) -> None: ...

class WatchTrainingJobResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: TrainingJobEvent
    def __init__(self, event: _Optional[_Union[TrainingJobEvent, _Mapping]] = ...) -> None: ...

class InspectDatasetRequest(_message.Message):
    __slots__ = ("dataset", "rows", "split")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    dataset: Dataset
    rows: int
    split: Split
    def __init__(self, dataset: _Optional[_Union[Dataset, _Mapping]] = ..., rows: _Optional[int] = ..., split: _Optional[_Union[Split, _Mapping]] = ...) -> None: ...

class InspectDatasetResponse(_message.Message):
    __slots__ = ("files", "rows", "rows_estimated", "rows_read", "rows_sampled", "columns", "target", "preview", "suggested_spec", "warnings")
    FILES_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    ROWS_ESTIMATED_FIELD_NUMBER: _ClassVar[int]
    ROWS_READ_FIELD_NUMBER: _ClassVar[int]
    ROWS_SAMPLED_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    SUGGESTED_SPEC_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[InspectedFile]
    rows: int
    rows_estimated: bool
    rows_read: int
    rows_sampled: int
    columns: _containers.RepeatedCompositeFieldContainer[InspectedColumn]
    target: InspectedTarget
    preview: _containers.RepeatedCompositeFieldContainer[PreviewRow]
    suggested_spec: TrainingJobSpec
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, files: _Optional[_Iterable[_Union[InspectedFile, _Mapping]]] = ..., rows: _Optional[int] = ..., rows_estimated: _Optional[bool] = ..., rows_read: _Optional[int] = ..., rows_sampled: _Optional[int] = ..., columns: _Optional[_Iterable[_Union[InspectedColumn, _Mapping]]] = ..., target: _Optional[_Union[InspectedTarget, _Mapping]] = ..., preview: _Optional[_Iterable[_Union[PreviewRow, _Mapping]]] = ..., suggested_spec: _Optional[_Union[TrainingJobSpec, _Mapping]] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class InspectedFile(_message.Message):
    __slots__ = ("path", "size_bytes", "format")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    path: str
    size_bytes: int
    format: str
    def __init__(self, path: _Optional[str] = ..., size_bytes: _Optional[int] = ..., format: _Optional[str] = ...) -> None: ...

class InspectedColumn(_message.Message):
    __slots__ = ("name", "type", "file_type", "missing", "distinct", "more_distinct", "numbers", "texts", "constant", "warnings", "use")
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        TYPE_UNSPECIFIED: _ClassVar[InspectedColumn.Type]
        TYPE_NUMBER: _ClassVar[InspectedColumn.Type]
        TYPE_TEXT: _ClassVar[InspectedColumn.Type]
    TYPE_UNSPECIFIED: InspectedColumn.Type
    TYPE_NUMBER: InspectedColumn.Type
    TYPE_TEXT: InspectedColumn.Type
    class Use(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        USE_UNSPECIFIED: _ClassVar[InspectedColumn.Use]
        USE_TARGET: _ClassVar[InspectedColumn.Use]
        USE_NUMBER: _ClassVar[InspectedColumn.Use]
        USE_CATEGORY: _ClassVar[InspectedColumn.Use]
        USE_HASH: _ClassVar[InspectedColumn.Use]
        USE_TEXT: _ClassVar[InspectedColumn.Use]
        USE_SPLIT: _ClassVar[InspectedColumn.Use]
    USE_UNSPECIFIED: InspectedColumn.Use
    USE_TARGET: InspectedColumn.Use
    USE_NUMBER: InspectedColumn.Use
    USE_CATEGORY: InspectedColumn.Use
    USE_HASH: InspectedColumn.Use
    USE_TEXT: InspectedColumn.Use
    USE_SPLIT: InspectedColumn.Use
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    FILE_TYPE_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    DISTINCT_FIELD_NUMBER: _ClassVar[int]
    MORE_DISTINCT_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    CONSTANT_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    USE_FIELD_NUMBER: _ClassVar[int]
    name: str
    type: InspectedColumn.Type
    file_type: str
    missing: int
    distinct: int
    more_distinct: bool
    numbers: NumberSummary
    texts: _containers.RepeatedCompositeFieldContainer[TextCount]
    constant: bool
    warnings: _containers.RepeatedCompositeFieldContainer[ColumnWarning]
    use: InspectedColumn.Use
    def __init__(self, name: _Optional[str] = ..., type: _Optional[_Union[InspectedColumn.Type, str]] = ..., file_type: _Optional[str] = ..., missing: _Optional[int] = ..., distinct: _Optional[int] = ..., more_distinct: _Optional[bool] = ..., numbers: _Optional[_Union[NumberSummary, _Mapping]] = ..., texts: _Optional[_Iterable[_Union[TextCount, _Mapping]]] = ..., constant: _Optional[bool] = ..., warnings: _Optional[_Iterable[_Union[ColumnWarning, _Mapping]]] = ..., use: _Optional[_Union[InspectedColumn.Use, str]] = ...) -> None: ...

class NumberSummary(_message.Message):
    __slots__ = ("minimum", "maximum", "mean", "stddev")
    MINIMUM_FIELD_NUMBER: _ClassVar[int]
    MAXIMUM_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    STDDEV_FIELD_NUMBER: _ClassVar[int]
    minimum: float
    maximum: float
    mean: float
    stddev: float
    def __init__(self, minimum: _Optional[float] = ..., maximum: _Optional[float] = ..., mean: _Optional[float] = ..., stddev: _Optional[float] = ...) -> None: ...

class TextCount(_message.Message):
    __slots__ = ("text", "count")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    text: str
    count: int
    def __init__(self, text: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...

class ColumnWarning(_message.Message):
    __slots__ = ("kind", "message")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[ColumnWarning.Kind]
        KIND_IDENTIFIER: _ClassVar[ColumnWarning.Kind]
        KIND_DATE: _ClassVar[ColumnWarning.Kind]
        KIND_MIXED_TYPES: _ClassVar[ColumnWarning.Kind]
        KIND_TARGET_LEAK: _ClassVar[ColumnWarning.Kind]
        KIND_LONG_TEXT: _ClassVar[ColumnWarning.Kind]
        KIND_MANY_VALUES: _ClassVar[ColumnWarning.Kind]
        KIND_CONSTANT: _ClassVar[ColumnWarning.Kind]
        KIND_MISSING: _ClassVar[ColumnWarning.Kind]
        KIND_UNUSABLE: _ClassVar[ColumnWarning.Kind]
        KIND_FAR_FROM_ZERO: _ClassVar[ColumnWarning.Kind]
    KIND_UNSPECIFIED: ColumnWarning.Kind
    KIND_IDENTIFIER: ColumnWarning.Kind
    KIND_DATE: ColumnWarning.Kind
    KIND_MIXED_TYPES: ColumnWarning.Kind
    KIND_TARGET_LEAK: ColumnWarning.Kind
    KIND_LONG_TEXT: ColumnWarning.Kind
    KIND_MANY_VALUES: ColumnWarning.Kind
    KIND_CONSTANT: ColumnWarning.Kind
    KIND_MISSING: ColumnWarning.Kind
    KIND_UNUSABLE: ColumnWarning.Kind
    KIND_FAR_FROM_ZERO: ColumnWarning.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    kind: ColumnWarning.Kind
    message: str
    def __init__(self, kind: _Optional[_Union[ColumnWarning.Kind, str]] = ..., message: _Optional[str] = ...) -> None: ...

class InspectedTarget(_message.Message):
    __slots__ = ("name", "guessed", "task", "classes", "class_count", "numbers", "warnings")
    class Task(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        TASK_UNSPECIFIED: _ClassVar[InspectedTarget.Task]
        TASK_CLASSIFICATION: _ClassVar[InspectedTarget.Task]
        TASK_REGRESSION: _ClassVar[InspectedTarget.Task]
    TASK_UNSPECIFIED: InspectedTarget.Task
    TASK_CLASSIFICATION: InspectedTarget.Task
    TASK_REGRESSION: InspectedTarget.Task
    NAME_FIELD_NUMBER: _ClassVar[int]
    GUESSED_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    CLASS_COUNT_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    name: str
    guessed: bool
    task: InspectedTarget.Task
    classes: _containers.RepeatedCompositeFieldContainer[TextCount]
    class_count: int
    numbers: NumberSummary
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., guessed: _Optional[bool] = ..., task: _Optional[_Union[InspectedTarget.Task, str]] = ..., classes: _Optional[_Iterable[_Union[TextCount, _Mapping]]] = ..., class_count: _Optional[int] = ..., numbers: _Optional[_Union[NumberSummary, _Mapping]] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class PreviewRow(_message.Message):
    __slots__ = ("cells",)
    CELLS_FIELD_NUMBER: _ClassVar[int]
    cells: _containers.RepeatedCompositeFieldContainer[PreviewCell]
    def __init__(self, cells: _Optional[_Iterable[_Union[PreviewCell, _Mapping]]] = ...) -> None: ...

class PreviewCell(_message.Message):
    __slots__ = ("text", "missing")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    text: str
    missing: bool
    def __init__(self, text: _Optional[str] = ..., missing: _Optional[bool] = ...) -> None: ...

class DeleteTrainingJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DeleteTrainingJobResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
