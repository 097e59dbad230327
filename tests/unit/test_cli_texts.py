"""What others wrote is shown as it is, and steers no terminal."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import numpy as np
import pytest

from modelrail.cli.commands.jobs import list_jobs
from modelrail.cli.commands.models import list_models, list_versions, show
from modelrail.cli.console import note, say, say_json, stdout
from modelrail.cli.inspection import show_inspection
from modelrail.cli.session import Session
from modelrail.cli.tensors import output_table
from modelrail.registry.v1 import registry_pb2 as pb
from modelrail.trainer.v1 import trainer_pb2

HOSTILE = "see [red] in [/data/x] :smile: \x1b[2J\x9b2J\u202egone"
SHOWN = "see [red] in [/data/x] :smile: �[2J�2J�gone"


class ScriptedServices:
    """A session whose registry and trainer hold one of each."""

    def __init__(self) -> None:
        self.model = pb.Model(name="models/m", description=HOSTILE, latest_version_number=1)
        self.version = pb.ModelVersion(
            name="models/m/versions/1", number=1, aliases=[HOSTILE], description=HOSTILE
        )
        self.version.metrics.add(name=HOSTILE, split=HOSTILE, runtime=HOSTILE, value=1)
        self.version.files.add(path=HOSTILE)
        self.version.signature.outputs.add(name=HOSTILE, meaning=HOSTILE, labels=[HOSTILE])
        self.version.lineage.dataset = HOSTILE
        self.version.certificate.tools[HOSTILE] = HOSTILE
        self.job = trainer_pb2.TrainingJob(name="trainingJobs/a", model_version=HOSTILE)

    @asynccontextmanager
    async def registry(self) -> AsyncIterator[ScriptedServices]:
        yield self

    trainer = registry

    async def list_models(self) -> AsyncIterator[pb.Model]:
        yield self.model

    async def list_model_versions(self, _: str) -> AsyncIterator[pb.ModelVersion]:
        yield self.version

    async def get_model_version(self, _: str) -> pb.ModelVersion:
        return self.version

    async def list_jobs(self) -> AsyncIterator[trainer_pb2.TrainingJob]:
        yield self.job


@pytest.fixture
def services() -> ScriptedServices:
    return ScriptedServices()


@pytest.fixture
def session(services: ScriptedServices) -> Session:
    return cast(Session, services)


@pytest.fixture(autouse=True)
def _no_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.delenv("TTY_COMPATIBLE", raising=False)


def _shown(captured: pytest.CaptureFixture[str]) -> str:
    text = "".join(captured.readouterr())
    assert not {"\x1b", "\x9b", "\u202e"} & set(text)
    return text


async def test_models_are_listed_with_their_descriptions(
    session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    await list_models(session)
    assert SHOWN in _shown(capsys)


async def test_versions_are_listed_with_their_aliases_and_figures(
    session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    await list_versions(session, "m")
    row = " ".join(_shown(capsys).split())
    assert f"1 {SHOWN} " in row
    assert f"{SHOWN} {SHOWN} 1 ({SHOWN})" in row


async def test_a_version_is_shown_with_all_its_texts(
    session: Session, services: ScriptedServices, capsys: pytest.CaptureFixture[str]
) -> None:
    await show(session, "m@1")
    text = _shown(capsys)
    assert f"  description   {SHOWN}\n" in text
    assert f"  data set      {SHOWN}\n" in text
    assert f"  tools         {SHOWN} {SHOWN}\n" in text
    assert f"labels {SHOWN}\n" in text
    heading, row = text.splitlines()[-2:]
    assert heading.count(SHOWN) == 1
    assert row.count(SHOWN) == 2
    services.version.description = "one\n  proof         forged"
    await show(session, "m@1")
    assert "\n  proof" not in _shown(capsys)


async def test_jobs_are_listed_with_their_versions(
    session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    await list_jobs(session)
    assert SHOWN in _shown(capsys)


def test_answers_are_shown_with_names_labels_and_texts(capsys: pytest.CaptureFixture[str]) -> None:
    stdout().print(output_table(HOSTILE, np.array([[0.25, 0.75]]), [HOSTILE, "b"]))
    heading, row = _shown(capsys).splitlines()
    assert SHOWN in heading
    assert row.rstrip().endswith(f"b: 0.7500  {SHOWN}: 0.2500")
    answer = np.array([[f"{HOSTILE}\n1    forged".encode()]], dtype=object)
    stdout().print(output_table("text", answer, []))
    _, row = _shown(capsys).splitlines()
    assert f"{SHOWN}�1    forged" in row


def test_a_table_is_shown_with_its_columns_and_cells(capsys: pytest.CaptureFixture[str]) -> None:
    column: dict[str, Any] = {"name": HOSTILE, "file_type": HOSTILE}
    found = trainer_pb2.InspectDatasetResponse(
        files=[trainer_pb2.InspectedFile(path=HOSTILE)], warnings=[HOSTILE]
    )
    found.columns.add(**column).texts.add(text=HOSTILE, count=1)
    found.preview.add().cells.add(text=HOSTILE)
    show_inspection(found)
    text = _shown(capsys)
    assert f"{SHOWN}: 0 rows" in text
    assert f"! {SHOWN}\n" in text
    assert text.count("see [red] in [/data") == 7


def test_lines_of_results_and_of_notes_are_texts(capsys: pytest.CaptureFixture[str]) -> None:
    say(HOSTILE)
    note(f"error: {HOSTILE}")
    assert _shown(capsys) == f"{SHOWN}\nerror: {SHOWN}\n"


def test_json_is_the_same_for_programs_and_harmless_in_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    say_json({"text": HOSTILE, "more": "ü\n"})
    text = _shown(capsys)
    assert json.loads(text) == {"text": HOSTILE, "more": "ü\n"}
    assert "ü" in text
