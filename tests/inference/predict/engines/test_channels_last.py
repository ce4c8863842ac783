"""Channels-last views of networks against the networks, and the CUDA kernels against torch: compiled for the CPU."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from inference.predict.engines import channels_last_kernels
from inference.predict.engines.channels_last import channels_last
from inference.predict.engines.channels_last_kernels import (
    RUN,
    SOURCE,
    compiled,
    depthwise,
    depthwise_transposed,
    normalise_,
    sums_of,
)
from inference.predict.networks import build_network
from inference.predict.networks.mednext import MedNeXt
from inference.predict.networks.sizes import VARIANTS, MedNeXtSize
from tests.inference.predict.conftest import unet_architecture

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

PRELUDE = """
#include <cstring>
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
struct Index { unsigned x, y, z; };
static Index gridDim, blockDim, blockIdx, threadIdx;
static float to_float(unsigned short bits) { _Float16 half; std::memcpy(&half, &bits, 2); return (float)half; }
static unsigned short to_half(float value) {
    _Float16 half = (_Float16)value;
    unsigned short bits;
    std::memcpy(&bits, &half, 2);
    return bits;
}
"""
LAUNCH = """
#define LAUNCH(name, parameters, arguments) \\
    extern "C" void launch_##name parameters { \\
        gridDim = {blocks, batch, 1}; \\
        blockDim = {256, 1, 1}; \\
        for (blockIdx.y = 0; blockIdx.y < batch; blockIdx.y++) \\
            for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++) \\
                for (threadIdx.x = 0; threadIdx.x < 256; threadIdx.x++) name arguments; \\
    }
#define CONVOLVE(name) \\
    LAUNCH(name, (unsigned blocks, unsigned batch, const unsigned* x, const unsigned* weight, unsigned* y, \\
        float* sums, int pairs, int Z, int Y, int X, int out_z, int out_y, int out_x, int depth), \\
        (x, weight, y, sums, pairs, Z, Y, X, out_z, out_y, out_x, depth))
CONVOLVE(depthwise)
CONVOLVE(depthwise_strided)
CONVOLVE(depthwise_transposed)
LAUNCH(statistics, (unsigned blocks, unsigned batch, const unsigned* x, float* sums, int pairs, int voxels),
    (x, sums, pairs, voxels))
LAUNCH(normalise, (unsigned blocks, unsigned batch, unsigned* x, const float* scale, const float* shift,
    int pairs, int voxels, float slope), (x, scale, shift, pairs, voxels, slope))
"""


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[int, ctypes.CDLL]:
    """The kernels as C++, by kernel size: blocks and threads one after the other."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    folder: Path = tmp_path_factory.mktemp("kernels")
    (folder / "kernels.cpp").write_text(PRELUDE + SOURCE.read_text() + LAUNCH)
    for size in (3, 5):
        options = [
            "-std=c++17",
            "-O1",
            "-fwrapv",
            "-shared",
            "-fPIC",
            f"-DK={size}",
            f"-DRUN={RUN}",
            "-o",
            f"kernels{size}.so",
        ]
        subprocess.run([compiler, *options, "kernels.cpp"], cwd=folder, check=True)
    return {size: ctypes.CDLL(str(folder / f"kernels{size}.so")) for size in (3, 5)}


@pytest.fixture(params=[1, 9], ids=["few blocks", "more blocks"])
def kernels(
    request: pytest.FixtureRequest, libraries: dict[int, ctypes.CDLL], monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Kernels instead of torch for half precision on the CPU. The names of those that ran."""
    ran: list[str] = []

    def launch(name: str, kernel: int, blocks: int, arguments: list[torch.Tensor | int | float]) -> None:
        assert all(a.is_contiguous() for a in arguments if isinstance(a, torch.Tensor))
        libraries[kernel][f"launch_{name}"](blocks, len(arguments[0]), *map(channels_last_kernels._as_c, arguments))
        ran.append(name)

    new_empty = torch.Tensor.new_empty
    # What a kernel leaves out is seen.
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda x, *size, **as_: new_empty(x, *size, **as_).fill_(torch.nan))
    monkeypatch.setattr(channels_last_kernels, "_by_kernels", lambda x: x.dtype is torch.float16)
    monkeypatch.setattr(channels_last_kernels, "_launch", launch)
    monkeypatch.setattr(channels_last_kernels, "_most_blocks", lambda _: request.param)
    return ran


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape).half()


SHAPES = [
    (1, 1, 1, 1, 2),
    (2, 3, 5, 7, 6),
    (1, 4, 9, 8, 32),
    (2, 6, 4, 19, 4),
    (1, 19, 3, 5, 64),
    (1, 5, 2, 16, 36),
    (1, 1, 2, 3, 516),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize(
    ("convolve", "name"),
    [
        (depthwise, "depthwise"),
        (lambda x, weight: depthwise(x, weight, stride=2), "depthwise_strided"),
        (depthwise_transposed, "depthwise_transposed"),
    ],
)
def test_kernels_convolve_and_add_up_as_torch_does(
    convolve: Callable, name: str, size: int, shape: tuple[int, ...], kernels: list[str]
) -> None:
    torch.manual_seed(0)
    x, weight = random(*shape), random(size, size, size, shape[4])
    found, sums = convolve(x, weight)
    assert kernels == [name]
    expected, expected_sums = convolve(x.float(), weight.float())
    assert kernels == [name], "float32 is torch's"
    assert found.shape == expected.shape
    torch.testing.assert_close(found.float(), expected, atol=1e-2, rtol=1e-3)
    torch.testing.assert_close(sums, expected_sums, atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize("size", [3, 5])
def test_convolutions_in_torch_are_those_of_torchs_layers(size: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 4, 5, 7)
    for layer, convolve in (
        (nn.Conv3d(6, 6, size, padding=size // 2, groups=6, bias=False), depthwise),
        (nn.ConvTranspose3d(6, 6, size, stride=2, padding=size // 2, groups=6, bias=False), depthwise_transposed),
    ):
        found, sums = convolve(x.permute(0, 2, 3, 4, 1).contiguous(), layer.weight.data[:, 0].permute(1, 2, 3, 0))
        expected = layer(x).detach()
        torch.testing.assert_close(found.permute(0, 4, 1, 2, 3), expected)
        torch.testing.assert_close(sums, torch.stack([expected.sum((2, 3, 4)), expected.square().sum((2, 3, 4))], 1))


@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_normalise_as_torch_does(shape: tuple[int, ...], kernels: list[str]) -> None:
    torch.manual_seed(0)
    x = random(*shape)
    torch.testing.assert_close(sums_of(x), sums_of(x.float()), atol=1e-3, rtol=1e-4)
    scale, shift = torch.randn(2, shape[0], shape[4])
    values = x.float() * scale[:, None, None, None] + shift[:, None, None, None]
    found = normalise_(x, scale, shift, 0.01)
    assert found is x
    assert kernels == ["statistics", "normalise"]
    torch.testing.assert_close(found.float(), functional.leaky_relu(values, 0.01), atol=1e-3, rtol=1e-3)


def test_what_the_driver_says_is_told_apart() -> None:
    channels_last_kernels._check(0)
    with pytest.raises(torch.OutOfMemoryError):
        channels_last_kernels._check(2)
    with pytest.raises(RuntimeError, match="driver error 700"):
        channels_last_kernels._check(700)


@pytest.mark.parametrize("architecture", ["sm_75", "sm_90"])
@pytest.mark.parametrize("size", [3, 5])
def test_kernels_compile_for_gpus(size: int, architecture: str) -> None:
    try:
        channels_last_kernels._compiler()
    except OSError as error:
        pytest.skip(f"needs NVRTC: {error}")
    assert compiled(size, architecture).startswith(b"\x7fELF")
    with pytest.raises(RuntimeError, match="do not compile for sm_1"):
        compiled(size, "sm_1")


def with_random_norms(network: nn.Module) -> nn.Module:
    """Every number of a network away from what it is when training begins, so that none can go unnoticed."""
    for name, parameter in network.named_parameters():
        if "norm" in name or name.endswith("bias"):
            parameter.data += 0.3 * torch.randn_like(parameter)
    return network.eval().requires_grad_(False)


def make_mednext(channels: int = 6, kernel_size: int = 3, heads: int = 3) -> nn.Module:
    torch.manual_seed(0)
    size = MedNeXtSize(channels, (1, 2, 1, 1, 2, 1, 1, 1, 2), (2, 3, 2, 2, 4, 2, 2, 3, 2))
    return with_random_norms(MedNeXt(size, kernel_size, 4, heads))


def make_unet(features: tuple[int, ...] = (6, 10, 12), **changes: object) -> nn.Module:
    torch.manual_seed(0)
    architecture = unet_architecture(features)
    architecture["arch_kwargs"] |= changes
    return with_random_norms(build_network(architecture, 4, 3))


ANISOTROPIC = {
    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 1, 2]],
}
NETWORKS = {
    "MedNeXt": make_mednext,
    "MedNeXt of kernel 5": lambda: make_mednext(4, 5, heads=4),
    "U-Net": make_unet,
    "U-Net without biases": lambda: make_unet(conv_bias=False),
    "anisotropic U-Net": lambda: make_unet(**ANISOTROPIC),
}
networks = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())


@networks
@pytest.mark.parametrize("shape", [(2, 4, 16, 32, 48), (1, 4, 32, 32, 32)])
def test_channels_last_networks_are_the_networks(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    network = make()
    rearranged = channels_last(network, torch.float32)
    x = torch.randn(shape)
    before = x.clone()
    expected = network(x)
    for _ in range(2):
        found = rearranged(x)
        assert found.shape == expected.shape
        assert expected.std() > 0.05, "the comparison must not be of constants"
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(x, before)


@networks
def test_channels_last_networks_run_on_the_kernels(make: Callable[[], nn.Module], kernels: list[str]) -> None:
    network = make()
    rearranged = channels_last(network)
    x = torch.randn(2, 4, 16, 32, 48)
    with torch.autocast("cpu", torch.bfloat16):
        logits = rearranged(x)
    assert logits.dtype is torch.float16
    assert len(set(kernels)) > 1
    difference = (logits.float().sigmoid() - network(x).sigmoid()).abs()
    assert difference.mean() < 0.003
    assert difference.max() < 0.05


@networks
def test_channels_last_networks_hold_half_the_bytes(make: Callable[[], nn.Module]) -> None:
    network = make()
    rearranged = channels_last(network)
    assert not list(rearranged.parameters())
    held = sum(buffer.nbytes for buffer in rearranged.buffers())
    assert held < 0.6 * sum(parameter.nbytes for parameter in network.parameters())
    assert all(not buffer.requires_grad for buffer in rearranged.buffers())


def residual_unet() -> nn.Module:
    architecture = unet_architecture()
    arguments = architecture["arch_kwargs"]
    arguments["n_blocks_per_stage"] = arguments.pop("n_conv_per_stage")
    architecture["network_class_name"] = "ResidualEncoderUNet"
    return build_network(architecture, 4, 3)


@pytest.mark.parametrize(
    "make",
    [
        residual_unet,
        lambda: nn.Conv3d(4, 3, 1),
        lambda: make_mednext(channels=5),
        lambda: MedNeXt(VARIANTS["S"], 3, 4, 3, deep_supervision=True),
        lambda: build_network(unet_architecture((4, 7, 8)), 4, 3),
        lambda: build_network(unet_architecture(), 4, 3, deep_supervision=True),
        lambda: make_unet(nonlin="torch.nn.ReLU"),
        lambda: make_unet(nonlin_first=True),
        lambda: make_unet(norm_op="torch.nn.BatchNorm3d"),
        lambda: make_unet(norm_op_kwargs={"affine": False}),
        lambda: make_unet(dropout_op="torch.nn.Dropout3d", dropout_op_kwargs={"p": 0.1}),
    ],
)
def test_what_has_no_channels_last_view(make: Callable[[], nn.Module]) -> None:
    assert channels_last(make()) is None


@needs_gpu
@pytest.mark.parametrize(
    "make",
    [
        lambda: make_mednext(8),
        lambda: make_mednext(16, 5, heads=4),
        lambda: make_unet((8, 24, 32)),
        lambda: make_unet((16, 16, 40), **ANISOTROPIC),
    ],
    ids=["MedNeXt", "MedNeXt of kernel 5", "U-Net", "anisotropic U-Net"],
)
def test_channels_last_networks_agree_on_a_gpu(make: Callable[[], nn.Module]) -> None:
    network = make().cuda()
    rearranged = channels_last(network).cuda()
    x = torch.randn(2, 4, 48, 32, 64, device="cuda")
    difference = (rearranged(x).float().sigmoid() - network(x).sigmoid()).abs()
    assert difference.mean() < 0.01
    assert difference.max() < 0.1


@needs_gpu
@pytest.mark.parametrize("shape", [*SHAPES, (3, 40, 33, 65, 64)])
@pytest.mark.parametrize("size", [3, 5])
def test_kernels_on_a_gpu(size: int, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, weight = random(*shape).cuda(), random(size, size, size, shape[4]).cuda()
    for convolve in (depthwise, lambda x, weight: depthwise(x, weight, stride=2), depthwise_transposed):
        found, sums = convolve(x, weight)
        expected, expected_sums = convolve(x.cpu().float(), weight.cpu().float())
        torch.testing.assert_close(found.cpu().float(), expected, atol=1e-2, rtol=1e-3)
        torch.testing.assert_close(sums.cpu(), expected_sums, atol=0.1, rtol=1e-3)
    torch.testing.assert_close(sums_of(x).cpu(), sums_of(x.cpu().float()), atol=1e-2, rtol=1e-3)
    scale, shift = torch.randn(2, shape[0], shape[4])
    found = normalise_(x.clone(), scale.cuda(), shift.cuda(), 0.01)
    expected = normalise_(x.cpu().float(), scale, shift, 0.01)
    torch.testing.assert_close(found.cpu().float(), expected, atol=1e-3, rtol=1e-3)
