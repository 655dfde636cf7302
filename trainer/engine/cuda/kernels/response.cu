// Local response normalisation across channels.

#include "common.cuh"

// A block looks after one pixel at a time; x and what is made of it lie in shared memory meanwhile.
constexpr int MAX_CHANNEL = 2048;

__device__ inline float window_sum(const float* values, int c, int C, int half_window) {
    float sum = 0;
    for (int j = max(c - half_window, 0); j <= min(c + half_window, C - 1); ++j) sum += values[j];
    return sum;
}

// y = x / (k + alpha * sum of x^2 over the window) ** beta
extern "C" __global__ void response(
    const T* x, long long ld, T* y, int C, long long n_row, int half_window, float k, float alpha, float beta) {
    __shared__ float squares[MAX_CHANNEL];
    for (long long row = blockIdx.x; row < n_row; row += gridDim.x) {
        for (int c = threadIdx.x; c < C; c += blockDim.x) {
            const float value = to_float(x[row * ld + c]);
            squares[c] = value * value;
        }
        __syncthreads();
        for (int c = threadIdx.x; c < C; c += blockDim.x) {
            const float scale = k + alpha * window_sum(squares, c, C, half_window);
            from_float(to_float(x[row * ld + c]) * powf(scale, -beta), y[row * C + c]);
        }
        __syncthreads();
    }
}

// gx = gy scale^-beta - 2 alpha beta x * sum over the window of gy x scale^(-beta - 1)
extern "C" __global__ void response_gradient(
    const T* x, long long ld, const T* gy, long long ld_gy, T* gx, int C, long long n_row, int half_window, float k,
    float alpha, float beta) {
    __shared__ float squares[MAX_CHANNEL];
    __shared__ float products[MAX_CHANNEL];
    for (long long row = blockIdx.x; row < n_row; row += gridDim.x) {
        for (int c = threadIdx.x; c < C; c += blockDim.x) {
            const float value = to_float(x[row * ld + c]);
            squares[c] = value * value;
        }
        __syncthreads();
        for (int c = threadIdx.x; c < C; c += blockDim.x) {
            const float scale = k + alpha * window_sum(squares, c, C, half_window);
            products[c] = to_float(gy[row * ld_gy + c]) * to_float(x[row * ld + c]) * powf(scale, -beta - 1);
        }
        __syncthreads();
        for (int c = threadIdx.x; c < C; c += blockDim.x) {
            const float scale = k + alpha * window_sum(squares, c, C, half_window);
            const float value = to_float(x[row * ld + c]);
            const float sum = window_sum(products, c, C, half_window);
            from_float(to_float(gy[row * ld_gy + c]) * powf(scale, -beta) - 2 * alpha * beta * value * sum,
                       gx[row * C + c]);
        }
        __syncthreads();
    }
}
