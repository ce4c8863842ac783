"""Graphs built for OpenVINO equal the torch modules, and take their tensors as strictly."""

from __future__ import annotations

import copy

import numpy as np
import openvino
import pytest
import torch

from inference.errors import BundleError
from inference.predict.engines.openvino_graph import UnsupportedGraphError, build_graph
from inference.predict.networks import build_network, load_weights, network_stride
from tests.inference.predict.conftest import mednext_architecture, random_weights, unet_architecture
from tests.inference.predict.networks.test_networks import RESIDUAL


def unet(**changes: object) -> dict[str, object]:
    section = copy.deepcopy(unet_architecture())
    section["arch_kwargs"].update(changes)
    return section


def mednext(**changes: object) -> dict[str, object]:
    section = copy.deepcopy(mednext_architecture())
    section["arch_kwargs"].update(changes)
    return section


ARCHITECTURES = [
    pytest.param(unet(), id="U-Net"),
    pytest.param(
        unet(
            n_stages=4,
            features_per_stage=[4, 6, 8, 8],
            kernel_sizes=[[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
            strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]],
            n_conv_per_stage=[1, 2, 3, 1],
            n_conv_per_stage_decoder=[1, 2, 1],
            conv_bias=False,
            nonlin="torch.nn.ReLU",
        ),
        id="U-Net, uneven",
    ),
    pytest.param(
        unet(norm_op_kwargs={"eps": 1e-3, "affine": False}, nonlin_kwargs={"negative_slope": 0.2}),
        id="U-Net, plain norm",
    ),
    pytest.param(mednext(), id="MedNeXt"),
    pytest.param(
        mednext(blocks=[1, 2, 1, 2, 1, 1, 2, 1, 2], expansion=[2, 3, 4, 4, 4, 3, 4, 3, 2]), id="MedNeXt, uneven"
    ),
    pytest.param(mednext(kernel_size=5), id="MedNeXt, kernel 5"),
    pytest.param(unet() | {"shuffle": 2}, id="U-Net, coarser body"),
    pytest.param(mednext() | {"shuffle": 2}, id="MedNeXt, coarser body"),
]


def outputs(architecture: dict[str, object], heads: int, scan: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a random network by OpenVINO in float32 and by torch."""
    weights = random_weights(architecture, heads, seed=1)
    network = build_network(architecture, 4, heads).eval()
    load_weights(network, weights)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(build_graph(architecture, heads, weights), "CPU", settings)
    with torch.no_grad():
        return compiled(scan)[0], network(torch.from_numpy(scan)).numpy()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("heads", [3, 4])
def test_equals_the_torch_module(architecture: dict[str, object], heads: int) -> None:
    size = [factor * step for factor, step in zip((2, 3, 2), network_stride(architecture), strict=True)]
    scan = np.random.default_rng(0).standard_normal((1, 4, *size), np.float32)
    found, expected = outputs(architecture, heads, scan)
    assert expected.std() > 0.1
    assert np.abs(found - expected).max() / np.abs(expected).max() < 1e-4


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_voxel_at_the_deepest_level_is_predicted_in_any_precision(axis: int, kernel: int) -> None:
    """In bfloat16 one operation with several outputs a channel reads past its input there."""
    architecture, size = mednext(kernel_size=kernel), [32, 48, 32]
    size[axis] = 16
    graph = build_graph(architecture, 3, random_weights(architecture, 3, seed=1))
    scan = np.random.default_rng(0).standard_normal((1, 4, *size), np.float32)
    exact, found = (
        openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": precision})(scan)[0]
        for precision in ("f32", "bf16")
    )
    assert np.sqrt(np.square(found - exact).mean()) < 0.1 * exact.std()


def test_one_graph_takes_any_size() -> None:
    weights = random_weights(mednext_architecture(), 3, seed=1)
    compiled = openvino.Core().compile_model(build_graph(mednext_architecture(), 3, weights), "CPU")
    for size in ((16, 32, 16), (32, 16, 48)):
        assert compiled(np.zeros((1, 4, *size), np.float32))[0].shape == (1, 3, *size)


@pytest.mark.parametrize("kernel", [3, 5])
def test_phases_are_a_transposed_convolution(kernel: int) -> None:
    """The rewriting alone, along one axis: what lies between two samples comes from both."""
    from inference.predict.engines.openvino_layers import phases

    table, before = phases(kernel)
    rng = np.random.default_rng(0)
    weights, signal = rng.normal(size=kernel), rng.normal(size=9)
    expected = torch.nn.functional.conv_transpose1d(
        torch.from_numpy(signal)[None, None], torch.from_numpy(weights)[None, None], stride=2, padding=kernel // 2
    )[0, 0].numpy()
    padded = np.pad(signal, (before, table.shape[1] - 1 - before))
    both = [np.correlate(padded, table[parity] @ weights, mode="valid") for parity in (0, 1)]
    assert np.stack(both, axis=1).ravel()[:-1] == pytest.approx(expected)


@pytest.mark.parametrize("architecture", [unet(), mednext()], ids=["U-Net", "MedNeXt"])
@pytest.mark.parametrize("damage", ["missing", "unexpected", "misshapen", "not finite"])
def test_a_wrong_or_missing_tensor_is_refused(architecture: dict[str, object], damage: str) -> None:
    weights = random_weights(architecture, 3, seed=0)
    for name in (min(weights), max(weights)):
        damaged = dict(weights)
        culprit = name
        if damage == "missing":
            del damaged[name]
        elif damage == "unexpected":
            culprit = "decoder.surprise.weight"
            damaged[culprit] = np.zeros(3, np.float32)
        elif damage == "misshapen":
            damaged[name] = np.concatenate([weights[name], weights[name]])
        else:
            damaged[name] = np.full_like(weights[name], np.inf)
        with pytest.raises(BundleError, match=culprit):
            build_graph(architecture, 3, damaged)


@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(RESIDUAL, id="residual encoder"),
        pytest.param(unet(norm_op="torch.nn.BatchNorm3d"), id="batch norm"),
        pytest.param(unet(nonlin="torch.nn.GELU"), id="GELU"),
        pytest.param(unet(nonlin_first=True), id="norm after the nonlinearity"),
        pytest.param(unet(strides=[1, 2, 2]), id="one stride per stage"),
    ],
)
def test_what_has_no_graph_says_so(architecture: dict[str, object]) -> None:
    with pytest.raises(UnsupportedGraphError):
        build_graph(architecture, 3, random_weights(architecture, 3, seed=0) if "GELU" not in str(architecture) else {})


def test_lists_of_different_length_are_refused() -> None:
    with pytest.raises(BundleError, match="one entry per stage"):
        build_graph(unet(n_stages=4), 3, {})
