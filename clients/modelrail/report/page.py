"""Puts the report together: one file, with everything in it and nothing around it."""

from __future__ import annotations

from datetime import datetime

import yaml
from google.protobuf.json_format import MessageToDict
from jinja2 import Environment, PackageLoader, StrictUndefined

from modelrail.registry.v1 import registry_pb2
from modelrail.report import pictures, tables
from modelrail.report.history import History
from modelrail.report.scale import shown
from modelrail.report.visible import visible
from modelrail.trainer.v1 import trainer_pb2 as pb


def render(
    job: pb.TrainingJob,
    history: History,
    *,
    version: registry_pb2.ModelVersion | None,
    version_note: str,
    now: datetime,
) -> str:
    """Returns the report as HTML.

    Args:
        job: The job, in whatever state.
        history: Its events.
        version: What was published; None when nothing was, or the registry did not tell.
        version_note: Why there is no version to show; empty where there is one.
        now: When the report is made, in UTC.
    """
    environment = Environment(
        loader=PackageLoader("modelrail.report", "."),
        # Whatever the file is called.
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": shown, "duration": tables.duration}
    evaluation = job.evaluation if job.HasField("evaluation") else None
    state = pb.TrainingJob.State.Name(job.state).removeprefix("STATE_").lower()
    reason = pb.JobError.Reason.Name(job.error.reason).removeprefix("REASON_")
    page = environment.get_template("template.html.j2").render(
        job=job,
        state=state,
        reason=reason,
        spec=_as_yaml(job.spec),
        curves=list(pictures.curves(history, job.spec)),
        metric=job.spec.selection.metric or "loss",
        best_epoch=_best_epoch(job.spec, history),
        figures=tables.final_figures(job.metrics),
        evaluation=evaluation,
        confusion=[] if evaluation is None else list(tables.confusion(evaluation)),
        counts_up_to=tables.COUNTS_UP_TO,
        reliability=pictures.reliability(evaluation)
        if evaluation is not None and evaluation.reliability
        else None,
        residuals=pictures.residuals(evaluation)
        if evaluation is not None and evaluation.residuals
        else None,
        predictions=pictures.predictions(evaluation)
        if evaluation is not None and evaluation.predictions
        else None,
        summary=job.data_summary if job.HasField("data_summary") else None,
        version=version,
        version_note=version_note,
        timings=tables.timings(history.phases),
        log=history.log,
        now=now,
    )
    return visible(page)


def _best_epoch(spec: pb.TrainingJobSpec, history: History) -> int | None:
    curve = history.curves.get(("validation", spec.selection.metric or "loss"))
    return None if curve is None else curve.best_epoch()


def _as_yaml(spec: pb.TrainingJobSpec) -> str:
    content = MessageToDict(spec, preserving_proto_field_name=True)
    # 64-bit numbers are texts in the JSON of protobuf; the specification takes them as numbers.
    for owner, name in ((content, "seed"), (content.get("split", {}), "seed")):
        if name in owner:
            owner[name] = int(owner[name])
    return str(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100))
