// What all kernels share: storage types, packs of 16 bytes, and sums over the rows of a map.
//
// A map (N, C, H, W) whose channels lie side by side is a matrix of N * H * W rows and C columns; `ld` elements lie
// between one row and the next (C, or more in a slice of the channels of another map).  Arithmetic is in float32.
//
// Given by the compiler's command line: STORAGE, the type of maps in memory (Half, Bfloat16 or float), and VECTOR, how
// many elements a thread loads at once (as many as fill 16 bytes, or 1 where rows or columns do not divide so).

#pragma once

struct Half;
struct Bfloat16;
typedef STORAGE T;
constexpr int V = VECTOR;

struct Half { unsigned short bits; };
struct Bfloat16 { unsigned short bits; };

#ifdef ON_CPU
STORAGE_ON_CPU
#else
__device__ inline float to_float(Half x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
__device__ inline void from_float(float x, Half& y) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); }
__device__ inline float to_float(Bfloat16 x) { return __uint_as_float((unsigned)x.bits << 16); }
__device__ inline void from_float(float x, Bfloat16& y) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); }
#endif
__device__ inline float to_float(float x) { return x; }
__device__ inline void from_float(float x, float& y) { y = x; }

struct alignas(sizeof(T) * V) Pack { T values[V]; };

__device__ inline void load(const T* p, float (&x)[V]) {
    Pack pack = *reinterpret_cast<const Pack*>(p);
#pragma unroll
    for (int v = 0; v < V; ++v) x[v] = to_float(pack.values[v]);
}

__device__ inline void store(T* p, const float (&x)[V]) {
    Pack pack;
#pragma unroll
    for (int v = 0; v < V; ++v) from_float(x[v], pack.values[v]);
    *reinterpret_cast<Pack*>(p) = pack;
}

// Two maps side by side, or one (n0 = all columns).  Element (row, c) of the whole.
struct Columns {
    const T* x0;
    const T* x1;
    long long ld0, ld1;
    int n0;
};

__device__ inline const T* at(const Columns& x, long long row, int c) {
    return c < x.n0 ? x.x0 + row * x.ld0 + c : x.x1 + row * x.ld1 + (c - x.n0);
}

__device__ inline long long global_thread() { return (long long)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ inline long long n_global_thread() { return (long long)gridDim.x * blockDim.x; }

constexpr float LARGEST = 3.402823466e38f;  // finite float32

// ---- sums over rows ----
//
// Blocks are (lanes, rows) threads: a lane looks after V columns, and the rows of threads go down the rows of the
// map together.  The grid is (groups of lanes * V columns, chunks of rows).  Each block leaves its sums in `partial`;
// the last one of a group to finish adds them up, always in the same order, so that results are the same to the bit
// whichever block that is.

constexpr int N_THREAD = 512;
constexpr int N_SUM = 2;

// sums[k][v] of all rows of threads -> shared[k * n_column + column], n_column = lanes * V.
__device__ inline void sum_over_block(const float (&sums)[N_SUM][V], float* shared) {
    const int n_value = blockDim.x * V * N_SUM, n_thread = blockDim.x * blockDim.y;
    const int thread = threadIdx.y * blockDim.x + threadIdx.x;
    // shared[row][k][column]
#pragma unroll
    for (int k = 0; k < N_SUM; ++k)
#pragma unroll
        for (int v = 0; v < V; ++v)
            shared[threadIdx.y * n_value + k * blockDim.x * V + threadIdx.x * V + v] = sums[k][v];
    __syncthreads();
    // As many threads as there are share the rows of a value, then one adds up what they found.
    const int n_part = n_thread / n_value > 0 ? n_thread / n_value : 1;
    for (int first = 0; first < n_value; first += n_thread / n_part) {
        const int value = first + thread % (n_thread / n_part), part = thread / (n_thread / n_part);
        float sum = 0;
        if (value < n_value && part < n_part)
            for (int row = part; row < blockDim.y; row += n_part) sum += shared[row * n_value + value];
        __syncthreads();
        if (value < n_value && part < n_part) shared[part * n_value + value] = sum;
        __syncthreads();
        if (value < n_value && part == 0)
            for (int other = 1; other < n_part; ++other) shared[value] += shared[other * n_value + value];
        __syncthreads();
    }
}

// Leaves the block's sums in partial (chunks, N_SUM, C) and says whether all blocks of the group have done so.
__device__ inline bool is_last_of_group(const float* shared, float* partial, unsigned* counters, int C) {
    __shared__ bool is_last;
    const int n_column = blockDim.x * V, thread = threadIdx.y * blockDim.x + threadIdx.x;
    const int n_thread = blockDim.x * blockDim.y;
    for (int i = thread; i < n_column * N_SUM; i += n_thread) {
        const int k = i / n_column, c = blockIdx.x * n_column + i % n_column;
        if (c < C) partial[((long long)blockIdx.y * N_SUM + k) * C + c] = shared[i];
    }
    __threadfence();
    __syncthreads();
    if (thread == 0) {
        is_last = atomicAdd(counters + blockIdx.x, 1u) == gridDim.y - 1;
        if (is_last) counters[blockIdx.x] = 0;  // for the next launch
    }
    __syncthreads();
    __threadfence();
    return is_last;
}

// The sums of all chunks of column i % n_column and sum i / n_column, i < n_column * N_SUM, into shared[i].
__device__ inline void sum_over_chunks(const volatile float* partial, float* shared, int C) {
    const int n_column = blockDim.x * V, n_value = n_column * N_SUM;
    const int thread = threadIdx.y * blockDim.x + threadIdx.x, n_thread = blockDim.x * blockDim.y;
    const int n_part = n_thread / n_value > 0 ? n_thread / n_value : 1, stride = n_thread / n_part;
    for (int first = 0; first < n_value; first += stride) {
        const int value = first + thread % stride, part = thread / stride;
        const int k = value / n_column, c = blockIdx.x * n_column + value % n_column;
        float sum = 0;
        if (value < n_value && part < n_part && c < C)
#pragma unroll 4
            for (int chunk = part; chunk < gridDim.y; chunk += n_part)
                sum += partial[((long long)chunk * N_SUM + k) * C + c];
        if (value < n_value && part < n_part) shared[part * n_value + value] = sum;
        __syncthreads();
        if (value < n_value && part == 0)
            for (int other = 1; other < n_part; ++other) shared[value] += shared[other * n_value + value];
        __syncthreads();
    }
}
