"""MedNeXt v1 gives the reference implementation's numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from inference.predict.networks.mednext import ChannelNorm, MedNeXt
from inference.predict.networks.sizes import VARIANTS, MedNeXtSize

GOLDEN = Path(__file__).resolve().parents[3] / "golden"


@pytest.fixture(scope="module")
def facts() -> dict[str, dict[str, object]]:
    return json.loads((GOLDEN / "mednext_v1.json").read_text(encoding="utf-8"))


def golden_state(names_and_shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """The fixed weights that the golden outputs were computed with."""
    state = {}
    for index, name in enumerate(sorted(names_and_shapes)):
        shape = tuple(names_and_shapes[name])
        count = int(np.prod(shape))
        wave = np.sin(0.7 * np.arange(count) + 0.1 * index)
        if len(shape) > 1:
            wave = wave * np.sqrt(1.5 / (count / shape[0]))
        else:
            wave = 1 + 0.1 * wave if name.endswith("norm.weight") else 0.1 * wave
        state[name] = torch.from_numpy(wave.reshape(shape).astype(np.float32))
    return state


def golden_input() -> torch.Tensor:
    steps = np.arange(4 * 32**3, dtype=np.float64)
    wave = np.cos(0.013 * steps).astype(np.float32) + (0.3 * np.sin(1.7 * steps)).astype(np.float32)
    return torch.from_numpy(wave.reshape(1, 4, 32, 32, 32))


@pytest.mark.parametrize("variant", ["S", "M"])
def test_reproduces_the_reference(variant: str, facts: dict[str, dict[str, object]]) -> None:
    network = MedNeXt(VARIANTS[variant], 3, 4, 3, deep_supervision=True).eval()
    table = facts[f"{variant}_k3"]
    assert {name: list(tensor.shape) for name, tensor in network.state_dict().items()} == table["state_dict"]
    network.load_state_dict(golden_state(table["state_dict"]), strict=True)
    with torch.no_grad():
        outputs = network(golden_input())
    expected = np.load(GOLDEN / "mednext_v1.npz")
    for scale, stride in enumerate((4, 2, 1, 1, 1)):
        found = outputs[scale][0, :, ::stride, ::stride, ::stride].numpy()
        wanted = expected[f"{variant}_k3_out{scale}"]
        assert np.abs(found - wanted).max() / np.abs(wanted).max() < 1e-4


@pytest.mark.parametrize("variant", ["S", "M"])
def test_parameter_counts(variant: str, facts: dict[str, dict[str, object]]) -> None:
    for deep, key in ((False, "parameters"), (True, "parameters_with_deep_supervision")):
        network = MedNeXt(VARIANTS[variant], 3, 4, 3, deep_supervision=deep)
        assert sum(parameter.numel() for parameter in network.parameters()) == facts[f"{variant}_k3"][key]


def test_deep_supervision_leaves_the_full_resolution_alone() -> None:
    size = MedNeXtSize(4, (1,) * 9, (2,) * 9)
    deep = MedNeXt(size, 3, 4, 3, deep_supervision=True).eval()
    plain = MedNeXt(size, 3, 4, 3).eval()
    plain.load_state_dict({name: value for name, value in deep.state_dict().items() if name in plain.state_dict()})
    scan = torch.randn(1, 4, 32, 16, 48)
    with torch.no_grad():
        outputs, logits = deep(scan), plain(scan)
    assert torch.equal(outputs[0], logits)
    assert [tuple(output.shape[2:]) for output in outputs[:2]] == [(32, 16, 48), (16, 8, 24)]


def test_kernel_of_five() -> None:
    network = MedNeXt(MedNeXtSize(4, (1,) * 9, (2,) * 9), 5, 4, 3)
    assert network.get_submodule("enc_block_0.0.conv1").weight.shape == (4, 1, 5, 5, 5)
    assert network(torch.randn(1, 4, 16, 16, 32)).shape == (1, 3, 16, 16, 32)


def test_a_size_needs_nine_stages() -> None:
    with pytest.raises(ValueError, match="9 stages"):
        MedNeXtSize(16, (1,) * 8, (2,) * 9)


def test_group_norm_of_single_channels_is_instance_norm() -> None:
    torch.manual_seed(0)
    norm = ChannelNorm(6)
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    array = 5 + 3 * torch.randn(2, 6, 7, 5, 4)
    with torch.no_grad():
        expected = torch.nn.functional.group_norm(array, 6, norm.weight, norm.bias, norm.eps)
        assert torch.equal(norm(array), expected), "on a CPU it is what the reference does"
        assert (norm.as_instance_norm(array) - expected).abs().max() < 1e-5


def test_autocast_still_takes_group_norm_to_float32_and_leaves_instance_norm() -> None:
    """Why there is another norm on CUDA: without this reason it can go."""
    assert torch._C._dispatch_has_kernel_for_dispatch_key("aten::group_norm", "AutocastCUDA")
    assert not torch._C._dispatch_has_kernel_for_dispatch_key("aten::instance_norm", "AutocastCUDA")
