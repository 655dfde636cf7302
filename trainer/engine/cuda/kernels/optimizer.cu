// One update of all parameters: flat float32 arrays of parameters, gradients and momenta.

#include "common.cuh"

// What changes from one update to the next, in memory, so that a captured graph sees it change.
struct State {
    unsigned long long iteration;  // updates made, or skipped
    long long position;            // pictures seen
    float lr;
    float scale;           // the loss is multiplied by it, and so are the gradients
    int n_good;            // updates since the scale last changed
    int n_skipped;         // updates skipped because a gradient was not finite
    int is_overflown;      // a gradient of this update is not finite
    int growth_interval;   // good updates before the scale doubles; 0: it stays as it is, always
};

extern "C" __global__ void check_finite(const float* gradients, long long n, State* state) {
    bool is_finite = true;
    for (long long i = global_thread(); i < n; i += n_global_thread())
        is_finite = is_finite && fabsf(gradients[i]) <= LARGEST;  // false of NaN, too
    if (!is_finite) state->is_overflown = 1;
}

// v = momentum * v - lr * g;  p += v, or Nesterov's p += momentum^2 * v - (1 + momentum) * lr * g;
// g: the gradient without the scale of the loss, plus weight_decay * p.  `copies` (or null): p in the storage type.
// `multipliers` (or null): of the rate, one for each 16 elements, where parameters begin.
extern "C" __global__ void update(
    float* parameters, const float* gradients, float* momenta, T* copies, long long n, const State* state,
    float momentum, float weight_decay, int is_nesterov, const float* multipliers) {
    if (state->is_overflown) return;
    const float factor = 1 / state->scale;
    for (long long i = global_thread(); i < n; i += n_global_thread()) {
        const float lr = multipliers ? state->lr * multipliers[i / 16] : state->lr;
        float p = parameters[i];
        const float g = gradients[i] * factor + weight_decay * p;
        const float v = momentum * momenta[i] - lr * g;
        momenta[i] = v;
        p += is_nesterov ? momentum * momentum * v - (1 + momentum) * lr * g : v;
        parameters[i] = p;
        if (copies) from_float(p, copies[i]);
    }
}

// Set after the work under way, without waiting for it.  One thread.
extern "C" __global__ void set_rate(State* state, float lr) { state->lr = lr; }

// Copies of all parameters in the storage type.
extern "C" __global__ void refresh(const float* parameters, T* copies, long long n) {
    for (long long i = global_thread(); i < n; i += n_global_thread()) from_float(parameters[i], copies[i]);
}

// gy[k] = scale * shares[k]: the gradients of the loss of each part of a batch.  One thread.
extern "C" __global__ void seed_gradients(const State* state, const float* shares, float* gy, int n) {
    for (int k = 0; k < n; ++k) gy[k] = state->scale * shares[k];
}

// The end of an iteration.  One thread.
extern "C" __global__ void advance(State* state, int n_picture) {
    if (state->is_overflown) {
        state->n_skipped += 1;
        state->n_good = 0;
        if (state->growth_interval) state->scale = fmaxf(state->scale / 2, 1.0f);
    } else if (state->growth_interval && ++state->n_good >= state->growth_interval) {
        state->scale = fminf(state->scale * 2, 65536.0f);
        state->n_good = 0;
    }
    state->is_overflown = 0;
    state->iteration += 1;
    state->position += n_picture;
}
