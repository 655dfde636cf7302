// Softmax cross entropy of logits (N, n_class) of type T, its gradient, and what a run keeps count of.

#include "common.cuh"

constexpr int N_LOSS_THREAD = 128;

__device__ inline float over_block(float value, bool is_maximum, float* shared) {
    shared[threadIdx.x] = value;
    __syncthreads();
    for (int half = N_LOSS_THREAD / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            const float other = shared[threadIdx.x + half];
            if (is_maximum)
                shared[threadIdx.x] = fmaxf(shared[threadIdx.x], other);
            else
                shared[threadIdx.x] += other;
        }
        __syncthreads();
    }
    const float result = shared[0];
    __syncthreads();
    return result;
}

// log_sum (N,): log of the sum of exp(x); loss and coefficient: single numbers, the mean loss of the labelled rows and
// 1 / their number.  A row labelled -1 does not count.  A block a row; the last to finish adds up.
extern "C" __global__ void cross_entropy(
    const T* x, long long ld, const int* t, int n_class, int N, float* log_sum, float* row_loss, unsigned* counter,
    float* loss, float* coefficient) {
    __shared__ float shared[N_LOSS_THREAD];
    __shared__ bool is_last;
    const T* row = x + blockIdx.x * ld;
    float largest = -LARGEST, sum = 0;
    for (int c = threadIdx.x; c < n_class; c += N_LOSS_THREAD) largest = fmaxf(largest, to_float(row[c]));
    largest = over_block(largest, true, shared);
    for (int c = threadIdx.x; c < n_class; c += N_LOSS_THREAD) sum += expf(to_float(row[c]) - largest);
    sum = over_block(sum, false, shared);
    if (threadIdx.x == 0) {
        const int label = t[blockIdx.x];
        log_sum[blockIdx.x] = largest + logf(sum);
        row_loss[blockIdx.x] = label < 0 ? 0.0f : largest + logf(sum) - to_float(row[label]);
        __threadfence();
        is_last = atomicAdd(counter, 1u) == gridDim.x - 1;
        if (is_last) *counter = 0;
    }
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    const volatile float* losses = row_loss;
    float total = 0, count = 0;
    for (int n = threadIdx.x; n < N; n += N_LOSS_THREAD) {
        total += losses[n];
        count += t[n] >= 0;
    }
    total = over_block(total, false, shared);
    count = fmaxf(over_block(count, false, shared), 1.0f);
    if (threadIdx.x == 0) {
        *loss = total / count;
        *coefficient = 1 / count;
    }
}

// gx = (softmax(x) - one at the label) * coefficient * gy
extern "C" __global__ void cross_entropy_gradient(
    const T* x, long long ld, const int* t, int n_class, const float* log_sum, const float* coefficient,
    const float* gy, T* gx, long long n_element) {
    for (long long i = global_thread(); i < n_element; i += n_global_thread()) {
        const long long n = i / n_class;
        const int c = i % n_class;
        const float probability = expf(to_float(x[n * ld + c]) - log_sum[n]);
        from_float(t[n] < 0 ? 0.0f : (probability - (c == t[n])) * *coefficient * *gy, gx[i]);
    }
}

// sums[0] += loss * N, sums[1] += rows whose largest logit stands at their label, sums[2] += N; and, if given,
// confusion (n_class, n_class) counts rows by label and prediction.  One block.
extern "C" __global__ void tally(
    const T* x, long long ld, const int* t, int n_class, int N, const float* loss, double* sums,
    unsigned long long* confusion) {
    __shared__ float shared[N_LOSS_THREAD];
    float n_correct = 0;
    for (int n = threadIdx.x; n < N; n += N_LOSS_THREAD) {
        int best = 0;
        for (int c = 1; c < n_class; ++c) {
            const float value = to_float(x[n * ld + c]), highest = to_float(x[n * ld + best]);
            if (value > highest || (value != value && highest == highest)) best = c;
        }
        n_correct += best == t[n];
        if (confusion && t[n] >= 0) atomicAdd(confusion + (long long)t[n] * n_class + best, 1ull);
    }
    n_correct = over_block(n_correct, false, shared);
    if (threadIdx.x == 0) {
        sums[0] += (double)*loss * N;
        sums[1] += n_correct;
        sums[2] += N;
    }
}
