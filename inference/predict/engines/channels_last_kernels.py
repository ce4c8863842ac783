"""Operations of channels-last networks that torch is slow at: CUDA kernels of our own, and the same in plain torch.

Activations are (batch, Z, Y, X, channels), contiguous, with an even number of channels. On CUDA in half precision each
function here runs a kernel, everywhere else plain torch. Kernels take two channels at a time and add in float32. They
are compiled when they are first used, by the NVRTC library that comes with torch.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

# Threads of a block, as `__launch_bounds__` in the kernels' source says.
_THREADS: Final = 256
# Eight of 256 threads are the 2048 that a multiprocessor takes at most.
_BLOCKS_PER_PROCESSOR: Final = 8
# CUDA_ERROR_OUT_OF_MEMORY of the driver's statuses.
_OUT_OF_MEMORY: Final = 2
RUN: Final = 8
"""Outputs along X of one thread of a convolution: even."""
SOURCE: Final = Path(__file__).with_name("channels_last.cu")
"""CUDA C of all kernels, for the kernel size and the run that the macros K and RUN name."""


def depthwise(x: Tensor, weight: Tensor, stride: int = 1) -> tuple[Tensor, Tensor]:
    """A depthwise convolution, and its sums.

    Takes (batch, Z, Y, X, channels), a weight (k, k, k, channels) with k 3 or 5, and stride 1 or 2. Returns
    (batch, ceil(Z / stride), ..., channels), and in float32 (batch, 2, channels): the sums of values and of squares.
    """
    kernel, channels = weight.shape[0], weight.shape[3]
    if _by_kernels(x):
        if stride == 2:
            return _convolve("depthwise_strided", x, weight, [(size + 1) // 2 for size in x.shape[1:4]])
        return _convolve("depthwise", x, weight, list(x.shape[1:4]))
    filters = weight.permute(3, 0, 1, 2)[:, None]
    y = functional.conv3d(_channels_first(x), filters, None, stride, kernel // 2, groups=channels)
    y = _channels_last(y)
    return y, sums_of(y)


def depthwise_transposed(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """A transposed depthwise convolution of stride 2, and its sums.

    Takes (batch, Z, Y, X, channels) and a weight (k, k, k, channels) with k 3 or 5. Returns
    (batch, 2Z - 1, 2Y - 1, 2X - 1, channels), and sums as :func:`depthwise` does.
    """
    kernel, channels = weight.shape[0], weight.shape[3]
    if _by_kernels(x):
        return _convolve("depthwise_transposed", x, weight, [2 * size - 1 for size in x.shape[1:4]])
    filters = weight.permute(3, 0, 1, 2)[:, None]
    y = functional.conv_transpose3d(_channels_first(x), filters, None, 2, kernel // 2, groups=channels)
    y = _channels_last(y)
    return y, sums_of(y)


def sums_of(x: Tensor) -> Tensor:
    """Sums (batch, 2, channels), in float32, of (batch, Z, Y, X, channels): of its values, and of their squares."""
    if _by_kernels(x):
        voxels, pairs = x[0, ..., 0].numel(), x.shape[4] // 2
        blocks = _blocks(x, voxels)
        sums = _room_for_sums(x, blocks)
        # This kernel is the same for both kernel sizes; so is `normalise`.
        _launch("statistics", 3, blocks, [x, sums, pairs, voxels])
        return sums.sum(1)
    values = x.flatten(1, 3).float()
    return torch.stack([values.sum(1), values.square().sum(1)], 1)


def normalise_(x: Tensor, scale: Tensor, shift: Tensor, slope: float) -> Tensor:
    """In place: a leaky ReLU of x (batch, Z, Y, X, channels) by scale plus shift (batch, channels), both float32."""
    if _by_kernels(x):
        voxels, pairs = x[0, ..., 0].numel(), x.shape[4] // 2
        scale, shift = scale.contiguous(), shift.contiguous()
        _launch("normalise", 3, _blocks(x, voxels), [x, scale, shift, pairs, voxels, slope])
        return x
    x.mul_(scale[:, None, None, None]).add_(shift[:, None, None, None])
    return functional.leaky_relu_(x, slope)


def _by_kernels(x: Tensor) -> bool:
    return x.is_cuda and x.dtype is torch.float16


def _channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 4, 1, 2, 3)


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 4, 1).contiguous()


def _room_for_sums(x: Tensor, blocks: int) -> Tensor:
    """Room for the sums of a kernel of so many blocks: (batch, workers, 2, channels)."""
    return x.new_empty((len(x), blocks * _THREADS // (x.shape[4] // 2), 2, x.shape[4]), dtype=torch.float32)


def _convolve(name: str, x: Tensor, weight: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Output (batch, *sizes, channels) and sums of one of the convolutions."""
    y, pairs = x.new_empty((len(x), *sizes, x.shape[4])), x.shape[4] // 2
    columns = 4 * -(-sizes[2] // RUN) * -(-sizes[1] // 4)
    depth = _depth(x, columns, sizes[0]) if name == "depthwise" else 1
    blocks = _blocks(x, columns * -(-sizes[0] // depth))
    sums = _room_for_sums(x, blocks)
    _launch(name, weight.shape[0], blocks, [x, weight, y, sums, pairs, *x.shape[1:4], *sizes, depth])
    return y, sums.sum(1)


def _depth(x: Tensor, columns: int, planes: int) -> int:
    """Planes that one thread goes through: as many as leave something to do for half of all blocks."""
    enough = _most_blocks(x.device) * _THREADS // 2
    threads = len(x) * x.shape[4] // 2 * columns
    # A deeper run reads fewer planes twice: K - 1 of them at its ends.
    return next((depth for depth in (16, 8, 4, 2) if threads * -(-planes // depth) >= enough), 1)


def _launch(name: str, kernel: int, blocks: int, arguments: list[Tensor | int | float]) -> None:
    """Start a kernel on the current stream, with so many blocks per sample."""
    x = arguments[0]
    assert isinstance(x, Tensor), "the first argument is the array that is worked on"
    assert all(a.is_contiguous() for a in arguments if isinstance(a, Tensor)), "kernels take contiguous arrays"
    values = [_as_c(argument) for argument in arguments]
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    with torch.cuda.device(x.device):
        stream = ctypes.c_void_p(torch.cuda.current_stream(x.device).cuda_stream)
        function = _function(x.device, kernel, name)
        _check(_driver().cuLaunchKernel(function, blocks, len(x), 1, _THREADS, 1, 1, 0, stream, pointers, None))


def _blocks(x: Tensor, work: int) -> int:
    """Blocks per sample, for `work` pieces of work per sample and pair of channels.

    About as many in all as the device takes, no more than there is work for, and a thread for every pair at least.
    """
    pairs, most = x.shape[4] // 2, _most_blocks(x.device)
    return max(min(-(-most // len(x)), -(-pairs * work // _THREADS)), -(-pairs // _THREADS))


def _as_c(argument: Tensor | float) -> ctypes.c_void_p | ctypes.c_float | ctypes.c_int:
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    return ctypes.c_float(argument) if isinstance(argument, float) else ctypes.c_int(argument)


@cache
def _most_blocks(device: torch.device) -> int:
    return _BLOCKS_PER_PROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count


@cache
def _function(device: torch.device, kernel: int, name: str) -> ctypes.c_void_p:
    function = ctypes.c_void_p()
    _check(_driver().cuModuleGetFunction(ctypes.byref(function), _module(device, kernel), name.encode()))
    return function


@cache
def _module(device: torch.device, kernel: int) -> ctypes.c_void_p:
    major, minor = torch.cuda.get_device_capability(device)
    module = ctypes.c_void_p()
    _check(_driver().cuModuleLoadData(ctypes.byref(module), compiled(kernel, f"sm_{major}{minor}")))
    return module


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _check(status: int) -> None:
    if status == _OUT_OF_MEMORY:
        raise torch.OutOfMemoryError("CUDA out of memory in a kernel of this package")
    if status:
        raise RuntimeError(f"CUDA driver error {status} in a kernel of this package")


# Called by hand: torch's own way to NVRTC needs setuptools and a CUDA toolkit, which an image for inference has not.
@cache
def _compiler() -> ctypes.CDLL:
    """NVRTC: the one that torch has loaded, or lies beside torch. Raises OSError where there is none."""
    major = str(torch.version.cuda).partition(".")[0]
    try:
        return ctypes.CDLL(f"libnvrtc.so.{major}")
    except OSError:
        beside = Path(torch.__file__).parents[1].glob(f"nvidia/*/lib/libnvrtc*.so.{major}*")
        # Its built-in functions first ("libnvrtc-"): it does not look for them where it lies itself.
        libraries = [ctypes.CDLL(str(path)) for path in sorted(beside) if ".alt." not in path.name]
        if not libraries:
            raise
        return libraries[-1]


def compiled(kernel: int, architecture: str) -> bytes:
    """Machine code of all kernels for a kernel size (3 or 5) and an architecture such as `sm_90`.

    Raises RuntimeError with what the compiler says, and OSError where there is no compiler.
    """
    nvrtc, program = _compiler(), ctypes.c_void_p()
    if nvrtc.nvrtcCreateProgram(ctypes.byref(program), SOURCE.read_bytes(), SOURCE.name.encode(), 0, None, None):
        raise RuntimeError("NVRTC does not start")
    try:
        macros = [f"-DK={kernel}".encode(), f"-DRUN={RUN}".encode()]
        # `sm_`, which gives machine code: an older driver refuses a newer compiler's intermediate code.
        options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++17", *macros]
        status = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        kind = "ProgramLog" if status else "CUBIN"
        size = ctypes.c_size_t()
        unread = nvrtc[f"nvrtcGet{kind}Size"](program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        if unread or nvrtc[f"nvrtcGet{kind}"](program, text) or status:
            raise RuntimeError(f"kernels do not compile for {architecture}: {text.value.decode().strip()}")
        return text.raw
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
