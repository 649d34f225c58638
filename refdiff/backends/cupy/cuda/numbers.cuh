// The numbers that arrays hold, as their bits, and float32, which everything is computed in.
//
// No header of CUDA's is needed, so that NVRTC compiles these files with nothing beside it.

typedef long long int64;

struct float16 {
    unsigned short bits;
};

struct bfloat16 {
    unsigned short bits;
};

#ifndef EMULATED  // tests/cuda/emulated.h has what a CPU does instead
__device__ __forceinline__ float from_half(unsigned short bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}

__device__ __forceinline__ unsigned short to_half(float x) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
#endif

__device__ __forceinline__ float widen(float16 x) { return from_half(x.bits); }

__device__ __forceinline__ void store(float x, float16* y) { y->bits = to_half(x); }

__device__ __forceinline__ float widen(float x) { return x; }

__device__ __forceinline__ void store(float x, float* y) { *y = x; }

// bfloat16 is the upper half of a float32.
__device__ __forceinline__ float widen(bfloat16 x) { return __uint_as_float((unsigned)x.bits << 16); }

// To the nearest, ties to even, in integers: sm_75 has no instruction for it. A NaN stays one.
__device__ __forceinline__ void store(float x, bfloat16* y) {
    unsigned bits = __float_as_uint(x);
    y->bits = x != x ? 0x7fc0 : (unsigned short)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000); }

// Sum, or largest, over `lanes` neighbouring threads of a warp (a power of two); every one of them gets it.
__device__ __forceinline__ float sum_over(float x, int lanes) {
    for (int step = lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffff, x, step);
    return x;
}

__device__ __forceinline__ float max_over(float x, int lanes) {
    for (int step = lanes / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, step));
    return x;
}
