// What the kernels of attention in float32 share: tiles in shared memory, and products of them.
//
// The compiler is told NUMBER, the numbers of q, k, v; MAPS, 2 or 1; D, the size of a query, and E, of a value; ROWS and
// KEYS, the size of a tile, multiples of 16. A block has 256 threads, 16 × 16: thread (x, y) has rows y, y + 16, … and
// columns x, x + 16, …, so that the 16 threads of a row are neighbours in a warp.

#include "attention_rows.cuh"

const int THREADS = 256;
const int I = ROWS / 16;  // rows of a thread
const int J = KEYS / 16;  // keys of a thread

// Copy rows of queries, or of what lies like them, to shared memory; those past the end are zero.
template <int SIZE, int STRIDE, class T>
__device__ void load_rows(float* tile, const T* x, const Axes& axes, const Rows& rows, int first) {
    for (int i = threadIdx.x; i < ROWS * SIZE; i += THREADS) {
        int r = i / SIZE, c = i % SIZE;
        tile[r * STRIDE + c] = first + r < rows.count ? widen(x[rows.at(axes, first + r) + c]) : 0.0f;
    }
}

// The same for keys or values first, first + 1, … of key head kv; those from `end` on are zero.
template <int SIZE, int STRIDE>
__device__ void load_keys(float* tile, const NUMBER* x, const Axes& axes, const Rows& rows, int first, int end) {
    const NUMBER* head = x + rows.b * axes.batch + rows.kv * axes.head;
    for (int i = threadIdx.x; i < KEYS * SIZE; i += THREADS) {
        int c = i / SIZE, j = i % SIZE;
        tile[c * STRIDE + j] = first + c < end ? widen(head[(first + c) * axes.row + j]) : 0.0f;
    }
}

// z[i][j] = Σ_c a[y + 16 i][c] b[x + 16 j][c], for tiles of SIZE columns with one more of padding.
template <int SIZE>
__device__ void products(float (&z)[I][J], const float* a, const float* b) {
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    for (int i = 0; i < I; i++)
        for (int j = 0; j < J; j++) z[i][j] = 0.0f;
#pragma unroll 8
    for (int c = 0; c < SIZE; c++) {
        float left[I], right[J];
        for (int i = 0; i < I; i++) left[i] = a[(y + 16 * i) * (SIZE + 1) + c];
        for (int j = 0; j < J; j++) right[j] = b[(x + 16 * j) * (SIZE + 1) + c];
        for (int i = 0; i < I; i++)
            for (int j = 0; j < J; j++) z[i][j] += left[i] * right[j];
    }
}
