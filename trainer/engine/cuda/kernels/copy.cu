// Copies between layouts and precisions.  Given by the command line, too: SOURCE, the storage type to read.

#include "common.cuh"

// y[n, c, h, w] = x[n, c, h, w]; channels are walked through first.
extern "C" __global__ void copy(
    const SOURCE* x, T* y, int C, int H, int W, long long xn, long long xc, long long xh, long long xw, long long yn,
    long long yc, long long yh, long long yw, long long n_element) {
    for (long long i = global_thread(); i < n_element; i += n_global_thread()) {
        const long long c = i % C, pixel = i / C, w = pixel % W, h = pixel / W % H, n = pixel / W / H;
        from_float(to_float(x[n * xn + c * xc + h * xh + w * xw]), y[n * yn + c * yc + h * yh + w * yw]);
    }
}
