// Rotate each pair of dimensions: (a, b) -> (a cos − b sin, b cos + a sin), pairs in halves or interleaved.
//
// cos and sin (B or 1, T, turning) are float32; what is past 2 · turning is copied. `rope` does one array; `rope_append`
// does what a layer does between its projections and attention: it rotates queries, rotates keys into the cache, and
// copies values into it.

#include "numbers.cuh"

__device__ void rotate(
    const NUMBER* x, NUMBER* y, const float* cosine, const float* sine, int size, int turning, int interleaved) {
    for (int i = threadIdx.x; i < turning; i += blockDim.x) {
        const int first = interleaved ? 2 * i : i, second = interleaved ? 2 * i + 1 : i + turning;
        const float p = widen(x[first]), q = widen(x[second]);
        store(p * cosine[i] - q * sine[i], y + first);
        store(q * cosine[i] + p * sine[i], y + second);
    }
    for (int i = 2 * turning + threadIdx.x; i < size; i += blockDim.x) y[i] = x[i];
}

// A block for each row (b, h, t) of x, laid out as its strides say; y is (B, T, H, size), as the projections lie, so that
// a view of it is (B, H, T, size).
extern "C" __global__ void rope(
    const NUMBER* x, const float* cosines, const float* sines, NUMBER* y, int64 x_batch, int64 x_head, int64 x_row,
    int64 angles_batch, int heads, int tokens, int size, int turning, int interleaved) {
    const int t = blockIdx.x, h = blockIdx.y, b = blockIdx.z;
    const int64 angles = b * angles_batch + (int64)t * turning;
    rotate(
        x + b * x_batch + h * x_head + t * x_row, y + (((int64)b * tokens + t) * heads + h) * size, cosines + angles,
        sines + angles, size, turning, interleaved);
}

// Distances in elements between neighbours.
struct Steps {
    int64 batch, head, row;
};

struct Append {
    const int64* length;  // where the device counts the tokens of the cache; null: there are `start`
    Steps q, k, v, keys, values;
    int64 angles_batch;
    int H, K, T, d, e, turning, interleaved, start;
};

// Grid (T, H query heads + K key heads + value heads, B). y (B, T, H, d); keys and values have room from `start` on.
extern "C" __global__ void rope_append(
    const NUMBER* q, const NUMBER* k, const NUMBER* v, const float* cosines, const float* sines, NUMBER* y,
    NUMBER* keys, NUMBER* values, const Append s) {
    const int t = blockIdx.x, h = blockIdx.y, b = blockIdx.z;
    const int64 slot = (s.length ? *s.length : s.start) + t;
    const int64 angles = b * s.angles_batch + (int64)t * s.turning;
    if (h < s.H) {
        rotate(
            q + b * s.q.batch + h * s.q.head + t * s.q.row, y + (((int64)b * s.T + t) * s.H + h) * s.d,
            cosines + angles, sines + angles, s.d, s.turning, s.interleaved);
    } else if (h < s.H + s.K) {
        const int kv = h - s.H;
        rotate(
            k + b * s.k.batch + kv * s.k.head + t * s.k.row, keys + b * s.keys.batch + kv * s.keys.head + slot * s.keys.row,
            cosines + angles, sines + angles, s.d, s.turning, s.interleaved);
    } else {
        const int kv = h - s.H - s.K;
        const NUMBER* from = v + b * s.v.batch + kv * s.v.head + t * s.v.row;
        NUMBER* to = values + b * s.values.batch + kv * s.values.head + slot * s.values.row;
        for (int i = threadIdx.x; i < s.e; i += blockDim.x) to[i] = from[i];
    }
}
