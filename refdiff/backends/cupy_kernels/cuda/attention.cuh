// What the kernels of attention share: shapes, tiles in shared memory, scores of a tile.
//
// The compiler is told NUMBER, the numbers of q, k, v; MAPS, 2 or 1; D, the size of a query, and E, of a value; ROWS and
// KEYS, the size of a tile, multiples of 16. A block has 256 threads, 16 × 16: thread (x, y) has rows y, y + 16, … and
// columns x, x + 16, …, so that the 16 threads of a row are neighbours in a warp.
//
// The G = H / K query heads that read one key head are rows of one block: row r is query r / G of head kv G + r % G.
// A tile of rows so covers few queries, which is what causality asks for, and keys and values are read once for all G.

#include "numbers.cuh"

const int THREADS = 256;
const int I = ROWS / 16;  // rows of a thread
const int J = KEYS / 16;  // keys of a thread

// Distances in elements between neighbours along an axis; 0 where all share one.
struct Axes {
    int64 batch, head, row, key;
};

struct Shape {
    const int64* length;  // where the device counts the keys that were there before these queries; null: there are S
    Axes q, k, v, lambda, mask, bias;
    int H, K, T, S, causal, splits, keys_of_a_split;
    float scale;
};

struct Rows {
    int H, K, G, T, S, count, b, kv;

    __device__ Rows(const Shape& s)
        : H(s.H), K(s.K), G(s.H / s.K), T(s.T), S(s.length ? *s.length + s.T : s.S), count(s.H / s.K * s.T),
          b(blockIdx.z / s.K), kv(blockIdx.z % s.K) {}

    __device__ int query(int row) const { return row / G; }

    __device__ int head(int row) const { return kv * G + row % G; }

    // Where a row stands among all (B, H, T).
    __device__ int64 index(int row) const { return ((int64)b * H + head(row)) * T + query(row); }

    __device__ int64 at(const Axes& axes, int row) const {
        return b * axes.batch + head(row) * axes.head + query(row) * axes.row;
    }

    // The number of keys that no row before `end` sees past: the last query is aligned with the last key.
    __device__ int keys_seen(const Shape& s, int end) const {
        return s.causal ? S - T + query(min(end, count) - 1) + 1 : S;
    }
};

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

// Scale the products of a row and a key, add the bias, and hide what the row may not see behind −∞.
__device__ __forceinline__ float score(
    float z, int row, int key, int end, const unsigned char* mask, const float* bias, const Shape& s, const Rows& rows) {
    bool seen = row < rows.count && key < end && (!s.causal || key <= rows.S - s.T + rows.query(row));
    if (seen && mask) seen = mask[rows.at(s.mask, row) + key * s.mask.key];
    if (!seen) return -infinity();
    return z * s.scale + (bias ? bias[rows.at(s.bias, row) + key * s.bias.key] : 0.0f);
}
