// CUDA on a CPU: the kernels' sources compile as C++ with this before them, and emulated.cpp runs them.

#pragma once
#define EMULATED

#include <cmath>
#include <cstring>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct dim3 {
    unsigned x, y, z;
};

namespace emulated {

enum State { RUNNING, AT_BARRIER, AT_WARP, DONE };

extern unsigned current;          // the thread that runs
extern unsigned exchanged[1024];  // what each thread shows the others of its warp
extern unsigned char memory[];    // shared memory

void wait(State state);

// Run body(call) as every thread of the grid; what went wrong, or null.
const char* launch(
    void (*body)(void*), void* call, const unsigned* grid, const unsigned* size, unsigned shared, int order);

}  // namespace emulated

extern dim3 blockDim, gridDim, blockIdx;

// A fiber's index is looked up where it is asked for.
struct ThreadIdx {
    struct X {
        operator unsigned() const { return emulated::current % blockDim.x; }
    } x;
};
const ThreadIdx threadIdx{};

inline void __syncthreads() { emulated::wait(emulated::AT_BARRIER); }

inline void __syncwarp() { emulated::wait(emulated::AT_WARP); }

template <class T>
T __shfl_xor_sync(unsigned, T x, int lanes) {
    static_assert(sizeof(T) == 4, "four bytes at a time");
    std::memcpy(&emulated::exchanged[emulated::current], &x, 4);
    __syncwarp();
    std::memcpy(&x, &emulated::exchanged[emulated::current ^ lanes], 4);
    __syncwarp();
    return x;
}

template <class T>
T __shfl_sync(unsigned, T x, int lane) {
    static_assert(sizeof(T) == 4, "four bytes at a time");
    std::memcpy(&emulated::exchanged[emulated::current], &x, 4);
    __syncwarp();
    std::memcpy(&x, &emulated::exchanged[emulated::current / 32 * 32 + lane], 4);
    __syncwarp();
    return x;
}

template <class A, class B>
auto min(A a, B b) -> decltype(a + b) { return b < a ? b : a; }

template <class A, class B>
auto max(A a, B b) -> decltype(a + b) { return a < b ? b : a; }

inline float __uint_as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

inline unsigned __float_as_uint(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}

inline float from_half(unsigned short bits) {
    _Float16 x;
    std::memcpy(&x, &bits, 2);
    return x;
}

inline unsigned short to_half(float x) {
    _Float16 half = x;
    unsigned short bits;
    std::memcpy(&bits, &half, 2);
    return bits;
}

namespace emulated {

template <int... N> struct Numbers {};
template <int N, int... Rest> struct UpTo : UpTo<N - 1, N - 1, Rest...> {};
template <int... Rest> struct UpTo<0, Rest...> { typedef Numbers<Rest...> type; };

template <class A> struct Plain { typedef A type; };
template <class A> struct Plain<const A> { typedef A type; };

template <class... A, int... N>
const char* launch_all(
    void (*kernel)(A...), void** values, const unsigned* grid, const unsigned* size, unsigned shared, int order,
    Numbers<N...>) {
    struct Call {
        void (*kernel)(A...);
        void** values;
    } call{kernel, values};
    auto body = [](void* given) {
        Call& c = *static_cast<Call*>(given);
        c.kernel(*static_cast<typename Plain<A>::type*>(c.values[N])...);
    };
    return launch(body, &call, grid, size, shared, order);
}

template <class... A>
const char* launch_kernel(
    void (*kernel)(A...), void** values, const unsigned* grid, const unsigned* size, unsigned shared, int order) {
    return launch_all(kernel, values, grid, size, shared, order, typename UpTo<sizeof...(A)>::type());
}

}  // namespace emulated

// The name of a kernel that C can call: emulate_NAME(arguments, grid, threads, bytes of shared memory, order).
#define EMULATE(name)                                                                            \
    extern "C" const char* emulate_##name(                                                       \
        void** values, const unsigned* grid, const unsigned* size, unsigned shared, int order) { \
        return emulated::launch_kernel(&name, values, grid, size, shared, order);                \
    }
