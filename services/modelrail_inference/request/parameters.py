"""The parameters of a request: the reserved ones are checked, all others pass."""

from __future__ import annotations

from modelrail_inference.request.message import InferenceRequest, Parameter
from modelrail_inference.request.violations import SHOWN, Violations, shown
from modelrail_server.errors import Unimplemented


def check_parameters(request: InferenceRequest) -> None:
    """Checks the reserved parameters; all others pass, as nothing here reads them.

    `timeout` and `priority` are used by the scheduler where the model's queue policy lets requests
    shorten the wait (`allow_timeout_override`) and where it has priority levels.

    Raises:
        InvalidArgument: A reserved parameter has the wrong type or is unknown.
        Unimplemented: The request asks for a feature that this server does not offer.
    """
    wrong = Violations()
    for key, value in request.parameters.items():
        field = f"parameters[{shown(key)}]"
        expected = _parameter_error(key, value)
        if expected:
            wrong.add(field, f"parameter '{shown(key)}': {expected}")
    wrong.check()
    sequence = request.parameters.get("sequence_id", 0)
    if sequence not in (0, ""):
        raise Unimplemented(
            "sequence batching is not offered, got a sequence_id", reason="SEQUENCE_UNSUPPORTED"
        )
    for group in (request.input_parameters, request.output_parameters):
        for name, parameters in group.items():
            if any(key.startswith("shared_memory_") for key in parameters):
                raise Unimplemented(
                    f"'{shown(name)}' asks for shared memory, which this server does not offer",
                    reason="SHARED_MEMORY_UNSUPPORTED",
                )
    for name, parameters in request.output_parameters.items():
        if "classification" in parameters:
            raise Unimplemented(
                f"output '{shown(name)}' asks for classification, which is not offered",
                reason="CLASSIFICATION_UNSUPPORTED",
            )


def _parameter_error(key: str, value: Parameter) -> str | None:
    """Returns what is wrong with a parameter, or None."""
    if value is None:
        return "expected a value, got none"
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if key == "sequence_id":
        ok, expected = is_int or isinstance(value, str), "an integer or a string"
    elif key in ("sequence_start", "sequence_end", "binary_data_output"):
        ok, expected = isinstance(value, bool), "a bool"
    elif key in ("priority", "timeout"):
        ok, expected = is_int and int(value) >= 0, "an integer of at least 0"
    elif key == "triton_enable_empty_final_response":
        ok, expected = isinstance(value, bool), "a bool"
    elif key.startswith("triton_"):
        return "names with the prefix 'triton_' are reserved, and this one is unknown"
    else:
        return None
    return None if ok else f"expected {expected}, got {value!r:.{SHOWN}}"
