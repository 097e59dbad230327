"""What a caller must be allowed to do to call each method."""

from __future__ import annotations

from modelrail_server.policy import Permission, Policy

_SERVICE = "/modelrail.trainer.v1.TrainerService"

POLICY: Policy = {
    f"{_SERVICE}/GetTrainingJob": Permission.READ,
    f"{_SERVICE}/ListTrainingJobs": Permission.READ,
    f"{_SERVICE}/WatchTrainingJob": Permission.READ,
    f"{_SERVICE}/CreateTrainingJob": Permission.WRITE,
    f"{_SERVICE}/CancelTrainingJob": Permission.WRITE,
    f"{_SERVICE}/CloneTrainingJob": Permission.WRITE,
    f"{_SERVICE}/PauseTrainingJob": Permission.WRITE,
    f"{_SERVICE}/ResumeTrainingJob": Permission.WRITE,
    f"{_SERVICE}/DeleteTrainingJob": Permission.WRITE,
    # It shows rows of files, which readers of jobs cannot see.
    f"{_SERVICE}/InspectDataset": Permission.WRITE,
}
