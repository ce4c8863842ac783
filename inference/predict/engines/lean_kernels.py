"""What channels-last networks need beside torch's matrix products: CUDA kernels of our own, and the same in torch.

Activations are (batch, Z, Y, X, channels), contiguous, with an even number of channels. On CUDA in half precision each
function here runs a kernel, everywhere else plain torch. Kernels take two channels at a time, add in float32, and are
compiled when they are first used, by the NVRTC library that comes with torch (torch's own way to it needs setuptools
and a CUDA toolkit). They are compiled to machine code: an older driver refuses a newer compiler's intermediate code.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

_THREADS: Final = 256
_BLOCKS_PER_PROCESSOR: Final = 8
_OUT_OF_MEMORY: Final = 2
"""Of the CUDA driver's statuses."""
RUN: Final = 8
"""Outputs along X of one thread of a convolution: even."""

SOURCE: Final = (
    f"#define RUN {RUN}\n"
    r"""
#define PAD (K / 2)
// Two blocks a processor: at most 128 registers a thread.
#define CONVOLUTION __launch_bounds__(256, 2)

#ifdef __CUDACC__
// By hand, because NVRTC does not always find cuda_fp16.h.
__device__ __forceinline__ float to_float(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
__device__ __forceinline__ unsigned short to_half(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#endif

struct Pair { float a, b; };
struct Place { int z, y, x; };

__device__ __forceinline__ Pair unpack(unsigned bits) {
    return {to_float((unsigned short)(bits & 0xffffu)), to_float((unsigned short)(bits >> 16))};
}

__device__ __forceinline__ unsigned pack(Pair value) {
    return (unsigned)to_half(value.a) | ((unsigned)to_half(value.b) << 16);
}

__device__ __forceinline__ int rounded_up(int size, int step) { return (size + step - 1) / step; }

// Work is cut into runs along X, `depth` planes deep. They are numbered so that the threads of a block lie side by side
// in X and Y, and find each other's rows in the cache.
__device__ __forceinline__ int number_of_runs(int Z, int Y, int X, int depth) {
    return 4 * rounded_up(X, RUN) * rounded_up(Y, 4) * rounded_up(Z, depth);
}

__device__ __forceinline__ Place place(int run, int Y, int X, int depth) {
    const int along_x = rounded_up(X, RUN), along_y = rounded_up(Y, 4), column = run / 4 / along_x;
    return {column / along_y * depth, column % along_y * 4 + run % 4, run / 4 % along_x * RUN};
}

// A row from its voxel `first` on, zeros outside it.
template <int N>
__device__ __forceinline__ void read_row(Pair (&values)[N], const unsigned* row, int first, int X, int pairs) {
    unsigned bits[N];
    if (first >= 0 && first + N <= X) {
#pragma unroll
        for (int i = 0; i < N; i++) bits[i] = row[(first + i) * pairs];
    } else {
#pragma unroll
        for (int i = 0; i < N; i++)
            bits[i] = (unsigned)(first + i) < (unsigned)X ? row[(first + i) * pairs] : 0u;
    }
#pragma unroll
    for (int i = 0; i < N; i++) values[i] = unpack(bits[i]);
}

__device__ __forceinline__ void write_row(
    const Pair (&values)[RUN], unsigned* row, int first, int X, int pairs, Pair& sum, Pair& square) {
#pragma unroll
    for (int t = 0; t < RUN; t++)
        if (first + t < X) {
            row[(first + t) * pairs] = pack(values[t]);
            sum.a += values[t].a;
            sum.b += values[t].b;
            square.a += values[t].a * values[t].a;
            square.b += values[t].b * values[t].b;
        }
}

// Sums are (batch, workers, 2, channels): of the values, of their squares. Each thread has a place of its own, so that
// they are added up in the same order every time.
__device__ __forceinline__ void keep_sums(
    float* sums, int pair, int pairs, int worker, int workers, Pair sum, Pair square) {
    float* place = sums + ((long long)blockIdx.y * workers + worker) * 4 * pairs + 2 * pair;
    place[0] = sum.a;
    place[1] = sum.b;
    place[2 * pairs] = square.a;
    place[2 * pairs + 1] = square.b;
}

// Every kernel: blockIdx.y is the sample; a thread keeps its pair of channels, and every `workers`-th piece of work.
#define WORK \
    const int thread = blockIdx.x * blockDim.x + threadIdx.x; \
    const int pair = thread % pairs, worker = thread / pairs; \
    const int workers = gridDim.x * blockDim.x / pairs; \
    if (worker >= workers) return;

// Pairs of channels at (z, y, 0) of a sample (Z, Y, X, pairs).
#define ROW(array, z, y, Y, X) ((array) + ((long long)(z) * (Y) + (y)) * (X) * pairs)

#define OPERANDS \
    const unsigned* __restrict__ x, const unsigned* __restrict__ weight, unsigned* __restrict__ y, float* sums, \
    int pairs, int Z, int Y, int X, int out_z, int out_y, int out_x, int depth
#define OF_SAMPLE \
    x += (long long)blockIdx.y * Z * Y * X * pairs + pair; \
    y += (long long)blockIdx.y * out_z * out_y * out_x * pairs + pair; \
    weight += pair;

// Stride 1. Goes through the planes of its run, and keeps the sums of the K planes that the one at hand adds to.
extern "C" __global__ void CONVOLUTION depthwise(OPERANDS) {
    WORK
    OF_SAMPLE
    Pair sum = {0, 0}, square = {0, 0};
    const int runs = number_of_runs(out_z, out_y, out_x, depth);
    for (int run = worker; run < runs; run += workers) {
        const Place at = place(run, out_y, out_x, depth);
        if (at.y >= out_y) continue;
        const int end = at.z + depth < out_z ? at.z + depth : out_z;
        Pair out[K][RUN] = {};
        for (int z = at.z - PAD; z < end + PAD; z++) {
            // Weights are read anew in every row: in registers, they would leave room for fewer threads.
#pragma unroll 1
            for (int ky = 0; ky < K; ky++) {
                const int row = at.y + ky - PAD;
                if ((unsigned)z >= (unsigned)Z || (unsigned)row >= (unsigned)Y) continue;
                Pair in[RUN - 1 + K];
                read_row(in, ROW(x, z, row, Y, X), at.x - PAD, X, pairs);
#pragma unroll
                for (int kz = 0; kz < K; kz++) {
#pragma unroll
                    for (int kx = 0; kx < K; kx++) {
                        const Pair w = unpack(weight[((kz * K + ky) * K + kx) * pairs]);
#pragma unroll
                        for (int t = 0; t < RUN; t++) {
                            out[kz][t].a += w.a * in[t + kx].a;
                            out[kz][t].b += w.b * in[t + kx].b;
                        }
                    }
                }
            }
            if (z - PAD >= at.z)
                write_row(out[K - 1], ROW(y, z - PAD, at.y, out_y, out_x), at.x, out_x, pairs, sum, square);
#pragma unroll
            for (int t = 0; t < RUN; t++) {
#pragma unroll
                for (int kz = K - 1; kz > 0; kz--) out[kz][t] = out[kz - 1][t];
                out[0][t] = {0, 0};
            }
        }
    }
    keep_sums(sums, pair, pairs, worker, workers, sum, square);
}

// Stride 2, one plane deep.
extern "C" __global__ void CONVOLUTION depthwise_strided(OPERANDS) {
    WORK
    OF_SAMPLE
    Pair sum = {0, 0}, square = {0, 0};
    const int runs = number_of_runs(out_z, out_y, out_x, depth);
    for (int run = worker; run < runs; run += workers) {
        const Place at = place(run, out_y, out_x, depth);
        if (at.y >= out_y) continue;
        Pair out[RUN] = {};
        for (int kz = 0; kz < K; kz++) {
            for (int ky = 0; ky < K; ky++) {
                const int z = 2 * at.z + kz - PAD, row = 2 * at.y + ky - PAD;
                if ((unsigned)z >= (unsigned)Z || (unsigned)row >= (unsigned)Y) continue;
                Pair in[2 * (RUN - 1) + K];
                read_row(in, ROW(x, z, row, Y, X), 2 * at.x - PAD, X, pairs);
#pragma unroll
                for (int kx = 0; kx < K; kx++) {
                    const Pair w = unpack(weight[((kz * K + ky) * K + kx) * pairs]);
#pragma unroll
                    for (int t = 0; t < RUN; t++) {
                        out[t].a += w.a * in[2 * t + kx].a;
                        out[t].b += w.b * in[2 * t + kx].b;
                    }
                }
            }
        }
        write_row(out, ROW(y, at.z, at.y, out_y, out_x), at.x, out_x, pairs, sum, square);
    }
    keep_sums(sums, pair, pairs, worker, workers, sum, square);
}

// Transposed, of stride 2, one plane deep: voxel i adds weight k to voxel 2i + k - PAD. Runs begin at even voxels.
extern "C" __global__ void CONVOLUTION depthwise_transposed(OPERANDS) {
    WORK
    OF_SAMPLE
    Pair sum = {0, 0}, square = {0, 0};
    const int runs = number_of_runs(out_z, out_y, out_x, depth);
    for (int run = worker; run < runs; run += workers) {
        const Place at = place(run, out_y, out_x, depth);
        if (at.y >= out_y) continue;
        Pair out[RUN] = {};
        for (int kz = (at.z + PAD) % 2; kz < K; kz += 2) {
            for (int ky = (at.y + PAD) % 2; ky < K; ky += 2) {
                const int z = (at.z + PAD - kz) / 2, row = (at.y + PAD - ky) / 2;
                if ((unsigned)z >= (unsigned)Z || (unsigned)row >= (unsigned)Y) continue;
                Pair in[(RUN - 1 + PAD) / 2 + PAD / 2 + 1];
                read_row(in, ROW(x, z, row, Y, X), at.x / 2 - PAD / 2, X, pairs);
#pragma unroll
                for (int kx = 0; kx < K; kx++) {
                    const Pair w = unpack(weight[((kz * K + ky) * K + kx) * pairs]);
#pragma unroll
                    for (int t = (kx + PAD) % 2; t < RUN; t += 2) {
                        out[t].a += w.a * in[(t + PAD - kx) / 2 + PAD / 2].a;
                        out[t].b += w.b * in[(t + PAD - kx) / 2 + PAD / 2].b;
                    }
                }
            }
        }
        write_row(out, ROW(y, at.z, at.y, out_y, out_x), at.x, out_x, pairs, sum, square);
    }
    keep_sums(sums, pair, pairs, worker, workers, sum, square);
}

extern "C" __global__ void __launch_bounds__(256) statistics(
    const unsigned* __restrict__ x, float* sums, int pairs, int voxels) {
    WORK
    x += (long long)blockIdx.y * voxels * pairs + pair;
    Pair sum = {0, 0}, square = {0, 0};
    for (long long voxel = worker; voxel < voxels; voxel += 8LL * workers) {
        unsigned bits[8];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const long long other = voxel + (long long)i * workers;
            bits[i] = other < voxels ? x[other * pairs] : 0u;
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const Pair value = unpack(bits[i]);
            sum.a += value.a;
            sum.b += value.b;
            square.a += value.a * value.a;
            square.b += value.b * value.b;
        }
    }
    keep_sums(sums, pair, pairs, worker, workers, sum, square);
}

// All reads before all writes, which the compiler may not arrange for, as both are the same array.
extern "C" __global__ void __launch_bounds__(256) normalise(
    unsigned* x, const float* __restrict__ scale, const float* __restrict__ shift, int pairs, int voxels, float slope) {
    WORK
    x += (long long)blockIdx.y * voxels * pairs + pair;
    const long long channel = 2 * ((long long)blockIdx.y * pairs + pair);
    const Pair by = {scale[channel], scale[channel + 1]}, plus = {shift[channel], shift[channel + 1]};
    for (long long voxel = worker; voxel < voxels; voxel += 8LL * workers) {
        unsigned bits[8];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const long long other = voxel + (long long)i * workers;
            bits[i] = other < voxels ? x[other * pairs] : 0u;
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const long long other = voxel + (long long)i * workers;
            Pair value = unpack(bits[i]);
            value.a = value.a * by.a + plus.a;
            value.b = value.b * by.b + plus.b;
            value.a = value.a > 0 ? value.a : value.a * slope;
            value.b = value.b > 0 ? value.b : value.b * slope;
            if (other < voxels) x[other * pairs] = pack(value);
        }
    }
}
"""
)
"""CUDA C of all kernels, for the kernel size that the macro K names."""


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
    """Where a kernel of so many blocks leaves its sums: (batch, workers, 2, channels)."""
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
    if nvrtc.nvrtcCreateProgram(ctypes.byref(program), SOURCE.encode(), b"lean.cu", 0, None, None):
        raise RuntimeError("NVRTC does not start")
    try:
        options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++17", f"-DK={kernel}".encode()]
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
