"""Networks on OpenVINO: the fastest way on a CPU, and one that needs no torch.

A compiled network takes scans of any size, and keeps what it prepares for a size. Its memory for activations is given
back after every use.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import openvino
from numpy.typing import NDArray

from inference.errors import BundleError, DeviceError
from inference.labels import SEQUENCES, regions_from_label_probabilities
from inference.machine import available_threads
from inference.predict.engines import (
    Advance,
    Engine,
    Heed,
    NetworkSource,
    doubt_of,
    heads_of,
    pass_multiple,
)
from inference.predict.engines.openvino_graph import OPERATIONS, UnsupportedGraphError, build_graph
from inference.predict.preprocess import Box, Preprocessed, Triple, read_plan, to_crop_grid
from inference.predict.tiling import MIRRORINGS, gaussian, next_multiple, padding, windows
from inference.settings import Profile

_LOG = logging.getLogger(__name__)
_PROBE: Final = 32
"""Edge of the cube on which the first network of each model is compared with the reference."""
_DISAGREEMENT: Final = 0.1
"""Root mean square difference of logits, by their standard deviation, from which on a network is not trusted; bfloat16
alone makes 0.01 to 0.025."""

Forward = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Logits (heads, Z, Y, X) of an array (4, Z, Y, X)."""


class OpenVinoEngine:
    """Runs networks with OpenVINO on the CPU, in bfloat16 where the processor has it.

    The first network of a model is tried on a small cube, and compared with the same graph in float32, or with torch
    where `against_torch` asks for it (which loads torch). A model that cannot be compiled or that disagrees is left to
    torch.
    """

    name = "openvino"
    device = "cpu"

    def __init__(
        self, *, threads: int | None = None, precision: str | None = None, against_torch: bool = False
    ) -> None:
        self._core = openvino.Core()
        capabilities = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self._precision = precision or ("bf16" if "BF16" in capabilities else "f32")
        self._threads = threads or available_threads()
        self._against_torch = against_torch
        self._compiled: dict[tuple[int, int], tuple[NetworkSource, openvino.CompiledModel]] = {}
        self._trusted: dict[int, tuple[NetworkSource, bool]] = {}
        self._torch: Engine | None = None

    @property
    def description(self) -> str:
        """Library, version, device and precision, and which models were left to torch."""
        left = sorted(model.name for model, trusted in self._trusted.values() if not trusted)
        instead = f"; {', '.join(left)}: {self._torch.description}" if self._torch and left else ""
        precision = {"bf16": "bfloat16", "f32": "float32"}[self._precision]
        return f"openvino {openvino.__version__.partition('-')[0]} cpu {precision}{instead}"

    def load(self, model: NetworkSource) -> None:
        """As :class:`inference.predict.engines.Engine` says."""
        read_plan(model.plans)
        if not self._trusts(model):
            self._fallback().load(model)
            return
        for fold in model.folds:
            self._network(model, fold)

    def mean_over_folds(
        self,
        model: NetworkSource,
        prepared: Preprocessed,
        profile: Profile,
        advance: Advance,
        heed: Heed | None = None,
    ) -> NDArray[np.float32]:
        """As :class:`inference.predict.engines.Engine` says."""
        if not self._trusts(model):
            return self._fallback().mean_over_folds(model, prepared, profile, advance, heed)
        total: NDArray[np.float32] | None = None
        for fold in model.folds:
            found = self._fold(model, fold, prepared, profile, advance)
            if heed is not None:
                heed(found if profile is Profile.PAPER else to_crop_grid(found, prepared))
            total = found if total is None else np.add(total, found, out=total)
        assert total is not None, "a model has at least one fold"
        mean = total / np.float32(len(model.folds))
        return mean if profile is Profile.PAPER else to_crop_grid(mean, prepared)

    def _fold(
        self, model: NetworkSource, fold: int, prepared: Preprocessed, profile: Profile, advance: Advance
    ) -> NDArray[np.float32]:
        """Region probabilities of one fold: on the crop with `paper`, on the network's grid with `fast`."""
        compiled = self._network(model, fold)
        forward = _forward_of(compiled, advance)
        if profile is Profile.PAPER:
            logits = to_crop_grid(_tiled(forward, prepared.array, prepared.plan.patch), prepared)
        else:
            logits = _whole(forward, prepared.array, pass_multiple(model))
        # A request holds the network's buffers; only without one can they be given back.
        del forward
        compiled.release_memory()
        return region_probabilities(logits, model.heads)

    def _network(self, model: NetworkSource, fold: int) -> openvino.CompiledModel:
        # The model is kept beside its network, so that no other object can take over its id.
        key = (id(model), fold)
        if key not in self._compiled:
            try:
                graph = self._graph(model, fold)
            except BundleError as error:
                raise BundleError(f"{model.name}, fold {fold}: {error}") from error
            self._compiled[key] = model, self._compile(graph, self._precision)
        return self._compiled[key][1]

    def _graph(self, model: NetworkSource, fold: int) -> openvino.Model:
        if model.format != "openvino":
            return build_graph(model.architecture, heads_of(model), model.tensors(fold))
        path = model.network_file(fold)
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

    def _trusts(self, model: NetworkSource) -> bool:
        """Whether a model's networks run here, found out with its first fold."""
        if id(model) not in self._trusted:
            try:
                doubt = self._doubt(model)
            except (RuntimeError, UnsupportedGraphError) as error:
                doubt = str(error).partition("\n")[0]
            if doubt and model.format == "openvino":
                raise BundleError(
                    f"{model.name}: OpenVINO {openvino.__version__} does not run its stored networks: {doubt}"
                )
            if doubt:
                _LOG.warning("%s: OpenVINO does not run its networks, torch does instead: %s", model.name, doubt)
            self._trusted[id(model)] = model, not doubt
        return self._trusted[id(model)][1]

    def _doubt(self, model: NetworkSource) -> str:
        """Why a model's networks cannot be trusted, or nothing."""
        fold = model.folds[0]
        shape = (len(SEQUENCES), *next_multiple([_PROBE] * 3, pass_multiple(model)))
        cube = np.random.default_rng(0).standard_normal(shape, np.float32)
        found = _forward_of(self._network(model, fold))(cube)
        if self._against_torch and model.format == "safetensors":
            expected = _torch_logits(model, fold, cube)
        elif self._precision != "f32":
            expected = _forward_of(self._compile(self._graph(model, fold), "f32"))(cube)
        else:
            return "" if np.isfinite(found).all() else "its answers are not finite"
        return doubt_of(found, expected, _DISAGREEMENT)

    def _fallback(self) -> Engine:
        if self._torch is None:
            try:
                from inference.predict.engines.torch_engine import TorchEngine
            except ImportError as error:
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


def region_probabilities(logits: NDArray[np.float32], heads: str) -> NDArray[np.float32]:
    """Probabilities (3, ...) of WT, TC, ET from the logits of region heads (3, ...) or label heads (4, ...)."""
    if heads == "regions":
        # By tanh, which does not overflow.
        probabilities: NDArray[np.float32] = 0.5 * (1 + np.tanh(0.5 * logits))
        return probabilities
    powers = np.exp(logits - logits.max(axis=0))
    return regions_from_label_probabilities(powers / powers.sum(axis=0)).astype(np.float32, copy=False)


def _forward_of(compiled: openvino.CompiledModel, advance: Advance | None = None) -> Forward:
    request = compiled.create_infer_request()

    def forward(array: NDArray[np.float32]) -> NDArray[np.float32]:
        request.infer({0: np.ascontiguousarray(array[None], np.float32)}, share_inputs=True)
        if advance is not None:
            advance()
        # Copied, because the request's own buffer is written to by its next pass.
        return np.array(request.get_output_tensor(0).data[0], np.float32)

    return forward


def _whole(forward: Forward, array: NDArray[np.float32], multiple: Triple) -> NDArray[np.float32]:
    """Logits (heads, Z, Y, X) of one pass over an array (4, Z, Y, X), padded with zeros to a multiple."""
    padded, box = _pad(array, next_multiple(array.shape[1:], multiple))
    return _inside(forward(padded), box)


def _tiled(forward: Forward, array: NDArray[np.float32], patch: Triple) -> NDArray[np.float32]:
    """Logits (heads, Z, Y, X) of an array (4, Z, Y, X) by tiles and mirrorings."""
    array, box = _pad(array, patch)
    weights = gaussian(patch)
    weight = np.zeros(array.shape[1:], np.float32)
    total: NDArray[np.float32] | None = None
    for tile in windows(array.shape[1:], patch):
        piece = _inside(array, tile)
        logits = np.sum([np.flip(forward(np.flip(piece, axes)), axes) for axes in MIRRORINGS], axis=0)
        if total is None:
            total = np.zeros((len(logits), *array.shape[1:]), np.float32)
        _inside(total, tile)[:] += logits * weights
        _inside(weight[None], tile)[0] += weights
    assert total is not None, "there is at least one tile"
    return _inside(total / (weight * len(MIRRORINGS)), box)


def _torch_logits(model: NetworkSource, fold: int, array: NDArray[np.float32]) -> NDArray[np.float32]:
    from inference.predict.engines.torch_engine import TorchEngine

    return TorchEngine("cpu").logits(model, fold, array)


def _pad(array: NDArray[np.float32], least: Sequence[int]) -> tuple[NDArray[np.float32], Box]:
    """An array (C, Z, Y, X) with zeros around it, and where it lies in that."""
    pads = padding(array.shape[1:], least)
    (z, y, x) = ((before, before + size) for (before, _), size in zip(pads, array.shape[1:], strict=True))
    return np.pad(array, [(0, 0), *pads]), (z, y, x)


def _inside(array: NDArray[np.float32], box: Box) -> NDArray[np.float32]:
    """The part of an array (C, Z, Y, X) that lies in a box, as a view."""
    (z0, z1), (y0, y1), (x0, x1) = box
    return array[:, z0:z1, y0:y1, x0:x1]
