// A batch as the network sees it: resized, cropped, mirrored and normalised from the images resident on the device.
//
// Pictures are computed twice, once for mean and deviation and once to be written: their source of 32 x 32 px lies in
// the cache, and reading a picture back would cost more than computing it again.
//
// Which picture comes when is in `rows`, a ring of `capacity` rows of five numbers: image, matrix (which kernel and
// side), top, left and whether to mirror.  `position` is the row of the batch's first picture, counted from the start.

#include "common.cuh"

constexpr int N_FIELD = 5, MAX_CHANNEL = 4, MAX_VIEW_THREAD = 256;

struct Source {
    const unsigned char* images;  // (images, C, H, W)
    const int* first_y;           // (matrices * highest,): the first source row of an output row
    const float* weights_y;       // (matrices * highest, n_tap_y)
    const int* first_x;
    const float* weights_x;
    int C, H, W, n_tap_y, n_tap_x, highest, size;
};

#define SOURCE_ARGUMENTS \
    const unsigned char *images, const int *first_y, const float *weights_y, const int *first_x, \
        const float *weights_x, int C, int H, int W, int n_tap_y, int n_tap_x, int highest, int size
#define SOURCE {images, first_y, weights_y, first_x, weights_x, C, H, W, n_tap_y, n_tap_x, highest, size}

__device__ inline float clip(float x) { return fminf(fmaxf(x, 0.0f), 255.0f); }

// One pixel of a picture, all channels, 0..255: along the rows first, then along the columns, clipped after each.
__device__ inline void look(const Source& s, const int* row, int y, int x, float (&value)[MAX_CHANNEL]) {
    const unsigned char* image = s.images + (long long)row[0] * s.C * s.H * s.W;
    const int tap_y = row[1] * s.highest + row[2] + y;
    const int tap_x = row[1] * s.highest + row[3] + (row[4] ? s.size - 1 - x : x);
    const int first_row = s.first_y[tap_y], first_column = s.first_x[tap_x];
    for (int c = 0; c < s.C; ++c) {
        float sum = 0;
        for (int j = 0; j < s.n_tap_y; ++j) {
            const unsigned char* line = image + (c * s.H + first_row + j) * s.W + first_column;
            float along = 0;
            for (int i = 0; i < s.n_tap_x; ++i) along += s.weights_x[tap_x * s.n_tap_x + i] * line[i];
            sum += s.weights_y[tap_y * s.n_tap_y + j] * clip(along);
        }
        value[c] = clip(sum);
    }
}

// partial (pictures, tiles, 2): sum and sum of squares of the distance to the image's first value.
// Grid: (tiles, pictures).
extern "C" __global__ void view_sums(
    SOURCE_ARGUMENTS, const int* rows, long long capacity, const long long* position, double* partial) {
    __shared__ float shared[2][MAX_VIEW_THREAD];
    const Source s = SOURCE;
    const int* row = rows + (*position + blockIdx.y) % capacity * N_FIELD;
    const float pivot = images[(long long)row[0] * C * H * W];
    float sum = 0, squares = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < size * size; i += gridDim.x * blockDim.x) {
        float value[MAX_CHANNEL];
        look(s, row, i / size, i % size, value);
        for (int c = 0; c < C; ++c) {
            const float distance = value[c] - pivot;
            sum += distance;
            squares += distance * distance;
        }
    }
    shared[0][threadIdx.x] = sum;
    shared[1][threadIdx.x] = squares;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half)
            for (int k = 0; k < 2; ++k) shared[k][threadIdx.x] += shared[k][threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x < 2)
        partial[((long long)blockIdx.y * gridDim.x + blockIdx.x) * 2 + threadIdx.x] = shared[threadIdx.x][0];
}

// x (pictures, size, size, ld), the channels beyond C zero; t (pictures,).  Grid: (tiles, pictures), as before.
extern "C" __global__ void view(
    SOURCE_ARGUMENTS, const int* rows, long long capacity, const long long* position, const double* partial,
    const int* labels, T* x, int ld, int* t) {
    const Source s = SOURCE;
    const int* row = rows + (*position + blockIdx.y) % capacity * N_FIELD;
    const double n = (double)C * size * size;
    double sum = 0, squares = 0;
    for (int tile = 0; tile < gridDim.x; ++tile) {
        sum += partial[((long long)blockIdx.y * gridDim.x + tile) * 2];
        squares += partial[((long long)blockIdx.y * gridDim.x + tile) * 2 + 1];
    }
    const double distance = sum / n, variance = squares / n - distance * distance;
    const float mean = images[(long long)row[0] * C * H * W] + (float)distance;
    // As in `trainer.augmentation.normalise`: what is flatter than one grey level in one value is flat.
    const float deviation = fmaxf(sqrtf(fmaxf((float)variance, 0.0f)), 1.0f / sqrtf((float)n));
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < size * size; i += gridDim.x * blockDim.x) {
        float value[MAX_CHANNEL];
        look(s, row, i / size, i % size, value);
        T* pixel = x + ((long long)blockIdx.y * size * size + i) * ld;
        for (int c = 0; c < ld; ++c) from_float(c < C ? (value[c] - mean) / deviation : 0.0f, pixel[c]);
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) t[blockIdx.y] = labels[row[0]];
}

// The same with the colours of all pictures: `colours` is (2, C), what is subtracted from each channel and what the
// rest is divided by, in the order of x's channels, which is that of the images or the reverse of it.
extern "C" __global__ void view_coloured(
    SOURCE_ARGUMENTS, const int* rows, long long capacity, const long long* position, const float* colours,
    int is_reversed, const int* labels, T* x, int ld, int* t) {
    const Source s = SOURCE;
    const int* row = rows + (*position + blockIdx.y) % capacity * N_FIELD;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < size * size; i += gridDim.x * blockDim.x) {
        float value[MAX_CHANNEL];
        look(s, row, i / size, i % size, value);
        T* pixel = x + ((long long)blockIdx.y * size * size + i) * ld;
        for (int c = 0; c < ld; ++c)
            from_float(
                c < C ? (value[is_reversed ? C - 1 - c : c] - colours[c]) / colours[C + c] : 0.0f, pixel[c]);
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) t[blockIdx.y] = labels[row[0]];
}
