"""What training begins with: torch made deterministic, and the network before its first step."""

from __future__ import annotations

import os

import torch
from torch import nn

from modelrail_trainer.preprocessing.modules import fit_steps
from modelrail_trainer.spec import (
    BinaryCrossEntropy,
    CustomModel,
    DatasetFacts,
    TrainingJobSpec,
    body_outputs,
)
from modelrail_trainer.worker.custom.code import UserCode
from modelrail_trainer.worker.custom.model import build_custom, check_outputs
from modelrail_trainer.worker.learning.device import CPU
from modelrail_trainer.worker.learning.replicas import ALONE, Replicas
from modelrail_trainer.worker.network import Network, TwoClasses
from modelrail_trainer.worker.training_data import TrainingData

# Multiplications in a forward pass over a batch. Below this, threads wait for each other longer
# than they compute; on a busy machine they made the digits example 8 times slower.
_WORK_WORTH_THREADS = 50_000_000


def initial_network(
    spec: TrainingJobSpec,
    data: TrainingData,
    code: UserCode | None = None,
    replicas: Replicas = ALONE,
) -> Network:
    """Prepares torch, and makes the network that training begins with, on the job's device.

    Args:
        spec: With defaults applied.
        data: Preprocessing is fitted on its training part.
        code: Where a custom model's function is; None: nowhere.
        replicas: The processes that train together.

    Raises:
        UserCodeError: A custom model failed, or is not what it has to be.
    """
    facts = DatasetFacts(
        task=data.task,
        rows=len(data.train),
        row_shape=data.train.inputs.shape[1:],
        outputs=body_outputs(spec.loss, data.outputs),
        tokens=data.tokens,
    )
    device = replicas.device
    prepare_torch(spec.seed, max(1, threads_for(spec, facts) // replicas.count), device)
    inputs = torch.from_numpy(data.train.inputs)  # [N, *row_shape]
    preprocessing = data.scaling or fit_steps(spec.preprocessing, inputs)
    if spec.model is None:
        raise ValueError("the specification has no model")
    if not isinstance(spec.model, CustomModel):
        body = spec.model.build(facts.row_shape, facts.outputs, facts.tokens)
        return Network(preprocessing, _with_classes(body, spec)).to(device)
    if code is None:
        raise ValueError("a custom model needs the folders of user code")
    body = build_custom(code, spec.model, facts, seed=spec.seed, trains=spec.epochs > 0)
    check_outputs(code, spec.model.entry_point, Network(preprocessing, body), inputs, facts.outputs)
    # How many weights it has, and what it did to torch, is known now.
    weights = sum(parameter.numel() for parameter in body.parameters())
    prepare_torch(spec.seed, max(1, threads_for(spec, facts, weights) // replicas.count), device)
    return Network(preprocessing, _with_classes(body, spec)).to(device)


def prepare_torch(seed: int, threads: int, device: torch.device = CPU) -> None:
    """Makes torch deterministic in this process: one seed, deterministic kernels, fixed threads."""
    torch.set_num_threads(threads)
    # Of some operations CUDA has no deterministic kernel; a job goes on without.
    torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
    if device.type == "cuda":
        # Else convolutions in FP32 are rounded to TF32, which has 10 bits of 23.
        torch.backends.cudnn.allow_tf32 = False
    # Else every new tensor is filled with NaN first, which made large steps a quarter slower. No
    # kernel of torch reads what was not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.manual_seed(seed)


def threads_for(spec: TrainingJobSpec, facts: DatasetFacts, weights: int | None = None) -> int:
    """Returns how many threads a training step is worth.

    It follows from the specification and the processors alone, never from a measurement: another
    number of threads may round differently.

    Args:
        spec: What is trained.
        facts: On what.
        weights: How many it has; None: as many as an architecture tells, and 0 for a module.
    """
    if weights is None:
        known = None if isinstance(spec.model, CustomModel) else spec.model
        weights = known.parameter_count(facts) if known else 0
    batch_size = facts.rows if takes_all_rows(spec) else spec.batch_size
    places = facts.row_shape[0] if facts.tokens else 1  # the weights are met at each token
    if weights * batch_size * places < _WORK_WORTH_THREADS:
        return 1
    return len(os.sched_getaffinity(0))  # what the process may really use


def takes_all_rows(spec: TrainingJobSpec) -> bool:
    """Whether a step is made on all rows together."""
    return spec.optimizer is not None and spec.optimizer.takes_all_rows


def _with_classes(body: nn.Module, spec: TrainingJobSpec) -> nn.Module:
    if isinstance(spec.loss, BinaryCrossEntropy):
        return nn.Sequential(body, TwoClasses())  # [B, 1] to [B, 2]
    return body
