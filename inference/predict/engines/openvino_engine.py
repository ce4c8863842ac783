"""Networks on OpenVINO: the fastest way on a CPU, and one that needs no torch.

A compiled network takes scans of any size, and keeps what it prepares for a size. Its memory for activations is given
back after every use.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import openvino
from numpy.typing import NDArray

from inference.bundle.store import Model
from inference.errors import BundleError, DeviceError
from inference.labels import SEQUENCES
from inference.machine import available_threads, free_memory
from inference.predict.engines.base import (
    Advance,
    Engine,
    Update,
    heads_of,
    mismatch,
    pass_bytes,
    pass_shape,
    region_probabilities,
)
from inference.predict.engines.openvino_graph import OPERATIONS, UnsupportedGraphError, build_graph
from inference.predict.engines.passes import Forward, PassEngine
from inference.predict.networks import network_stride
from inference.predict.preprocess import Preprocessed, read_plan
from inference.settings import Profile

_LOG = logging.getLogger(__name__)
# Sizes, in strides, on which the first network of each model is compared with itself in float32: the smallest that a
# pass can have (`pass_shape`), and a slab of few slices. Faults of OpenVINO's have shown at the smallest alone.
_PROBES: Final = ((2, 2, 2), (2, 3, 4))
# Root mean square difference of logits, by their standard deviation, from which on a network is not trusted; bfloat16
# alone makes 0.01 to 0.025.
_DISAGREEMENT: Final = 0.1
# Bytes that are to be free beside what a pass needs: code that OpenVINO writes for a size, and its tables.
_SPARE: Final = 64 * 2**20


class OpenVinoEngine(PassEngine[NDArray[np.float32]]):
    """Runs networks with OpenVINO on the CPU, in bfloat16 where the processor has it.

    The first network of a model is tried on small arrays, and compared with the same graph in float32. A model that
    cannot be compiled or that disagrees is left to torch.
    """

    name = "openvino"
    device = "cpu"

    def __init__(self, *, threads: int | None = None, precision: str | None = None) -> None:
        super().__init__()
        self._core = openvino.Core()
        capabilities = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self._precision = precision or ("bf16" if "BF16" in capabilities else "f32")
        self._threads = threads or available_threads()
        self._compiled: dict[tuple[Model, int], openvino.CompiledModel] = {}
        self._trusted: dict[Model, bool] = {}
        self._torch: Engine | None = None

    @property
    def description(self) -> str:
        """Library, version, device and precision, and which models were left to torch."""
        left = sorted(model.name for model, trusted in self._trusted.items() if not trusted)
        instead = f"; {', '.join(left)}: {self._torch.description}" if self._torch and left else ""
        precision = {"bf16": "bfloat16", "f32": "float32"}[self._precision]
        return f"openvino {openvino.__version__.partition('-')[0]} cpu {precision}{instead}"

    def load(self, model: Model) -> None:
        """As :class:`inference.predict.engines.base.Engine` says."""
        read_plan(model.plans)
        if not self._trusts(model):
            self._fallback().load(model)
            return
        for fold in model.folds:
            self._network(model, fold)

    def mean_over_folds(
        self, model: Model, prepared: Preprocessed, profile: Profile, advance: Advance, update: Update | None = None
    ) -> NDArray[np.float32]:
        """As :class:`inference.predict.engines.base.Engine` says."""
        with self._lock:
            if self._trusts(model):
                return super().mean_over_folds(model, prepared, profile, advance, update)
            return self._fallback().mean_over_folds(model, prepared, profile, advance, update)

    @contextmanager
    def _opened(self, model: Model, fold: int) -> Iterator[Forward[NDArray[np.float32]]]:
        yield partial(self._forward, model, fold, set())
        # What OpenVINO keeps for activations, 1 to 2 GB a network at full size; it needs all requests to be gone.
        self._network(model, fold).release_memory()

    def _forward(
        self, model: Model, fold: int, held: set[tuple[int, ...]], arrays: Iterable[NDArray[np.float32]]
    ) -> Iterator[NDArray[np.float32]]:
        """Logits (heads, Z, Y, X) of each of some arrays (4, Z, Y, X); `held` are sizes that had a pass already."""
        request = self._network(model, fold).create_infer_request()
        for array in arrays:
            try:
                # From its first pass on, a network holds what further ones of the same size need.
                if array.shape not in held:
                    self._check_room(model, array)
                logits = _infer(request, array)
                # By the sum, which is NaN or infinite where any of them is, and needs no array of its own.
                if not np.isfinite(logits.sum()):
                    # Where memory was short anywhere in the process, what a network has prepared for a size may answer
                    # NaN from then on; compiled anew it does not.
                    _LOG.warning("%s, fold %d: its answer is not finite: compiled anew", model.name, fold)
                    del request, self._compiled[model, fold]
                    request = self._network(model, fold).create_infer_request()
                    logits = _infer(request, array)
                held.add(array.shape)
            except Exception:  # whatever ended it: OpenVINO raises RuntimeError and others
                # A pass that broke off leaves parts of a graph prepared for its size, and others for the size before:
                # the next pass would crash, or answer wrongly. The network is compiled anew when it is next wanted.
                self._compiled.pop((model, fold), None)
                raise
            yield logits

    def _check_room(self, model: Model, array: NDArray[np.float32]) -> None:
        """MemoryError where a pass over an array has no room: OpenVINO then crashes, or answers without a word."""
        width = 2 if self._precision == "bf16" else 4
        need = pass_bytes(math.prod(array.shape[1:]), model.architecture, width)
        free = free_memory()
        if free is not None and free < need + _SPARE:
            raise MemoryError

    def _probabilities(self, logits: NDArray[np.float32], heads: str) -> NDArray[np.float32]:
        return region_probabilities(logits, heads)

    def _to_crop_grid(self, array: NDArray[np.float32], prepared: Preprocessed) -> NDArray[np.float32]:
        return prepared.to_crop_grid(array)

    def _to_device(self, array: NDArray[np.float32], *, exact: bool = False) -> NDArray[np.float32]:  # noqa: ARG002
        return array

    def _to_host(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        return array

    def _zeros(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        return np.zeros(shape, np.float32)

    def _flip(self, array: NDArray[np.float32], axes: tuple[int, ...]) -> NDArray[np.float32]:
        return np.flip(array, axes)

    def _network(self, model: Model, fold: int) -> openvino.CompiledModel:
        if (model, fold) not in self._compiled:
            try:
                graph = self._graph(model, fold)
            except BundleError as error:
                raise BundleError(f"{model.name}, fold {fold}: {error}") from error
            self._compiled[model, fold] = self._compile(graph, self._precision)
        return self._compiled[model, fold]

    def _graph(self, model: Model, fold: int) -> openvino.Model:
        if model.format != "openvino":
            return build_graph(model.architecture, heads_of(model), model.tensors(fold))
        path = model.network_file(fold)
        # A bundle is data from outside: its graph must have our inputs and outputs, and our networks' operations alone.
        try:
            graph = self._core.read_model(path)
        except RuntimeError as error:
            raise BundleError(f"{path.name} cannot be read by OpenVINO {openvino.__version__}") from error
        expected = [[1, len(SEQUENCES), -1, -1, -1], [1, heads_of(model), -1, -1, -1]]
        ports = [*graph.inputs, *graph.outputs]
        found = [[size.get_length() if size.is_static else -1 for size in port.get_partial_shape()] for port in ports]
        if [shape[:2] for shape in found] != [shape[:2] for shape in expected] or found[0] != expected[0]:
            raise BundleError(f"{path.name}: found input and output {found}, expected {expected}")
        foreign = sorted({node.get_type_name() for node in graph.get_ops()} - OPERATIONS)
        if foreign:
            raise BundleError(f"{path.name}: found the operations {', '.join(foreign)}, which are in no network here")
        return graph

    def _compile(self, graph: openvino.Model, precision: str) -> openvino.CompiledModel:
        settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": self._threads,
            "PERFORMANCE_HINT": "LATENCY",
            # A thread tied to a core that others use as well holds all of them up.
            "ENABLE_CPU_PINNING": False,
        }
        return self._core.compile_model(graph, "CPU", settings)

    def _trusts(self, model: Model) -> bool:
        """Whether a model's networks run here, found out with its first fold."""
        if model not in self._trusted:
            try:
                found = self._mismatch(model)
            except (RuntimeError, UnsupportedGraphError) as error:
                found = str(error).partition("\n")[0]
            if found and model.format == "openvino":
                raise BundleError(
                    f"{model.name}: OpenVINO {openvino.__version__} does not run its stored networks: {found}"
                )
            if found:
                _LOG.warning("%s: OpenVINO does not run its networks, torch does instead: %s", model.name, found)
            self._trusted[model] = not found
        return self._trusted[model]

    def _mismatch(self, model: Model) -> str:
        """Reason not to trust a model's networks, or nothing."""
        fold = model.folds[0]
        compiled = self._network(model, fold)
        exact = None if self._precision == "f32" else self._compile(self._graph(model, fold), "f32")
        stride = network_stride(model.architecture)
        for probe in _PROBES:
            sizes = pass_shape([count * step for count, step in zip(probe, stride, strict=True)], model.architecture)
            scan = np.random.default_rng(0).standard_normal((len(SEQUENCES), *sizes), np.float32)
            found = _infer(compiled.create_infer_request(), scan)
            if exact is None:
                reason = "" if np.isfinite(found).all() else "its answers are not finite"
            else:
                reason = mismatch(found, _infer(exact.create_infer_request(), scan), _DISAGREEMENT)
            if reason:
                return reason
        return ""

    def _fallback(self) -> Engine:
        if self._torch is None:
            try:
                from inference.predict.engines.torch_engine import TorchEngine
            except ModuleNotFoundError as error:
                raise DeviceError("OpenVINO cannot run this bundle, and the package torch is not installed") from error
            self._torch = TorchEngine("cpu", threads=self._threads)
        return self._torch


def export_network(
    architecture: Mapping[str, object], heads: int, tensors: Mapping[str, NDArray[np.float32]], path: Path
) -> None:
    """Write a network as OpenVINO IR: `path` (.xml) and its .bin beside it.

    Weights are stored in half precision where that changes none of them, else in single precision. Raises BundleError
    for tensors that do not fit, UnsupportedGraphError for an architecture that has no graph here.
    """
    lossless = all(np.array_equal(array, array.astype(np.float16)) for array in tensors.values())
    openvino.save_model(build_graph(architecture, heads, tensors), path, compress_to_fp16=lossless)


def _infer(request: openvino.InferRequest, array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits (heads, Z, Y, X) of an array (4, Z, Y, X)."""
    request.infer({0: np.ascontiguousarray(array[None], np.float32)}, share_inputs=True)
    logits = request.get_output_tensor(0).data[0]
    if logits.shape[1:] != array.shape[1:]:
        raise MemoryError("OpenVINO found no memory for a pass, and did not say so")
    # Copied, because the request's own buffer is written to by its next pass.
    return np.array(logits, np.float32)
