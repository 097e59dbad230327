"""Shows that the rows of a batch do not influence one another, or says why that is not certain.

Requests of different callers are put into one batch only when that changes nobody's answer. A model
whose first axis is not really a batch (a sequence, a set that is compared with itself) computes
something else for two rows than for each alone, and no shape tells. So two different rows are run
apart and together, and the answers are compared.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelrail.tensor import NUMPY_TYPES
from modelrail_inference.model.signature import DYNAMIC, Signature, TensorSpec
from modelrail_inference.runtime.session import Run, RunError, Session

_LENGTH = 4
"""Size of dimensions that each request chooses, other than the batch."""
_SEED = 7
# Sums in another order differ in the last digits; half-precision numbers in the third.
_RELATIVE, _ABSOLUTE = 1e-3, 1e-4
_RELATIVE_HALF, _ABSOLUTE_HALF = 2e-2, 2e-3


def why_rows_may_mix(session: Session, signature: Signature) -> str:
    """Runs two rows apart and together.

    Args:
        session: The loaded model.
        signature: Its inputs and outputs, each with a batch axis of any size.

    Returns:
        Why rows may influence one another; empty when they do not.
    """
    random = np.random.default_rng(_SEED)
    pair = {spec.name: _rows(spec, random) for spec in signature.inputs}
    names = [spec.name for spec in signature.outputs]
    try:
        together = session.run(pair, names, Run())
        again = session.run(pair, names, Run())
        apart = [
            session.run({name: rows[i : i + 1] for name, rows in pair.items()}, names, Run())
            for i in (0, 1)
        ]
    except RunError as error:
        return f"two rows of guessed shapes could not be run: {error}"
    for index, name in enumerate(names):
        if not _equal(together[index], again[index]):
            return f"output '{name}' differs between two runs of the same rows"
        if together[index].shape[:1] != (2,):
            return f"output '{name}' has shape {list(together[index].shape)} for two rows"
        alone = [outputs[index] for outputs in apart]
        if any(one.shape[:1] != (1,) for one in alone):
            return f"output '{name}' has shape {list(alone[0].shape)} for one row"
        if not all(_equal(together[index][i : i + 1], alone[i]) for i in (0, 1)):
            return f"output '{name}' of a row depends on the other rows of its batch"
    return ""


def _rows(spec: TensorSpec, random: np.random.Generator) -> NDArray[Any]:
    """Returns two different rows that most models accept."""
    shape = (2, *(_LENGTH if size == DYNAMIC else size for size in spec.shape[1:]))
    if spec.datatype == "BYTES":
        rows: NDArray[Any] = np.full(shape, "a", dtype=object)
        rows[1] = "b"
        return rows
    dtype = NUMPY_TYPES[spec.datatype]
    if dtype.kind in "biu":  # 0 and 1 are tokens, classes, flags and pixels of every model
        return random.integers(0, 2, shape).astype(dtype)
    return random.normal(size=shape).astype(dtype)


def _equal(a: NDArray[Any], b: NDArray[Any]) -> bool:
    if a.shape != b.shape:
        return False
    if a.dtype.kind in "OSUbiu":
        return bool(np.array_equal(a, b))
    is_half = a.dtype.itemsize < 4
    relative, absolute = (_RELATIVE_HALF, _ABSOLUTE_HALF) if is_half else (_RELATIVE, _ABSOLUTE)
    return bool(
        np.allclose(a.astype(np.float64), b.astype(np.float64), relative, absolute, equal_nan=True)
    )
