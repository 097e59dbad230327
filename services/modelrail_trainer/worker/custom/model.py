"""A module that the job's owner makes, held to its contract before anything is trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modelrail_trainer.failure import UserCodeError
from modelrail_trainer.rules.model import MAX_PARAMETERS
from modelrail_trainer.spec import CustomModel, DatasetFacts, Task
from modelrail_trainer.user_code import ModelFacts
from modelrail_trainer.worker.custom.code import UserCode

_MORE_ROWS = 7
"""So many, and two: a module may be right for one number of rows alone."""


def build_custom(
    code: UserCode, model: CustomModel, facts: DatasetFacts, *, seed: int, trains: bool
) -> nn.Module:
    """Calls the model function of a job.

    Args:
        code: Where it is.
        model: Its name and arguments.
        facts: What the model is made for; `outputs` as `body_outputs` tells them.
        seed: Of its random weights.
        trains: Whether it will be trained.

    Raises:
        UserCodeError: It raised an exception, or gave something else than a module that can be
            trained.
    """
    told = ModelFacts(
        row_shape=facts.row_shape,
        outputs=facts.outputs,
        tokens=facts.tokens,
        task="regression" if facts.task is Task.REGRESSION else "classification",
    )
    module = code.call(model.entry_point, told, seed=seed, **model.arguments)
    if not isinstance(module, nn.Module):
        raise UserCodeError(
            f"{model.entry_point}: expected a torch.nn.Module, got a {type(module).__name__}"
        )
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            raise UserCodeError(
                f"{model.entry_point}: expected a state of tensors alone, got {name!r}, a "
                f"{type(value).__name__}, which no checkpoint can hold"
            )
    if trains and not any(parameter.requires_grad for parameter in module.parameters()):
        raise UserCodeError(
            f"{model.entry_point}: expected parameters that can be trained, got none; epochs: 0 "
            "publishes the module as it is"
        )
    return module


def check_outputs(
    code: UserCode, name: str, network: nn.Module, rows: Tensor, outputs: int
) -> None:
    """Runs a network on a few rows, in evaluation mode, and looks at what it gives.

    Args:
        code: Whose the network is.
        name: Of its function.
        network: Preprocessing and module.
        rows: [B, *row_shape].
        outputs: How many numbers it has to give for a row.

    Raises:
        UserCodeError: The network raised an exception, or gave something else than finite float32
            [B, outputs], or has too many weights.
    """
    network.eval()
    for some in (rows[:2], rows[:_MORE_ROWS]):
        with torch.random.fork_rng(), torch.inference_mode(), code.blamed(name):
            got = network(some)
        given, wanted = list(some.shape), f"float32 {[len(some), outputs]}"
        found = f"a {type(got).__name__}"
        if isinstance(got, Tensor):
            found = f"{str(got.dtype).removeprefix('torch.')} {list(got.shape)}"
        if found != wanted:
            raise UserCodeError(
                f"{name}: expected the module to map rows {given} to {wanted}, got {found}"
            )
        if not (finite := got.isfinite()).all():
            row, place = (int(index) for index in (~finite).nonzero()[0])
            raise UserCodeError(
                f"{name}: expected finite numbers from the module, got {got[row, place].item()} "
                f"for output {place} of row {row}; look for what it divides by or takes the "
                "logarithm of, and for weights without values"
            )
    weights = sum(parameter.numel() for parameter in network.parameters())
    if weights > MAX_PARAMETERS:
        raise UserCodeError(
            f"{name}: expected at most {MAX_PARAMETERS} weights, so that the ONNX file stays a "
            f"single one; got {weights}"
        )
