// CUDA C++ as far as the engine's kernels use it, for g++: the threads of a block are fibers, run in turn from one
// __syncthreads() to the next.  Slow, single-threaded, and exact about what CUDA promises: nothing runs in lockstep.

#pragma once
#define ON_CPU
#ifndef __x86_64__
#include <ucontext.h>
#endif

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#define __global__
#define __launch_bounds__(n)
#define __device__
#define __shared__ static
#define __forceinline__ inline
#define __restrict__

struct dim3 { unsigned x, y, z; };
static dim3 gridDim, blockDim, blockIdx, threadIdx;

// What a fiber is while it waits.  `swapcontext` would do everywhere, but asks the system twice for every switch.
#ifdef __x86_64__
typedef void* Context;  // its stack, on which its registers lie
extern "C" void switch_context(Context* from, Context* to);
asm(".text\n"
    ".type switch_context, @function\n"
    "switch_context:\n"
    "push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15\n"
    "mov %rsp, (%rdi); mov (%rsi), %rsp\n"
    "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp\n"
    "ret\n");
static void make_context(Context* context, char* stack, size_t size, void (*function)()) {
    void** top = (void**)(((size_t)stack + size) & ~(size_t)15);
    *--top = nullptr;  // what the function would return to: it does not
    *--top = (void*)function;
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    *context = top;
}
#else
typedef ucontext_t Context;
static void switch_context(Context* from, Context* to) { swapcontext(from, to); }
static void make_context(Context* context, char* stack, size_t size, void (*function)()) {
    getcontext(context);
    context->uc_stack.ss_sp = stack;
    context->uc_stack.ss_size = size;
    context->uc_link = nullptr;
    makecontext(context, function, 0);
}
#endif

static Context scheduler;
static Context* fiber = nullptr;  // the one that runs, if threads are fibers

static inline void __syncthreads() {
    if (!fiber) abort();  // the launcher was told that the kernel has no barrier
    switch_context(fiber, &scheduler);
}
static inline void __threadfence() {}

template <class N> static inline N atomicAdd(N* p, N n) {
    N before = *p;
    *p += n;
    return before;
}
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
static inline int max(int a, int b) { return a > b ? a : b; }
static inline int min(int a, int b) { return a < b ? a : b; }

// ---- launching ----

template <class... A, size_t... I>
static void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<A*>(arguments[I])...);
}

template <class... A> static void call(void (*kernel)(A...), void** arguments) {
    call(kernel, arguments, std::index_sequence_for<A...>{});
}

struct Fiber {
    Context context;
    std::vector<char> stack;
    dim3 thread;
    bool is_done;
};

static void (*body)(void**);
static void** body_arguments;
static Fiber* current;

static void run_fiber() {
    body(body_arguments);
    current->is_done = true;
    switch_context(&current->context, &scheduler);
}

// `order` shuffles the threads: what depends on their order is a race.
static void launch(void (*kernel)(void**), void** arguments, const unsigned* shape, bool has_barrier, unsigned order) {
    gridDim = {shape[0], shape[1], shape[2]};
    blockDim = {shape[3], shape[4], shape[5]};
    const unsigned n = blockDim.x * blockDim.y * blockDim.z;
    const unsigned n_block = gridDim.x * gridDim.y * gridDim.z;
    static std::vector<Fiber> fibers;
    if (has_barrier && fibers.size() < n) fibers.resize(n);
    const unsigned stride = order % 2 ? n - 1 : 1;  // backwards or forwards: both are prime to n
    for (unsigned b = 0; b < n_block; ++b) {
        const unsigned block = order / 2 % 2 ? n_block - 1 - b : b;
        blockIdx = {block % gridDim.x, block / gridDim.x % gridDim.y, block / gridDim.x / gridDim.y};
        auto place = [&](unsigned i) {
            const unsigned t = (unsigned)((unsigned long long)i * stride % n);
            return dim3{t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
        };
        if (!has_barrier) {
            for (unsigned i = 0; i < n; ++i) {
                threadIdx = place(i);
                kernel(arguments);
            }
            continue;
        }
        body = kernel;
        body_arguments = arguments;
        for (unsigned i = 0; i < n; ++i) {
            Fiber& f = fibers[i];
            f.stack.resize(32768);
            f.thread = place(i);
            f.is_done = false;
            make_context(&f.context, f.stack.data(), f.stack.size(), run_fiber);
        }
        for (unsigned n_alive = n; n_alive;) {
            n_alive = 0;
            for (unsigned i = 0; i < n; ++i) {
                if (fibers[i].is_done) continue;
                current = &fibers[i];
                threadIdx = current->thread;
                fiber = &current->context;
                switch_context(&scheduler, fiber);
                n_alive += !current->is_done;
            }
        }
        fiber = nullptr;
    }
}

// ---- storage types ----

#define STORAGE_ON_CPU                                                                 \
    static float to_float(Half x) {                                                    \
        _Float16 y;                                                                    \
        memcpy(&y, &x, 2);                                                             \
        return y;                                                                      \
    }                                                                                  \
    static void from_float(float x, Half& y) {                                         \
        _Float16 h = x;                                                                \
        memcpy(&y, &h, 2);                                                             \
    }                                                                                  \
    static float to_float(Bfloat16 x) {                                                \
        unsigned bits = (unsigned)x.bits << 16;                                        \
        float y;                                                                       \
        memcpy(&y, &bits, 4);                                                          \
        return y;                                                                      \
    }                                                                                  \
    static void from_float(float x, Bfloat16& y) {                                     \
        unsigned bits;                                                                 \
        memcpy(&bits, &x, 4);                                                          \
        if (x != x)                                                                    \
            y.bits = 0x7fc0;                                                           \
        else                                                                           \
            y.bits = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;                         \
    }
