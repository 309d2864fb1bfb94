"""What a run may reach on a public page: models of the catalogue or the hub, and texts by name."""

from __future__ import annotations

from compression import hub
from compression.base import ModelUnavailable
from compression.catalogue import CATALOGUE, unknown
from compression.models import is_path
from evaluation.spec import CALIBRATIONS, TEXTS, RunSpec


def named_only(spec: RunSpec) -> None:
    """Raises if a run reads a file of the server.

    On a public page models come from the catalogue or the hub, and texts are given by name.
    """
    free = [getattr(params, name) for method, params in spec.methods for name in free_texts(method)]
    for model in filter(None, (spec.model, *free)):
        if model in CATALOGUE:
            continue
        if is_path(model):
            raise _server_file()
        if "/" not in model:
            raise unknown(model)
        if not hub.is_id(model):
            raise ModelUnavailable(
                f"{model[:120]!r} is no hub id (owner/name)", code="bad_hub_id", name=model[:120]
            )
    if spec.text not in TEXTS or spec.calibration not in CALIBRATIONS:
        raise _server_file()


def free_texts(method) -> tuple[str, ...]:
    """The parameters of a method whose value may be any text: names of models or files."""
    return tuple(f["name"] for f in method.params.describe() if f["type"] == "str" and not f["choices"])


def _server_file() -> ModelUnavailable:
    return ModelUnavailable(
        "files of the server are not allowed on a public Space; choose a named model and text",
        code="path_refused",
    )
