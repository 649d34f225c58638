// y = x Wᵀ + b for few rows of x and weights kept as they are stored: what decoding spends its time on.
//
// Each warp takes one row of W, reads it once, 8 numbers a thread at a time where it may, and multiplies it by up to
// ROWS rows of x, summed in float32. x, which every warp reads, comes 4 numbers at a time: one by one, the cache would
// be asked four times as often, the threads being 8 numbers apart. Grid (rows of all W / 8 · rows of x / ROWS), 256
// threads; blocks with the same rows of W are neighbours, so that all but the first find them in the cache. NUMBER is
// that of x and y.

#include "numbers.cuh"

struct __align__(8 * sizeof(WEIGHT)) Eight {
    WEIGHT of[8];
};

struct __align__(4 * sizeof(NUMBER)) Four {
    NUMBER of[4];
};

// Multiply a row of W by the rows of x from `first` on; every thread of the warp gets the sums.
__device__ __forceinline__ void products(
    float (&sum)[ROWS], const WEIGHT* w, const NUMBER* x, int first, int rows, int inputs) {
    const int lane = threadIdx.x % 32;
    for (int r = 0; r < ROWS; r++) sum[r] = 0.0f;
    // a row of 8 n numbers starts where 8 can be read at once, if the first one does
    const bool starts = (size_t)w % sizeof(Eight) == 0 && (size_t)x % sizeof(Four) == 0;
    const int whole = inputs % 8 == 0 && starts ? inputs : 0;
    for (int i = 8 * lane; i < whole; i += 8 * 32) {
        const Eight eight = *(const Eight*)(w + i);
        for (int r = 0; r < ROWS; r++) {
            if (first + r >= rows) continue;
            const Four* fours = (const Four*)(x + (int64)(first + r) * inputs + i);
            const Four low = fours[0], high = fours[1];
            for (int j = 0; j < 4; j++) sum[r] += widen(eight.of[j]) * widen(low.of[j]);
            for (int j = 0; j < 4; j++) sum[r] += widen(eight.of[4 + j]) * widen(high.of[j]);
        }
    }
    for (int i = whole + lane; i < inputs; i += 32)
        for (int r = 0; r < ROWS; r++)
            if (first + r < rows) sum[r] += widen(w[i]) * widen(x[(int64)(first + r) * inputs + i]);
    for (int r = 0; r < ROWS; r++) sum[r] = sum_over(sum[r], 32);
}

// Up to three weights of one x; those that are not there have no outputs.
extern "C" __global__ void linear(
    const NUMBER* x, const WEIGHT* weight, const float* bias, NUMBER* y, int outputs,
    const WEIGHT* weight2, const float* bias2, NUMBER* y2, int outputs2,
    const WEIGHT* weight3, const float* bias3, NUMBER* y3, int outputs3, int rows, int inputs) {
    const int tiles = (rows + ROWS - 1) / ROWS, first = blockIdx.x % tiles * ROWS;
    int output = blockIdx.x / tiles * 8 + threadIdx.x / 32;
    if (output >= outputs) output -= outputs, weight = weight2, bias = bias2, y = y2, outputs = outputs2;
    if (output >= outputs) output -= outputs, weight = weight3, bias = bias3, y = y3, outputs = outputs3;
    if (output >= outputs) return;  // the whole warp
    float sum[ROWS];
    products(sum, weight + (int64)output * inputs, x, first, rows, inputs);
    for (int r = 0; r < ROWS; r++)
        if (threadIdx.x % 32 == 0 && first + r < rows)
            store(sum[r] + (bias ? bias[output] : 0.0f), y + (int64)(first + r) * outputs + output);
}

// silu(x W_Gᵀ + b_G) ⊙ (x W_1ᵀ + b_1), with silu(z) = z / (1 + exp(−z)): the first half of SwiGLU.
extern "C" __global__ void gated_linear(
    const NUMBER* x, const WEIGHT* gate, const float* gate_bias, const WEIGHT* up, const float* up_bias, NUMBER* y,
    int rows, int outputs, int inputs) {
    const int tiles = (rows + ROWS - 1) / ROWS, first = blockIdx.x % tiles * ROWS;
    const int output = blockIdx.x / tiles * 8 + threadIdx.x / 32;
    if (output >= outputs) return;  // the whole warp
    float of_gate[ROWS], of_up[ROWS];
    products(of_gate, gate + (int64)output * inputs, x, first, rows, inputs);
    products(of_up, up + (int64)output * inputs, x, first, rows, inputs);
    for (int r = 0; r < ROWS; r++)
        if (threadIdx.x % 32 == 0 && first + r < rows) {
            const float z = of_gate[r] + (gate_bias ? gate_bias[output] : 0.0f);
            const float u = of_up[r] + (up_bias ? up_bias[output] : 0.0f);
            store(z / (1.0f + expf(-z)) * u, y + (int64)(first + r) * outputs + output);
        }
}
