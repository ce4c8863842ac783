// Kernels of channels_last_kernels.py, which compiles them with NVRTC for a kernel size K (3 or 5) and with RUN outputs
// along X for one thread. Activations are pairs of half-precision channels: (batch, Z, Y, X, pairs).
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
