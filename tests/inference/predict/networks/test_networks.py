"""Networks come from an allow-list, and weights are loaded strictly."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from inference.errors import BundleError
from inference.predict.networks import (
    architecture_name,
    build_network,
    channels_to_voxels,
    deployed_weights,
    load_weights,
    network_stride,
    voxels_to_channels,
)
from tests.inference.predict.conftest import mednext_architecture, random_weights, unet_architecture

RESIDUAL = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
    "arch_kwargs": {
        **{key: value for key, value in unet_architecture()["arch_kwargs"].items() if key != "n_conv_per_stage"},
        "n_blocks_per_stage": [1, 2, 2],
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}
ALL = [unet_architecture(), mednext_architecture(), RESIDUAL]


def changed(architecture: dict[str, object], key: str, value: object) -> dict[str, object]:
    copied = copy.deepcopy(architecture)
    (copied if key in copied else copied["arch_kwargs"])[key] = value
    return copied


def test_equals_nnunets_own_network() -> None:
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    section = unet_architecture()
    theirs = get_network_from_plans(
        section["network_class_name"], section["arch_kwargs"], section["_kw_requires_import"], 4, 3
    )
    ours = build_network(section, 4, 3)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    scan = torch.randn(1, 4, 16, 16, 16)
    assert torch.equal(ours.eval()(scan), theirs.eval()(scan))


@pytest.mark.parametrize("architecture", ALL, ids=architecture_name)
def test_the_stride_is_the_smallest_input(architecture: dict[str, object]) -> None:
    stride = network_stride(architecture)
    size = tuple(2 * step for step in stride)
    network = build_network(architecture, 4, 3).eval()
    assert network(torch.randn(1, 4, *size)).shape == (1, 3, *size)
    with pytest.raises(RuntimeError):
        network(torch.randn(1, 4, size[0] + stride[0] // 2, *size[1:]))


@pytest.mark.parametrize("architecture", ALL, ids=architecture_name)
def test_weights_of_a_trained_network_move_to_a_deployed_one(architecture: dict[str, object]) -> None:
    trained = build_network(architecture, 4, 3, deep_supervision=True).eval()
    with torch.device("meta"):
        deployed = build_network(architecture, 4, 3).eval()
    weights = deployed_weights(deployed, trained.state_dict())
    load_weights(deployed, weights)
    scan = torch.randn(1, 4, 32, 32, 32)
    with torch.no_grad():
        assert torch.equal(deployed(scan), trained(scan)[0])
    assert sum(array.size for array in weights.values()) == sum(value.numel() for value in deployed.parameters())


@pytest.mark.parametrize("architecture", ALL, ids=architecture_name)
@pytest.mark.parametrize("damage", ["missing", "unexpected", "misshapen", "not finite"])
def test_a_wrong_or_missing_tensor_is_refused(architecture: dict[str, object], damage: str) -> None:
    weights = random_weights(architecture, 3, seed=0)
    name = sorted(weights)[3]
    if damage == "missing":
        del weights[name]
    elif damage == "unexpected":
        name = weights_name = "decoder.surprise.weight"
        weights[weights_name] = np.zeros(3, np.float32)
    elif damage == "misshapen":
        weights[name] = np.concatenate([weights[name], weights[name]])
    else:
        weights[name] = np.full_like(weights[name], np.nan)
    with pytest.raises(BundleError, match=name):
        load_weights(build_network(architecture, 4, 3), weights)


def test_a_checkpoint_that_lacks_a_tensor_is_refused() -> None:
    network = build_network(mednext_architecture(), 4, 3)
    state = {name: value for name, value in network.state_dict().items() if name != "stem.bias"}
    with pytest.raises(BundleError, match=r"stem\.bias"):
        deployed_weights(network, state)


@pytest.mark.parametrize(
    ("architecture", "key", "value"),
    [
        (unet_architecture(), "network_class_name", "os.system"),
        (unet_architecture(), "network_class_name", "evil.PlainConvUNet"),
        (unet_architecture(), "conv_op", "torch.nn.Linear"),
        (unet_architecture(), "nonlin", "os.ReLU"),
        (unet_architecture(), "norm_op", "torch.hub.load"),
        (unet_architecture(), "_kw_requires_import", ["n_stages"]),
        (unet_architecture(), "n_stages", 7),
        (unet_architecture(), "kernel_sizes", "three"),
        (unet_architecture(), "nonlin_kwargs", {"slope": 2}),
        (unet_architecture(), "arch_kwargs", None),
        (mednext_architecture(), "variant", "M"),
        (mednext_architecture(), "channels", 0),
        (mednext_architecture(), "blocks", 1),
        (mednext_architecture(), "expansion", [2] * 8),
        (mednext_architecture(), "kernel_size", 4),
        (mednext_architecture(), "kernel_size", 7),
        (mednext_architecture(), "kernel_size", "3"),
        (mednext_architecture(), "arch_kwargs", {"variant": "XXL"}),
    ],
)
def test_what_is_not_on_the_list_is_refused(architecture: dict[str, object], key: str, value: object) -> None:
    architecture = copy.deepcopy(architecture)
    (architecture if key in architecture else architecture["arch_kwargs"])[key] = value
    with pytest.raises(BundleError, match="architecture"):
        build_network(architecture, 4, 3)


def test_published_variants_are_built() -> None:
    with torch.device("meta"):
        network = build_network({"network_class_name": "MedNeXt", "arch_kwargs": {"variant": "B"}}, 4, 3)
    assert network.get_submodule("stem").weight.shape == (32, 4, 1, 1, 1)


def test_strides_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(BundleError, match="strides"):
        network_stride(changed(unet_architecture(), "strides", [[1, 1], [2, 2]]))


def test_shuffled_voxels_come_back_where_they_were():
    x = torch.randn(2, 5, 4, 6, 8)
    folded = voxels_to_channels(x, 2)
    assert folded.shape == (2, 40, 2, 3, 4)
    assert torch.equal(folded[:, 8:16, 1, 2, 3].reshape(2, 2, 2, 2), x[:, 1, 2:4, 4:6, 6:8])
    assert torch.equal(channels_to_voxels(folded, 2), x)


@pytest.mark.parametrize("deep_supervision", [False, True])
def test_a_body_on_a_coarser_grid_labels_every_voxel(deep_supervision):
    size = {"channels": 4, "blocks": [1] * 9, "expansion": [2] * 9}
    section = {"network_class_name": "MedNeXt", "arch_kwargs": size, "shuffle": 2}
    assert network_stride(section) == (32, 32, 32)
    output = build_network(section, 4, 3, deep_supervision=deep_supervision)(torch.zeros(1, 4, 64, 32, 32))
    shapes = [tuple(scale.shape[1:]) for scale in (output if deep_supervision else [output])]
    assert shapes[:2] == [(3, 64, 32, 32), (3, 32, 16, 16)][: len(shapes)]


@pytest.mark.parametrize("factor", [0, 5, "2", True, 1.5])
def test_a_shuffle_that_is_no_small_number_is_refused(factor):
    with pytest.raises(BundleError, match="architecture shuffle: found"):
        network_stride({"network_class_name": "MedNeXt", "arch_kwargs": {"variant": "S"}, "shuffle": factor})
