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
// The target is 1 - smoothing at the label, plus smoothing / n_class everywhere.  weights (n_class,), if given, multiply
// the loss of a row by the one of its label.
extern "C" __global__ void cross_entropy(
    const T* x, long long ld, const int* t, int n_class, int N, float smoothing, const float* weights, float* log_sum,
    float* row_loss, unsigned* counter, float* loss, float* coefficient) {
    __shared__ float shared[N_LOSS_THREAD];
    __shared__ bool is_last;
    const T* row = x + blockIdx.x * ld;
    float largest = -LARGEST, sum = 0, mean = 0;
    for (int c = threadIdx.x; c < n_class; c += N_LOSS_THREAD) largest = fmaxf(largest, to_float(row[c]));
    largest = over_block(largest, true, shared);
    for (int c = threadIdx.x; c < n_class; c += N_LOSS_THREAD) sum += expf(to_float(row[c]) - largest);
    sum = over_block(sum, false, shared);
    if (smoothing > 0) {
        for (int c = threadIdx.x; c < n_class; c += N_LOSS_THREAD) mean += to_float(row[c]) - largest;
        mean = over_block(mean, false, shared) / n_class;
    }
    if (threadIdx.x == 0) {
        const int label = t[blockIdx.x];
        log_sum[blockIdx.x] = largest + logf(sum);
        float losses = label < 0 ? 0.0f : largest + logf(sum) - to_float(row[label]);
        if (smoothing > 0 && label >= 0) losses = (1 - smoothing) * losses + smoothing * (logf(sum) - mean);
        if (weights && label >= 0) losses *= weights[label];
        row_loss[blockIdx.x] = losses;
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

// gx = (softmax(x) - target) * coefficient * gy, times the weight of the row's label if there are weights
extern "C" __global__ void cross_entropy_gradient(
    const T* x, long long ld, const int* t, int n_class, float smoothing, const float* weights, const float* log_sum,
    const float* coefficient, const float* gy, T* gx, long long n_element) {
    const float at_label = 1 - smoothing, everywhere = smoothing / n_class;
    for (long long i = global_thread(); i < n_element; i += n_global_thread()) {
        const long long n = i / n_class;
        const int c = i % n_class;
        const float probability = expf(to_float(x[n * ld + c]) - log_sum[n]);
        float gradient = t[n] < 0 ? 0.0f : (probability - (c == t[n]) * at_label - everywhere) * *coefficient * *gy;
        if (weights && t[n] >= 0) gradient *= weights[t[n]];
        from_float(gradient, gx[i]);
    }
}

// sums[0] += loss * N, sums[1] += rows whose largest logit stands at their label, sums[2] += N, each times `share`;
// and, if given, confusion (n_class, n_class) counts rows by label and prediction, and n_top5 those with fewer than
// five logits before that of the label: larger ones, and equal ones of lower classes.  Row n is that of image
// *position + n: if given, predicted holds its largest logit's class, and wrong the probability of that class, 0 if it is
// the label.  One block.
extern "C" __global__ void tally(
    const T* x, long long ld, const int* t, int n_class, int N, const float* loss, float share, double* sums,
    unsigned long long* confusion, unsigned long long* n_top5, const long long* position, int* predicted,
    float* wrong) {
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
        if (n_top5 && t[n] >= 0) {
            const float own = to_float(x[n * ld + t[n]]);
            int rank = 0;
            for (int c = 0; c < n_class; ++c) {
                const float value = to_float(x[n * ld + c]);
                rank += value > own || (value == own && c < t[n]);
            }
            if (rank < 5) atomicAdd(n_top5, 1ull);
        }
        if (predicted) {
            float sum = 0;
            for (int c = 0; c < n_class; ++c) sum += expf(to_float(x[n * ld + c]) - to_float(x[n * ld + best]));
            predicted[*position + n] = best;
            wrong[*position + n] = best == t[n] ? 0.0f : 1 / sum;
        }
    }
    n_correct = over_block(n_correct, false, shared);
    if (threadIdx.x == 0) {
        sums[0] += (double)share * *loss * N;
        sums[1] += (double)share * n_correct;
        sums[2] += (double)share * N;
    }
}
