// What a block of attention works on: how arrays lie, which rows a block has, and what of a score a row may see.
//
// The G = H / K query heads that read one key head are rows of one block: row r is query r / G of head kv G + r % G.
// A tile of rows so covers few queries, which is what causality asks for, and keys and values are read once for all G.

#include "numbers.cuh"

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

// Scale the products of a row and a key, add the bias, and hide what the row may not see behind −∞.
__device__ __forceinline__ float score(
    float z, int row, int key, int end, const unsigned char* mask, const float* bias, const Shape& s, const Rows& rows) {
    bool seen = row < rows.count && key < end && (!s.causal || key <= rows.S - s.T + rows.query(row));
    if (seen && mask) seen = mask[rows.at(s.mask, row) + key * s.mask.key];
    if (!seen) return -infinity();
    return z * s.scale + (bias ? bias[rows.at(s.bias, row) + key * s.bias.key] : 0.0f);
}
