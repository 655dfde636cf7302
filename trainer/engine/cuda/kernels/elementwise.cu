// Sums, rectifiers and dropout, element by element, of maps whose rows may be apart.

#include "common.cuh"

// out = x + other
extern "C" __global__ void add(
    const T* x, long long ld_x, const T* other, long long ld_other, T* out, long long ld_out, int C,
    long long n_pack) {
    for (long long i = global_thread(); i < n_pack; i += n_global_thread()) {
        const long long row = i / (C / V);
        const int c = i % (C / V) * V;
        float a[V], b[V];
        load(x + row * ld_x + c, a);
        load(other + row * ld_other + c, b);
#pragma unroll
        for (int v = 0; v < V; ++v) a[v] += b[v];
        store(out + row * ld_out + c, a);
    }
}

// y += bias of the column [+ other]
extern "C" __global__ void add_bias(
    T* y, long long ld_y, const float* bias, const T* other, long long ld_other, int C, long long n_pack) {
    for (long long i = global_thread(); i < n_pack; i += n_global_thread()) {
        const long long row = i / (C / V);
        const int c = i % (C / V) * V;
        float a[V];
        load(y + row * ld_y + c, a);
        if (bias)
#pragma unroll
            for (int v = 0; v < V; ++v) a[v] += bias[c + v];
        if (other) {
            float b[V];
            load(other + row * ld_other + c, b);
#pragma unroll
            for (int v = 0; v < V; ++v) a[v] += b[v];
        }
        store(y + row * ld_y + c, a);
    }
}

extern "C" __global__ void relu(const T* x, long long ld, T* y, int C, long long n_pack) {
    for (long long i = global_thread(); i < n_pack; i += n_global_thread()) {
        float a[V];
        load(x + i / (C / V) * ld + i % (C / V) * V, a);
#pragma unroll
        for (int v = 0; v < V; ++v) a[v] = a[v] < 0 ? 0 : a[v];  // NaN stays
        store(y + i * V, a);
    }
}

extern "C" __global__ void relu_gradient(
    const T* y, long long ld_y, const T* gy, long long ld_gy, T* gx, int C, long long n_pack) {
    for (long long i = global_thread(); i < n_pack; i += n_global_thread()) {
        const long long row = i / (C / V);
        const int c = i % (C / V) * V;
        float a[V], g[V];
        load(y + row * ld_y + c, a);
        load(gy + row * ld_gy + c, g);
#pragma unroll
        for (int v = 0; v < V; ++v) g[v] = a[v] > 0 ? g[v] : 0;
        store(gx + i * V, g);
    }
}

// Philox4x64-10 as in NumPy: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011), table 2 and section
// 3.2.  A GPU's multiplications have 32 bits, so the variant of four 32-bit words would need fewer of them; but one
// counter of this one makes 16 decisions, and NumPy computes the very same masks on a CPU.
__device__ inline void philox(unsigned long long (&counter)[4], unsigned long long key0, unsigned long long key1) {
    for (int round = 0; round < 10; ++round) {
        const unsigned long long low0 = counter[0] * 0xD2E7470EE14C6C93ull, low1 = counter[2] * 0xCA5A826395121157ull;
        const unsigned long long high0 = __umul64hi(counter[0], 0xD2E7470EE14C6C93ull);
        const unsigned long long high1 = __umul64hi(counter[2], 0xCA5A826395121157ull);
        counter[0] = high1 ^ counter[1] ^ key0;
        counter[1] = low1;
        counter[2] = high0 ^ counter[3] ^ key1;
        counter[3] = low0;
        key0 += 0x9E3779B97F4A7C15ull;
        key1 += 0xBB67AE8584CAA73Bull;
    }
}

// y = x * scale where the 16-bit word of the element is at least `threshold`, else 0.  The mask is that of a map (or
// matrix) of n_channel_mask channels, of which x holds C from first_channel on.  A thread computes the 16 elements of a
// counter, which follow each other in the image: channels first, then columns and rows.
extern "C" __global__ void dropout(
    const T* x, long long ld_x, T* y, long long ld_y, int C, int first_channel, int n_channel_mask, int n_pixel,
    int n_image, unsigned long long key0, unsigned long long key1, unsigned long long layer,
    const unsigned long long* iteration, unsigned long long first_row, unsigned long long row_step, int threshold,
    float scale) {
    const long long n_element = (long long)n_pixel * n_channel_mask, n_counter = (n_element + 15) / 16;
    for (long long i = global_thread(); i < n_counter * n_image; i += n_global_thread()) {
        const long long image = i / n_counter, first = i % n_counter * 16;
        // NumPy counts before it draws.
        const unsigned long long row_in_batch = first_row + image * row_step;
        unsigned long long words[4] = {row_in_batch * n_counter + i % n_counter + 1, 0, layer, *iteration};
        philox(words, key0, key1);
        for (int e = 0; e < 16 && first + e < n_element; ++e) {
            const int c = (first + e) % n_channel_mask - first_channel;
            if (c < 0 || c >= C) continue;
            const long long row = image * n_pixel + (first + e) / n_channel_mask;
            const int word = words[e / 4] >> e % 4 * 16 & 0xffff;
            from_float(word >= threshold ? to_float(x[row * ld_x + c]) * scale : 0.0f, y[row * ld_y + c]);
        }
    }
}
