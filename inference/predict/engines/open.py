"""The choice of an engine, and of how much it computes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from inference.errors import DeviceError, UsageError
from inference.predict.engines.base import Engine
from inference.settings import ENGINES, PROFILES, Profile

_LOG = logging.getLogger(__name__)

# One of them is there wherever CUDA can be (Linux, WSL). Where none is, torch need not be loaded, which takes seconds.
_GPU_FILES: Final = ("/dev/nvidiactl", "/dev/dxg")


def open_engine(name: str = "auto", device: str = "auto", *, threads: int | None = None) -> Engine:
    """The engine for a device (`auto`, `cpu`, `cuda` or `cuda:N`), with as many threads as the process has cores.

    Left to itself: torch on a GPU where there is one that works, OpenVINO on a CPU, torch on a CPU without OpenVINO.

    Raises UsageError for names that mean nothing, and DeviceError for an engine or device that is not there.
    """
    if name not in ENGINES:
        raise UsageError(f"engine {name!r}: expected one of {', '.join(ENGINES)}")
    if name == "openvino" and device not in ("auto", "cpu"):
        raise UsageError(f"engine openvino runs on the CPU only, not on {device!r}: choose --engine torch")
    if device == "auto":
        device = "cuda" if name != "openvino" and _gpu_works() else "cpu"
    # Imported here, after the checks: a wrong name is answered at once, and only the chosen library is loaded.
    if device == "cpu" and name != "torch":
        try:
            from inference.predict.engines.openvino_engine import OpenVinoEngine

            return OpenVinoEngine(threads=threads)
        except ModuleNotFoundError as error:
            if name == "openvino":
                raise DeviceError("engine openvino: the package openvino is not installed") from error
    try:
        from inference.predict.engines.torch_engine import TorchEngine
    except ModuleNotFoundError as error:
        raise DeviceError(f"engine torch, for device {device}: the package torch is not installed") from error
    return TorchEngine(device, threads=threads)


def choose_profile(name: str, engine: Engine) -> Profile:
    """`auto` is `paper` on a GPU and `fast` on a CPU.

    Raises UsageError for a name that means nothing.
    """
    if name not in PROFILES:
        raise UsageError(f"profile {name!r}: expected one of {', '.join(PROFILES)}")
    if name == "auto":
        return Profile.FAST if engine.device == "cpu" else Profile.PAPER
    return Profile(name)


def _gpu_works() -> bool:
    if not any(Path(file).exists() for file in _GPU_FILES):
        return False
    try:
        from inference.predict.engines.torch_engine import check_device

        check_device("cuda")
    except ImportError:
        return False
    except DeviceError as error:
        _LOG.warning("warning: no GPU is used: %s", error)
        return False
    return True
