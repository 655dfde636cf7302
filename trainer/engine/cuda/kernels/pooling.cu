// Maximum and average pooling; one thread computes V channels of a pixel.

#include "common.cuh"

struct Window { int H, W, C, y_height, y_width, k_height, k_width, stride_y, stride_x, pad_y, pad_x; };

#define WINDOW_ARGUMENTS \
    int H, int W, int C, int y_height, int y_width, int k_height, int k_width, int stride_y, int stride_x, \
        int pad_y, int pad_x
#define WINDOW {H, W, C, y_height, y_width, k_height, k_width, stride_y, stride_x, pad_y, pad_x}

// Columns first, then x, y, image.
struct Place { int c, column, row; long long image; };

__device__ inline Place place_of(long long i, int C, int width, int height) {
    const int n_pack = C / V;
    const long long pixel = i / n_pack;
    return {(int)(i % n_pack) * V, (int)(pixel % width), (int)(pixel / width % height), pixel / width / height};
}

// The first of the largest elements wins, as in Chainer; NaN wins over all.  `chosen` may be null.
extern "C" __global__ void max_pool(
    const T* x, long long ld, T* y, unsigned char* chosen, WINDOW_ARGUMENTS, long long n_pack) {
    const Window w = WINDOW;
    for (long long i = global_thread(); i < n_pack; i += n_global_thread()) {
        const Place p = place_of(i, w.C, w.y_width, w.y_height);
        float best[V];
        unsigned char place[V];
        bool is_first = true;
        for (int ky = 0; ky < w.k_height; ++ky) {
            const int row = p.row * w.stride_y + ky - w.pad_y;
            if (row < 0 || row >= w.H) continue;
            for (int kx = 0; kx < w.k_width; ++kx) {
                const int column = p.column * w.stride_x + kx - w.pad_x;
                if (column < 0 || column >= w.W) continue;
                float value[V];
                load(x + ((p.image * w.H + row) * w.W + column) * ld + p.c, value);
#pragma unroll
                for (int v = 0; v < V; ++v)
                    if (is_first || value[v] > best[v] || (value[v] != value[v] && best[v] == best[v])) {
                        best[v] = value[v];
                        place[v] = ky * w.k_width + kx;
                    }
                is_first = false;
            }
        }
        store(y + i * V, best);
        if (chosen)
#pragma unroll
            for (int v = 0; v < V; ++v) chosen[i * V + v] = place[v];
    }
}

// The windows of a pooling that a row (or column) of x lies in: first .. last.
__device__ inline int first_window(int position, int k, int stride, int pad) {
    const int reach = position + pad - k + 1;
    return reach > 0 ? (reach + stride - 1) / stride : 0;
}

__device__ inline int last_window(int position, int stride, int pad, int n_window) {
    const int window = (position + pad) / stride;
    return window < n_window ? window : n_window - 1;
}

// Gathers, so that no two threads write to one element.
extern "C" __global__ void max_pool_gradient(
    const T* gy, long long ld, const unsigned char* chosen, T* gx, WINDOW_ARGUMENTS, long long n_pack) {
    const Window w = WINDOW;
    for (long long i = global_thread(); i < n_pack; i += n_global_thread()) {
        const Place p = place_of(i, w.C, w.W, w.H);
        float sum[V] = {};
        const int last_y = last_window(p.row, w.stride_y, w.pad_y, w.y_height);
        const int last_x = last_window(p.column, w.stride_x, w.pad_x, w.y_width);
        for (int y = first_window(p.row, w.k_height, w.stride_y, w.pad_y); y <= last_y; ++y)
            for (int x = first_window(p.column, w.k_width, w.stride_x, w.pad_x); x <= last_x; ++x) {
                const int place = (p.row + w.pad_y - y * w.stride_y) * w.k_width + p.column + w.pad_x - x * w.stride_x;
                const long long pixel = (p.image * w.y_height + y) * w.y_width + x;
                float value[V];
                load(gy + pixel * ld + p.c, value);
#pragma unroll
                for (int v = 0; v < V; ++v)
                    if (chosen[pixel * w.C + p.c + v] == place) sum[v] += value[v];
            }
        store(gx + i * V, sum);
    }
}

// Padding counts as zeros.
extern "C" __global__ void average_pool(const T* x, long long ld, T* y, WINDOW_ARGUMENTS, long long n_pack) {
    const Window w = WINDOW;
    for (long long i = global_thread(); i < n_pack; i += n_global_thread()) {
        const Place p = place_of(i, w.C, w.y_width, w.y_height);
        float sum[V] = {};
        for (int ky = 0; ky < w.k_height; ++ky) {
            const int row = p.row * w.stride_y + ky - w.pad_y;
            if (row < 0 || row >= w.H) continue;
            for (int kx = 0; kx < w.k_width; ++kx) {
                const int column = p.column * w.stride_x + kx - w.pad_x;
                if (column < 0 || column >= w.W) continue;
                float value[V];
                load(x + ((p.image * w.H + row) * w.W + column) * ld + p.c, value);
#pragma unroll
                for (int v = 0; v < V; ++v) sum[v] += value[v];
            }
        }
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] /= w.k_height * w.k_width;
        store(y + i * V, sum);
    }
}

extern "C" __global__ void average_pool_gradient(
    const T* gy, long long ld, T* gx, WINDOW_ARGUMENTS, long long n_pack) {
    const Window w = WINDOW;
    for (long long i = global_thread(); i < n_pack; i += n_global_thread()) {
        const Place p = place_of(i, w.C, w.W, w.H);
        float sum[V] = {};
        const int last_y = last_window(p.row, w.stride_y, w.pad_y, w.y_height);
        const int last_x = last_window(p.column, w.stride_x, w.pad_x, w.y_width);
        for (int y = first_window(p.row, w.k_height, w.stride_y, w.pad_y); y <= last_y; ++y)
            for (int x = first_window(p.column, w.k_width, w.stride_x, w.pad_x); x <= last_x; ++x) {
                float value[V];
                load(gy + ((p.image * w.y_height + y) * w.y_width + x) * ld + p.c, value);
#pragma unroll
                for (int v = 0; v < V; ++v) sum[v] += value[v];
            }
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] /= w.k_height * w.k_width;
        store(gx + i * V, sum);
    }
}
