from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer.main
from hypothesis import given
from hypothesis import strategies as st

from modelrail.cli.commands.train import app
from modelrail.client.trainer import TERMINAL_STATES
from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer.jobs.state import (
    MOST_RETRIES,
    TERMINAL,
    TRANSITIONS,
    IllegalTransition,
    JobState,
    Reason,
    check_transition,
)

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_every_state_has_a_row_in_the_table() -> None:
    assert set(TRANSITIONS) == set(JobState)


def test_states_and_reasons_are_those_of_the_contract() -> None:
    states = {
        name.removeprefix("STATE_") for name in pb.TrainingJob.State.DESCRIPTOR.values_by_name
    }
    reasons = {
        name.removeprefix("REASON_") for name in pb.JobError.Reason.DESCRIPTOR.values_by_name
    }
    assert states - {"UNSPECIFIED"} == {state.value for state in JobState}
    assert reasons - {"UNSPECIFIED"} == {reason.value for reason in Reason}


def test_every_reason_has_a_row_in_the_table_of_retries() -> None:
    assert set(MOST_RETRIES) == set(Reason)


def test_the_readers_table_has_every_reason_and_how_often_a_job_runs_again_for_it() -> None:
    table = README.partition("| reason | what happened | runs again |\n|---|---|---|\n")[2]
    told: dict[str, int] = {}
    for row in table.partition("\n\n")[0].splitlines():
        reasons, _, again = row.strip("| ").split(" | ")
        times = re.fullmatch(r"up to (\d+) times", again)
        for reason in re.findall(r"`(\w+)`", reasons):
            assert reason not in told
            told[reason] = int(times[1]) if times else 0
    assert told == {reason.value: most for reason, most in MOST_RETRIES.items()}


def test_the_help_of_retries_names_the_reasons_that_a_job_runs_again_for() -> None:
    command = typer.main.get_command(app)
    (option,) = [param for param in command.params if param.name == "max_retries"]
    told = re.findall(r"\b[A-Z_]{4,}\b", getattr(option, "help", ""))
    assert sorted(told) == sorted(reason.value for reason, most in MOST_RETRIES.items() if most)


def test_what_the_same_program_does_again_is_not_retried() -> None:
    retried = {reason: most for reason, most in MOST_RETRIES.items() if most}
    assert retried == {
        Reason.PROCESS_DIED: 10,
        Reason.STALLED: 2,
        Reason.DATA_UNAVAILABLE: 10,
        Reason.DISK_FULL: 10,
    }


def test_four_states_are_terminal() -> None:
    ends = {JobState.SUCCEEDED, JobState.CANCELLED, JobState.FAILED, JobState.EXPIRED}
    assert ends == TERMINAL


def test_the_client_knows_the_same_ends() -> None:
    assert {f"STATE_{state}" for state in TERMINAL} == {
        pb.TrainingJob.State.Name(state) for state in TERMINAL_STATES
    }


@pytest.mark.parametrize("state", sorted(set(JobState) - TERMINAL - {JobState.CANCELLING}))
def test_a_job_that_has_not_ended_may_be_cancelled(state: JobState) -> None:
    check_transition(state, JobState.CANCELLING)


WORKED_ON = set(JobState) - TERMINAL - {JobState.CANCELLING, JobState.PAUSED}


@pytest.mark.parametrize("state", sorted(WORKED_ON))
def test_a_job_that_somebody_works_on_may_fail(state: JobState) -> None:
    check_transition(state, JobState.FAILED)


@given(st.lists(st.sampled_from(JobState), max_size=30))
def test_no_sequence_of_requests_leaves_a_terminal_state(wanted: list[JobState]) -> None:
    state = JobState.QUEUED
    ended_as: JobState | None = None
    for new in wanted:
        try:
            check_transition(state, new)
        except IllegalTransition:
            continue
        state = new
        assert ended_as is None
        if state in TERMINAL:
            ended_as = state


@given(st.sampled_from(JobState))
def test_every_state_can_still_reach_an_end(start: JobState) -> None:
    reached, frontier = {start}, {start}
    while frontier:
        frontier = {new for state in frontier for new in TRANSITIONS[state]} - reached
        reached |= frontier
    assert reached & TERMINAL
