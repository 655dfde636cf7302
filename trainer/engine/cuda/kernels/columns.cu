// Sums of the columns of a map: the gradient of a bias, and global average pooling.

#include "common.cuh"

extern "C" __global__ void __launch_bounds__(N_THREAD) column_sums(
    const T* x, long long ld, int C, long long n_row, float* partial, unsigned* counters, float* sums_of_columns) {
    __shared__ float shared[N_THREAD * V * N_SUM];
    const int c = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    float sums[N_SUM][V] = {};
    if (c < C) {
        const long long step = (long long)gridDim.y * blockDim.y;
#pragma unroll 4
        for (long long row = (long long)blockIdx.y * blockDim.y + threadIdx.y; row < n_row; row += step) {
            float value[V];
            load(x + row * ld + c, value);
#pragma unroll
            for (int v = 0; v < V; ++v) sums[0][v] += value[v];
        }
    }
    sum_over_block(sums, shared);
    if (!is_last_of_group(shared, partial, counters, C)) return;
    sum_over_chunks(partial, shared, C);
    const int n_column = blockDim.x * V;
    for (int i = threadIdx.y * blockDim.x + threadIdx.x; i < n_column; i += blockDim.x * blockDim.y)
        if (blockIdx.x * n_column + i < C) sums_of_columns[blockIdx.x * n_column + i] = shared[i];
}

// y (N, C) float32: the mean of the n_pixel rows of each image.  Grid: (groups of columns, images).
extern "C" __global__ void __launch_bounds__(N_THREAD) global_average(const T* x, long long ld, int C, int n_pixel, float* y) {
    __shared__ float shared[N_THREAD * V * N_SUM];
    const int c = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    float sums[N_SUM][V] = {};
    if (c < C)
        for (int pixel = threadIdx.y; pixel < n_pixel; pixel += blockDim.y) {
            float value[V];
            load(x + ((long long)blockIdx.y * n_pixel + pixel) * ld + c, value);
#pragma unroll
            for (int v = 0; v < V; ++v) sums[0][v] += value[v];
        }
    sum_over_block(sums, shared);
    const int n_column = blockDim.x * V;
    for (int i = threadIdx.y * blockDim.x + threadIdx.x; i < n_column; i += blockDim.x * blockDim.y) {
        const int column = blockIdx.x * n_column + i;
        if (column < C) y[(long long)blockIdx.y * C + column] = shared[i] / n_pixel;
    }
}

extern "C" __global__ void global_average_gradient(
    const float* gy, T* gx, int C, int n_pixel, long long n_element) {
    for (long long i = global_thread() * V; i < n_element; i += n_global_thread() * V) {
        const int c = i % C;
        const long long image = i / C / n_pixel;
        float value[V];
#pragma unroll
        for (int v = 0; v < V; ++v) value[v] = gy[image * C + c + v] / n_pixel;
        store(gx + i, value);
    }
}
