// Rotate each pair of dimensions: (a, b) -> (a cos − b sin, b cos + a sin), pairs in halves or interleaved.
//
// A block for each row (b, h, t) of x, laid out as its strides say; y is (B, T, H, size), as the projections lie, so that
// a view of it is (B, H, T, size). cos and sin (B or 1, T, turning) are float32; what is past 2 · turning is copied.

#include "numbers.cuh"

extern "C" __global__ void rope(
    const NUMBER* x, const float* cosines, const float* sines, NUMBER* y, int64 x_batch, int64 x_head, int64 x_row,
    int64 angles_batch, int heads, int tokens, int size, int turning, int interleaved) {
    const int t = blockIdx.x, h = blockIdx.y, b = blockIdx.z;
    x += b * x_batch + h * x_head + t * x_row;
    y += (((int64)b * tokens + t) * heads + h) * size;
    const float* cosine = cosines + b * angles_batch + (int64)t * turning;
    const float* sine = sines + b * angles_batch + (int64)t * turning;
    for (int i = threadIdx.x; i < turning; i += blockDim.x) {
        const int first = interleaved ? 2 * i : i, second = interleaved ? 2 * i + 1 : i + turning;
        const float p = widen(x[first]), q = widen(x[second]);
        store(p * cosine[i] - q * sine[i], y + first);
        store(q * cosine[i] + p * sine[i], y + second);
    }
    for (int i = 2 * turning + threadIdx.x; i < size; i += blockDim.x) y[i] = x[i];
}
