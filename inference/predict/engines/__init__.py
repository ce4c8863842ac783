"""Runs networks: :mod:`.open` chooses an engine, :mod:`.base` says what one is."""

import sys

from inference.predict.engines.base import Engine
from inference.predict.engines.open import choose_profile, open_engine

__all__ = ["Engine", "choose_profile", "open_engine"]

# Whatever imports openvino imports this package first. openvino would import its model converter, whose telemetry
# reports every import to its makers, and fails for a user without a home. An entry of None makes that import fail, as
# if the converter were not installed, and openvino goes on without it.
sys.modules["openvino.tools.ovc"] = None  # type: ignore[assignment]
