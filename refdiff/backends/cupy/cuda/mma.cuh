// C += A B on tensor cores: A is 16 × 16, B 16 × 8, of TILE, float16 or bfloat16, and C in float32 (PTX's m16n8k16).
//
// The threads of a warp have the matrices between them. With g = lane / 4 and t = lane % 4, a thread has
//     a[0]  A[g][2t, 2t + 1]        a[1]  A[g + 8][2t, 2t + 1]        b[0]  B[2t, 2t + 1][g]
//     a[2]  A[g][2t + 8, 2t + 9]    a[3]  A[g + 8][2t + 8, 2t + 9]    b[1]  B[2t + 8, 2t + 9][g]
//     c[0], c[1]  C[g][2t, 2t + 1]  c[2], c[3]  C[g + 8][2t, 2t + 1]
// where a word holds two numbers, the first in its lower half. So C of one product is A of the next, once it is packed.

#include "numbers.cuh"

struct A {
    unsigned of[4];
};

struct B {
    unsigned of[2];
};

struct C {
    float of[4];
};

__device__ __forceinline__ unsigned pack(float first, float second) {
    TILE low, high;
    store(first, &low);
    store(second, &high);
    return low.bits | (unsigned)high.bits << 16;
}

// Rows 0 to 15 and columns 0 to 15 of a tile whose rows are `stride` numbers apart.
__device__ __forceinline__ A load_a(const TILE* tile, int stride) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const TILE* at = tile + g * stride + 2 * t;
    return {{*(const unsigned*)at, *(const unsigned*)(at + 8 * stride), *(const unsigned*)(at + 8),
             *(const unsigned*)(at + 8 * stride + 8)}};
}

// The transpose of rows 0 to 7 and columns 0 to 15 of a tile.
__device__ __forceinline__ B load_b(const TILE* tile, int stride) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const TILE* at = tile + g * stride + 2 * t;
    return {{*(const unsigned*)at, *(const unsigned*)(at + 8)}};
}

#if defined(EMULATED)  // what the instruction does, by asking the other threads of the warp
template <class NUMBERS>
__device__ void multiply_add(C& c, const A& a, const B& b, NUMBERS) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (int k = 0; k < 16; k += 2) {  // A[.][k, k + 1] and B[k, k + 1][.]
        const int there = k % 8 / 2, half = k / 8;
        unsigned rows[2], columns[2];
        for (int i = 0; i < 2; i++) {
            rows[i] = __shfl_sync(0xffffffff, a.of[2 * half + i], 4 * g + there);
            columns[i] = __shfl_sync(0xffffffff, b.of[half], 4 * (2 * t + i) + there);
        }
        for (int i = 0; i < 4; i++) {
            const unsigned row = rows[i / 2], column = columns[i % 2];
            c.of[i] += widen(TILE{(unsigned short)row}) * widen(TILE{(unsigned short)column});
            c.of[i] += widen(TILE{(unsigned short)(row >> 16)}) * widen(TILE{(unsigned short)(column >> 16)});
        }
    }
}
#elif __CUDA_ARCH__ >= 800
#define MULTIPLY_ADD(NUMBERS, name)                                                                     \
    __device__ __forceinline__ void multiply_add(C& c, const A& a, const B& b, NUMBERS) {               \
        asm volatile(                                                                                   \
            "mma.sync.aligned.m16n8k16.row.col.f32." name "." name ".f32 "                              \
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                           \
            : "+f"(c.of[0]), "+f"(c.of[1]), "+f"(c.of[2]), "+f"(c.of[3])                                \
            : "r"(a.of[0]), "r"(a.of[1]), "r"(a.of[2]), "r"(a.of[3]), "r"(b.of[0]), "r"(b.of[1]));      \
    }
MULTIPLY_ADD(float16, "f16")
MULTIPLY_ADD(bfloat16, "bf16")
#else  // sm_75 has the instruction for float16 alone, half as deep; for bfloat16 attention.cu serves
__device__ __forceinline__ void multiply_add(C& c, const A& a, const B& b, float16) {
    for (int half = 0; half < 2; half++)
        asm volatile(
            "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
            : "+f"(c.of[0]), "+f"(c.of[1]), "+f"(c.of[2]), "+f"(c.of[3])
            : "r"(a.of[2 * half]), "r"(a.of[2 * half + 1]), "r"(b.of[half]));
}
#endif
