"""What runs networks: one small interface, and the choice of what stands behind it."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from inference.errors import DeviceError, UsageError
from inference.predict.networks import network_stride
from inference.predict.preprocess import Preprocessed, Triple
from inference.predict.tiling import MIRRORINGS, windows
from inference.settings import ENGINES, PROFILES, Profile

# Whatever imports openvino imports this package first. openvino would import its model converter, which reports every
# import to its makers, and fails for a user without a home.
sys.modules["openvino.tools.ovc"] = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

_GPU_FILES: Final = ("/dev/nvidiactl", "/dev/dxg")
"""One of them is there wherever CUDA can be (Linux, WSL): where none is, torch need not be loaded to find out."""
_COARSE: Final = 8

Advance = Callable[[], None]
"""Called after every forward pass."""
Heed = Callable[[NDArray[np.float32]], None]
"""Called with what each network says: probabilities (3, Z, Y, X) of WT, TC, ET in its axes, on the crop of the scan.
The array is the engine's own, and changes after the call."""


class NetworkSource(Protocol):
    """What prediction needs of a bundle's model."""

    @property
    def name(self) -> str:
        """Names the model in messages."""

    @property
    def plans(self) -> Mapping[str, object]:
        """nnU-Net's plans."""

    @property
    def architecture(self) -> Mapping[str, object]:
        """The architecture section of the plans."""

    @property
    def heads(self) -> str:
        """`regions` (sigmoids of WT, TC, ET) or `labels` (softmax over background, NCR, ED, ET)."""

    @property
    def format(self) -> str:
        """`safetensors` or `openvino`."""

    @property
    def folds(self) -> tuple[int, ...]:
        """Folds that have a network."""

    @property
    def weight(self) -> float:
        """Share of the ensemble."""

    def tensors(self, fold: int) -> Mapping[str, NDArray[np.float32]]:
        """Weights of one fold's network by state-dict name."""

    def network_file(self, fold: int) -> Path:
        """File of one fold's network."""


class Engine(Protocol):
    """Runs networks. An engine keeps the networks that it has loaded, so make one and use it for every case."""

    @property
    def name(self) -> str:
        """`torch` or `openvino`."""

    @property
    def device(self) -> str:
        """`cpu`, or `cuda:0` and so on."""

    @property
    def description(self) -> str:
        """Library, version, device and precision, for the record of a run."""

    def load(self, model: NetworkSource) -> None:
        """Load and check a model's networks, so that one that does not fit is refused before any case is read.

        Raises BundleError, and DeviceError when the device has no room for a network.
        """

    def mean_over_folds(
        self,
        model: NetworkSource,
        prepared: Preprocessed,
        profile: Profile,
        advance: Advance,
        heed: Heed | None = None,
    ) -> NDArray[np.float32]:
        """Probabilities (3, Z, Y, X) of WT, TC, ET, in the network's axes on the crop: a model's mean over its folds.

        `paper` brings the logits of each fold to the scan's spacing before the sigmoid or softmax, as nnU-Net does;
        `fast` averages probabilities on the network's grid and brings the average to the scan's spacing once. Where
        somebody heeds the single networks, each is brought there for them as well, which `fast` else saves.
        """


def heads_of(model: NetworkSource) -> int:
    """Outputs of a model's networks: three regions, or four labels with the background."""
    return 3 if model.heads == "regions" else 4


def pass_multiple(model: NetworkSource) -> Triple:
    """What sizes (Z, Y, X) of a `fast` pass are rounded up to: multiples of the network's stride and of 8.

    8, so that scans of nearly the same size share what an engine prepares for a size.
    """
    z, y, x = (math.lcm(step, _COARSE) for step in network_stride(model.architecture))
    return z, y, x


def doubt_of(found: NDArray[np.float32], expected: NDArray[np.float32], most: float) -> str:
    """Why logits cannot be trusted where others, of the same shape, were expected; or nothing.

    `most` is how far they may be apart: the root mean square of the difference by the standard deviation of what was
    expected. Not of probabilities, because trained networks are so sure that noise is no tumour that these agree
    whatever happens.
    """
    difference = float(np.sqrt(np.square(found - expected).mean()) / expected.std())
    # Written so that an answer that is not a number is doubted too.
    return "" if difference < most else f"logits differ by {difference:.3f} of their standard deviation"


def forward_count(shape: tuple[int, ...], patch: tuple[int, int, int], profile: Profile) -> int:
    """Forward passes of one network over an array of spatial `shape` (Z, Y, X)."""
    if profile is Profile.FAST:
        return 1
    padded = [max(size, least) for size, least in zip(shape, patch, strict=True)]
    return len(windows(padded, patch)) * len(MIRRORINGS)


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
    if device == "cpu" and name != "torch":
        try:
            from inference.predict.engines.openvino_engine import OpenVinoEngine

            return OpenVinoEngine(threads=threads)
        except ImportError as error:
            if name == "openvino":
                raise DeviceError("engine openvino: the package openvino is not installed") from error
    try:
        from inference.predict.engines.torch_engine import TorchEngine
    except ImportError as error:
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
        log.warning("warning: no GPU is used: %s", error)
        return False
    return True
