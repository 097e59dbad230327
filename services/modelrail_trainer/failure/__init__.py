"""The ways in which a job fails that are not defects. The message is for the job's owner."""

from __future__ import annotations

from typing import ClassVar

from modelrail_trainer.handover.journal import FailureReason


class JobFailure(Exception):
    """The job cannot succeed; `reason` is its kind."""

    reason: ClassVar[FailureReason]


class DataError(JobFailure):
    """The specification asks for something that cannot be done with this data."""

    reason = FailureReason.DATA


class FileError(DataError):
    """A file of the data set is gone, or is not what it has to be.

    Args:
        message: For the owner of the job, without the folder of the file.
        path: The file, where it is known which one; else empty.
    """

    def __init__(self, message: str, path: str) -> None:
        super().__init__(message)
        self.path = path


class NanLoss(JobFailure):
    """The loss became infinite or not a number.

    Args:
        what: Which figure, and when.
    """

    reason = FailureReason.NAN_LOSS

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what}; a smaller learning rate, max_gradient_norm or inputs on a smaller scale may "
            "help, else look for what the model divides by or takes the logarithm of"
        )


class DeviceUnavailable(JobFailure):
    """The job asks for a device that this machine has not."""

    reason = FailureReason.DEVICE_UNAVAILABLE


class ExportFailed(JobFailure):
    """The model could not be exported to ONNX as it has to be."""

    reason = FailureReason.EXPORT_FAILED


class UserCodeError(JobFailure):
    """The code of the job's owner raised an exception, or gave something else than it has to."""

    reason = FailureReason.USER_CODE


class GateFailed(JobFailure):
    """The exported file breaks a rule of the acceptance gate."""

    reason = FailureReason.GATE_FAILED
