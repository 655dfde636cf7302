// Batch normalisation, with a rectifier if asked, of one map or of two side by side.
//
// Forward, two launches: `statistics` reads x; `normalize` reads it again (from the cache, where it fits) and writes y.
// Backward, two launches: `gradient_sums` for gamma and beta, `gradient` for x.  Whether an element was rectified away
// is computed again from x, so that neither y nor a mask must be kept or read.

#include "common.cuh"

struct Affine { float mean[V], inverse_deviation[V], gamma[V], beta[V]; };

__device__ inline Affine affine_of(
    const float* mean, const float* variance, const float* gamma, const float* beta, float eps, int c) {
    Affine a;
#pragma unroll
    for (int v = 0; v < V; ++v) {
        a.mean[v] = mean[c + v];
        a.inverse_deviation[v] = 1.0f / sqrtf(variance[c + v] + eps);
        a.gamma[v] = gamma[c + v];
        a.beta[v] = beta[c + v];
    }
    return a;
}

__device__ inline float normalized(const Affine& a, int v, float x) {
    return (x - a.mean[v]) * a.inverse_deviation[v];
}

// mean and (biased) variance of each column.  Sums are of the distance to the first row's element, so that a mean
// that is large beside the deviation does not cancel.
extern "C" __global__ void __launch_bounds__(N_THREAD) statistics(
    const T* x0, const T* x1, long long ld0, long long ld1, int n0, int C, long long n_row,
    float* partial, unsigned* counters, float* mean, float* variance) {
    __shared__ float shared[N_THREAD * V * N_SUM];
    const Columns x = {x0, x1, ld0, ld1, n0};
    const int c = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    float sums[N_SUM][V] = {}, pivot[V];
    if (c < C) {
        load(at(x, 0, c), pivot);
        const long long step = (long long)gridDim.y * blockDim.y;
#pragma unroll 4
        for (long long row = (long long)blockIdx.y * blockDim.y + threadIdx.y; row < n_row; row += step) {
            float value[V];
            load(at(x, row, c), value);
#pragma unroll
            for (int v = 0; v < V; ++v) {
                const float distance = value[v] - pivot[v];
                sums[0][v] += distance;
                sums[1][v] += distance * distance;
            }
        }
    }
    sum_over_block(sums, shared);
    if (!is_last_of_group(shared, partial, counters, C)) return;
    sum_over_chunks(partial, shared, C);
    const int n_column = blockDim.x * V;
    for (int i = threadIdx.y * blockDim.x + threadIdx.x; i < n_column; i += blockDim.x * blockDim.y) {
        const int column = blockIdx.x * n_column + i;
        if (column < C) {
            const float distance = shared[i] / n_row;
            mean[column] = to_float(*at(x, 0, column)) + distance;
            variance[column] = fmaxf(shared[n_column + i] / n_row - distance * distance, 0.0f);
        }
    }
}

// y = gamma (x - mean) / sqrt(variance + eps) + beta, [rectified]; moves the running statistics along where given.
extern "C" __global__ void __launch_bounds__(N_THREAD) normalize(
    const T* x0, const T* x1, long long ld0, long long ld1, int n0, int C, long long n_row,
    const float* mean, const float* variance, const float* gamma, const float* beta, float eps, int relu,
    T* y, long long ld_y, float* running_mean, float* running_variance, float decay) {
    const Columns x = {x0, x1, ld0, ld1, n0};
    const int c = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (c >= C) return;
    const Affine a = affine_of(mean, variance, gamma, beta, eps, c);
    if (running_mean && blockIdx.y == 0 && threadIdx.y == 0) {
        const float correction = (float)n_row / (n_row > 1 ? n_row - 1 : 1);
        for (int v = 0; v < V; ++v) {
            running_mean[c + v] = decay * running_mean[c + v] + (1 - decay) * mean[c + v];
            running_variance[c + v] = decay * running_variance[c + v] + (1 - decay) * correction * variance[c + v];
        }
    }
    const long long step = (long long)gridDim.y * blockDim.y;
#pragma unroll 4
    for (long long row = (long long)blockIdx.y * blockDim.y + threadIdx.y; row < n_row; row += step) {
        float value[V];
        load(at(x, row, c), value);
#pragma unroll
        for (int v = 0; v < V; ++v) {
            value[v] = normalized(a, v, value[v]) * a.gamma[v] + a.beta[v];
            if (relu && value[v] < 0) value[v] = 0;  // NaN stays
        }
        store(y + row * ld_y + c, value);
    }
}

// The gradient that reaches the normalised value: that of y, where it was not rectified away.
__device__ inline void unrectified(const Affine& a, int relu, const float (&normal)[V], float (&gradient)[V]) {
#pragma unroll
    for (int v = 0; v < V; ++v)
        if (relu && normal[v] * a.gamma[v] + a.beta[v] <= 0) gradient[v] = 0;
}

extern "C" __global__ void __launch_bounds__(N_THREAD) gradient_sums(
    const T* x0, const T* x1, long long ld0, long long ld1, int n0, int C, long long n_row,
    const float* mean, const float* variance, const float* gamma, const float* beta, float eps, int relu,
    const T* gy, long long ld_y, float* partial, unsigned* counters, float* ggamma, float* gbeta) {
    __shared__ float shared[N_THREAD * V * N_SUM];
    const Columns x = {x0, x1, ld0, ld1, n0};
    const int c = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    float sums[N_SUM][V] = {};
    if (c < C) {
        const Affine a = affine_of(mean, variance, gamma, beta, eps, c);
        const long long step = (long long)gridDim.y * blockDim.y;
#pragma unroll 4
        for (long long row = (long long)blockIdx.y * blockDim.y + threadIdx.y; row < n_row; row += step) {
            float normal[V], gradient[V];
            load(at(x, row, c), normal);
            load(gy + row * ld_y + c, gradient);
#pragma unroll
            for (int v = 0; v < V; ++v) normal[v] = normalized(a, v, normal[v]);
            unrectified(a, relu, normal, gradient);
#pragma unroll
            for (int v = 0; v < V; ++v) {
                sums[0][v] += gradient[v] * normal[v];
                sums[1][v] += gradient[v];
            }
        }
    }
    sum_over_block(sums, shared);
    if (!is_last_of_group(shared, partial, counters, C)) return;
    sum_over_chunks(partial, shared, C);
    const int n_column = blockDim.x * V;
    for (int i = threadIdx.y * blockDim.x + threadIdx.x; i < n_column; i += blockDim.x * blockDim.y) {
        const int column = blockIdx.x * n_column + i;
        if (column < C) {
            ggamma[column] = shared[i];
            gbeta[column] = shared[n_column + i];
        }
    }
}

// gx = gamma / deviation * (g - gbeta / n - normal * ggamma / n) [+ what x had before]
extern "C" __global__ void __launch_bounds__(N_THREAD) gradient(
    const T* x0, const T* x1, long long ld0, long long ld1, int n0, int C, long long n_row,
    const float* mean, const float* variance, const float* gamma, const float* beta, float eps, int relu,
    const T* gy, long long ld_y, const float* ggamma, const float* gbeta,
    T* gx0, T* gx1, long long ld_gx0, long long ld_gx1,
    const T* earlier0, const T* earlier1, long long ld_earlier0, long long ld_earlier1) {
    const Columns x = {x0, x1, ld0, ld1, n0}, gx = {gx0, gx1, ld_gx0, ld_gx1, n0};
    const Columns earlier = {earlier0, earlier1, ld_earlier0, ld_earlier1, n0};
    const int c = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (c >= C) return;
    const Affine a = affine_of(mean, variance, gamma, beta, eps, c);
    const bool adds = c < n0 ? earlier0 != nullptr : earlier1 != nullptr;
    float mean_gamma[V], mean_beta[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
        mean_gamma[v] = ggamma[c + v] / n_row;
        mean_beta[v] = gbeta[c + v] / n_row;
    }
    const long long step = (long long)gridDim.y * blockDim.y;
#pragma unroll 4
    for (long long row = (long long)blockIdx.y * blockDim.y + threadIdx.y; row < n_row; row += step) {
        float normal[V], value[V];
        load(at(x, row, c), normal);
        load(gy + row * ld_y + c, value);
#pragma unroll
        for (int v = 0; v < V; ++v) normal[v] = normalized(a, v, normal[v]);
        unrectified(a, relu, normal, value);
#pragma unroll
        for (int v = 0; v < V; ++v)
            value[v] = a.gamma[v] * a.inverse_deviation[v] * (value[v] - mean_beta[v] - normal[v] * mean_gamma[v]);
        if (adds) {
            float before[V];
            load(at(earlier, row, c), before);
#pragma unroll
            for (int v = 0; v < V; ++v) value[v] += before[v];
        }
        store(const_cast<T*>(at(gx, row, c)), value);
    }
}
