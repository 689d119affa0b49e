"""torch's exporter parses the sources of its translations anew at every export, a second of work; here they are parsed once.

Every export still gets a registry of its own, which custom translations are added to.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

_MODULE = "torch.onnx._internal.exporter._registration"


def parse_translations_once() -> None:
    """From now on, if the exporter is loaded; it is not loaded for it."""
    registration = sys.modules.get(_MODULE)
    if registration is None or getattr(registration.ONNXRegistry.from_torchlib, "parses_once", False):
        return
    original, parsed = registration.ONNXRegistry.from_torchlib, {}

    def from_torchlib(*arguments: Any, **options: Any) -> Any:
        key = (arguments, tuple(options.items()))
        if key not in parsed:
            parsed[key] = original(*arguments, **options)
        registry = copy.copy(parsed[key])
        registry.functions = {target: list(found) for target, found in parsed[key].functions.items()}
        return registry

    from_torchlib.parses_once = True
    registration.ONNXRegistry.from_torchlib = staticmethod(from_torchlib)
