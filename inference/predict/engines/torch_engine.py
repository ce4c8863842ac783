"""Networks on PyTorch: any CPU in float32, CUDA in half precision with sums in float32.

On CUDA networks run channels last (:mod:`inference.predict.engines.channels_last`), where that is known for them. The
first network of a model is tried on a small cube, and compared with what the network itself says.

From the preprocessed array to a model's mean over folds everything stays on the device, and the host does not wait in
between unless the single networks are asked for, or logits are resampled in a way that torch has not (cubic splines,
thick slices). The mirrorings of a tile are one batch, which is halved for good where memory does not suffice. The
weights of all networks stay on the device; where they leave no room for a single pass, they come from the host one
network at a time.
"""

# Estimated and left out: one pass over the tiles for all folds at once would save the stacking of batches, which is
# 0.3 % of the memory traffic of a case at full size, and need the sums of all folds and all weights at hand. Pinned
# memory costs a copy of its own, and an upload of 50 MB takes 10 ms without it. A weighted sum over models on the
# device would save a copy and an addition of 40 MB a model, 10 and 30 ms of seconds.

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from inference.bundle.store import Model
from inference.errors import BundleError, DeviceError, UsageError
from inference.labels import REGIONS, SEQUENCES
from inference.machine import available_threads
from inference.predict.engines.base import heads_of, mismatch, pass_shape
from inference.predict.engines.channels_last import channels_last
from inference.predict.engines.passes import Forward, PassEngine
from inference.predict.networks import build_network, load_weights, on_coarser_grid, shuffle_factor
from inference.predict.preprocess import Preprocessed, read_plan
from inference.predict.resampling import LINEAR, thick_axis
from inference.predict.tiling import MIRRORINGS

_LOG = logging.getLogger(__name__)
# Root mean square difference of logits, by their standard deviation, from which on a channels-last view is not trusted;
# half precision alone makes 0.002.
_DISAGREEMENT = 0.05
_HOST = torch.device("cpu")
# What torch says, in a plain RuntimeError, of a convolution that has no memory for its workspace, or that cuDNN cannot
# do, and of a matrix product that finds no memory.
_SHORTAGES = ("unable to find an engine", "CUBLAS_STATUS_ALLOC_FAILED")
_INSTEAD = "choose --engine openvino --device cpu, or another bundle"


def check_device(device: str) -> torch.device:
    """A device that torch can run networks on, by its name (`cpu`, `cuda`, `cuda:N`).

    Raises UsageError for another name, and DeviceError, saying what to do, for a GPU that is absent or too old or too
    new for this build of torch.
    """
    named = re.fullmatch(r"cpu|cuda(?::(\d+))?", device)
    if named is None:
        raise UsageError(f"device {device!r}: expected auto, cpu, cuda or cuda:N")
    if device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DeviceError(f"device {device}: torch finds no working GPU; choose --device cpu")
    index = int(named[1] or 0)
    if index >= torch.cuda.device_count():
        raise DeviceError(f"device {device}: there are only {torch.cuda.device_count()} GPUs, counted from 0")
    major, minor = torch.cuda.get_device_capability(index)
    built = [name.rpartition("_")[2] for name in torch.cuda.get_arch_list() if name.startswith("sm_")]
    # Code for 8.0 runs on 8.6 as well: a device needs code of its own major version that is not newer than itself.
    if not any(name[:-1] == str(major) and int(name[-1]) <= minor for name in built if name[-1].isdecimal()):
        found = f"compute capability {major}.{minor}"
        raise DeviceError(
            f"device {device}: {found}, but this torch is built for {', '.join(built)}; choose --device cpu"
        )
    return torch.device("cuda", index)


class TorchEngine(PassEngine[Tensor]):
    """Runs networks with PyTorch. Keeps those that it has seen: on its device, as long as all of them fit there."""

    name = "torch"

    def __init__(self, device: str = "cpu", *, threads: int | None = None) -> None:
        super().__init__()
        self._device = check_device(device)
        self._on_gpu = self._device.type == "cuda"
        if not self._on_gpu:
            torch.set_num_threads(threads or available_threads())
        # All mirrorings of a tile at once; on a CPU one by one: eight need eight times the memory for activations.
        self._batch = len(MIRRORINGS) if self._on_gpu else 1
        self._networks: dict[tuple[Model, int], nn.Module] = {}
        self._channels_last: dict[Model, bool] = {}
        self._placed: set[nn.Module] = set()
        self._one_at_a_time = False

    @property
    def device(self) -> str:
        """`cpu`, or `cuda:0` and so on."""
        return str(self._device)

    @property
    def description(self) -> str:
        """Library, version, device and precision, and whether all networks so far run channels last."""
        if not self._on_gpu:
            return f"torch {torch.__version__} cpu float32"
        layout = ", channels last" if self._channels_last and all(self._channels_last.values()) else ""
        return f"torch {torch.__version__} {self._device} ({torch.cuda.get_device_name(self._device)}) float16{layout}"

    def load(self, model: Model) -> None:
        """As :class:`inference.predict.engines.base.Engine` says."""
        read_plan(model.plans)
        if model.format == "openvino":
            raise BundleError(f"{model.name}: its networks are stored for OpenVINO, torch cannot run them: {_INSTEAD}")
        for fold in model.folds:
            try:
                self._network(model, fold)
            except BundleError as error:
                raise BundleError(f"{model.name}, fold {fold}: {error}") from error

    @contextmanager
    def _session(self) -> Iterator[None]:
        with torch.inference_mode():
            yield

    @contextmanager
    def _opened(self, model: Model, fold: int) -> Iterator[Forward[Tensor]]:
        network = self._network(model, fold)

        def forward(arrays: Iterable[Tensor]) -> Iterator[Tensor]:
            waiting = iter(arrays)
            # Asked anew for every batch: a shortage of memory makes them smaller.
            while batch := list(islice(waiting, self._batch)):
                yield from self._forward(network, torch.stack(batch))

        yield forward

    def _probabilities(self, logits: Tensor, heads: str) -> Tensor:
        if heads == "regions":
            return logits.sigmoid()
        softmax = logits.softmax(0)
        return torch.stack([softmax[list(labels)].sum(0) for labels in REGIONS.values()])

    def _to_crop_grid(self, array: Tensor, prepared: Preprocessed) -> Tensor:
        """On the device where torch can do it."""
        plan, shape = prepared.plan, prepared.crop_shape
        if tuple(array.shape[1:]) == shape:
            return array
        resampling = plan.logits_resampling
        thick = thick_axis(plan.spacing, prepared.crop_spacing, resampling.force_separate_z)
        # Splines of order 1, which nnU-Net's planner names for logits, are the same interpolation.
        if thick is None and (resampling.name == LINEAR or resampling.order == 1):
            return functional.interpolate(array[None], shape, mode="trilinear")[0]
        return self._to_device(prepared.to_crop_grid(self._to_host(array)), exact=True)

    def _to_device(self, array: NDArray[np.float32], *, exact: bool = False) -> Tensor:
        # Copied, because `from_numpy` warns of arrays that must not be written to, as cached weights are.
        tensor = torch.tensor(array, device=self._device)
        # Half precision once instead of in every pass: tiles are stacked in half the time, too.
        return tensor.half() if self._on_gpu and not exact else tensor

    def _to_host(self, array: Tensor) -> NDArray[np.float32]:
        host: NDArray[np.float32] = array.cpu().numpy()
        return host

    def _zeros(self, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(shape, device=self._device)

    def _flip(self, array: Tensor, axes: tuple[int, ...]) -> Tensor:
        return array.flip(axes)

    def _network(self, model: Model, fold: int) -> nn.Module:
        if (model, fold) not in self._networks:
            # On `meta` nothing is initialised only to be overwritten.
            with torch.device("meta"):
                network = build_network(model.architecture, len(SEQUENCES), heads_of(model))
            load_weights(network, model.tensors(fold))
            self._networks[model, fold] = self._view_of(model, network.eval())
        network = self._networks[model, fold]
        if network not in self._placed:
            self._place(network)
        return network

    def _view_of(self, model: Model, network: nn.Module) -> nn.Module:
        """The view of a network that runs on a GPU, or the network itself; decided with the first of a model."""
        if not self._on_gpu or not self._channels_last.get(model, True):
            return network
        rearranged = channels_last(network)
        factor = shuffle_factor(model.architecture)
        if rearranged is not None and factor > 1:
            on_coarser_grid(rearranged, factor)
        if model not in self._channels_last:
            found = self._mismatch(model, network, rearranged) if rearranged else ""
            if found:
                _LOG.warning("%s: its networks run as they are, not channels last: %s", model.name, found)
            self._channels_last[model] = rearranged is not None and not found
        return rearranged if rearranged and self._channels_last[model] else network

    def _mismatch(self, model: Model, network: nn.Module, rearranged: nn.Module) -> str:
        """Reason not to trust the channels-last view of a network, or nothing.

        Raises DeviceError where there is no memory.
        """
        sizes = pass_shape((1, 1, 1), model.architecture)
        cube = torch.randn(1, len(SEQUENCES), *sizes, generator=torch.Generator().manual_seed(0))
        expected = self._tried(network, cube)
        one_at_a_time = self._one_at_a_time
        try:
            found = self._tried(rearranged, cube)
        except DeviceError:
            raise
        except Exception as error:
            # Whatever it is, the network itself still runs. What cuDNN cannot do was taken for a lack of memory.
            self._one_at_a_time = one_at_a_time
            reason, _, _ = str(error).partition("\n")
            return f"{type(error).__name__}: {reason}"
        return mismatch(found.numpy(), expected.numpy(), _DISAGREEMENT)

    def _tried(self, network: nn.Module, batch: Tensor) -> Tensor:
        """Logits (heads, Z, Y, X) on the host of (1, 4, Z, Y, X), by a network that does not stay on the device."""
        try:
            self._place(network)
            with torch.inference_mode():
                return self._forward(network, batch.to(self._device))[0].cpu()
        except torch.OutOfMemoryError as error:
            advice = "close what else uses it, or choose --device cpu"
            raise DeviceError(f"{self.device}: not enough memory to try a network; {advice}") from error
        finally:
            network.to(_HOST)
            self._placed.discard(network)

    def _place(self, network: nn.Module) -> None:
        """Bring a network to the device: beside the others, or in their place where they do not fit together.

        Raises DeviceError when it does not even fit alone.
        """
        if not self._one_at_a_time:
            try:
                network.to(self._device)
            except torch.OutOfMemoryError:
                self._one_at_a_time = True
        if self._one_at_a_time:
            self._clear_for(network)
            try:
                network.to(self._device)
            except torch.OutOfMemoryError as error:
                advice = "close what else uses it, or choose --device cpu"
                raise DeviceError(f"{self.device}: not enough memory for one network; {advice}") from error
        self._placed.add(network)

    def _clear_for(self, network: nn.Module) -> None:
        """Take all other networks off the device, those too of which only a part came to lie there."""
        for other in self._networks.values():
            if other is not network:
                other.to(_HOST)
        self._placed &= {network}
        self._give_back()

    def _forward(self, network: nn.Module, batch: Tensor) -> Tensor:
        """Logits in float32 of (batch, 4, Z, Y, X), in as many parts as memory asks for."""
        if not self._on_gpu:
            # The layout that CPU convolutions are fastest in; CUDA's instance norm is slower in it.
            batch = batch.contiguous(memory_format=torch.channels_last_3d)
        logits: list[Tensor] = []
        while len(batch):
            part = batch[: self._batch]
            try:
                with torch.autocast(self._device.type, torch.float16, enabled=self._on_gpu):
                    logits.append(network(part).float())
                batch = batch[len(part) :]
                continue
            except RuntimeError as error:
                if not isinstance(error, torch.OutOfMemoryError) and not any(sign in str(error) for sign in _SHORTAGES):
                    raise
                # The traceback holds what was computed so far.
                shortage = error.with_traceback(None)
            self._make_room(network, part, shortage)
        return logits[0] if len(logits) == 1 else torch.cat(logits)

    def _make_room(self, network: nn.Module, part: Tensor, shortage: RuntimeError) -> None:
        """From now on smaller batches than `part`; where it is a single array, one network on the device at a time.

        Raises DeviceError when there is nothing left to do without.
        """
        if len(part) > 1:
            self._batch = len(part) // 2
        elif len(self._placed) > 1:
            self._one_at_a_time = True
            self._clear_for(network)
        elif isinstance(shortage, torch.OutOfMemoryError):
            size = "×".join(str(length) for length in part.shape[2:])
            advice = "choose --profile paper, or --device cpu"
            raise DeviceError(
                f"{self.device}: not enough memory for one pass over {size} voxels; {advice}"
            ) from shortage
        else:
            raise shortage
        self._give_back()

    def _give_back(self) -> None:
        """Let CUDA have the memory that torch keeps for later, which lies in pieces of the wrong size."""
        if self._on_gpu:
            torch.cuda.empty_cache()
