// y = x Wᵀ + b for few rows of x and a weight kept as it is stored: what decoding spends its time on.
//
// Each warp takes one row of W, reads it once, 8 numbers a thread at a time where it may, and multiplies it by up to
// ROWS rows of x, summed in float32. x, which every warp reads, comes 4 numbers at a time: one by one, the cache would
// be asked four times as often, the threads being 8 numbers apart. Grid (rows of W / 8, rows of x / ROWS), 256 threads.
// NUMBER is that of x and y.

#include "numbers.cuh"

struct __align__(8 * sizeof(WEIGHT)) Eight {
    WEIGHT of[8];
};

struct __align__(4 * sizeof(NUMBER)) Four {
    NUMBER of[4];
};

extern "C" __global__ void linear(
    const NUMBER* x, const WEIGHT* weight, const float* bias, NUMBER* y, int rows, int outputs, int inputs) {
    const int lane = threadIdx.x % 32, output = blockIdx.x * 8 + threadIdx.x / 32, first = blockIdx.y * ROWS;
    if (output >= outputs) return;  // the whole warp
    const WEIGHT* w = weight + (int64)output * inputs;
    float sum[ROWS];
    for (int r = 0; r < ROWS; r++) sum[r] = 0.0f;
    // a row of 8 n numbers starts where 8 can be read at once, if the first one does
    const bool starts = (size_t)weight % sizeof(Eight) == 0 && (size_t)x % sizeof(Four) == 0;
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
    for (int r = 0; r < ROWS; r++) {
        const float total = sum_over(sum[r], 32);
        if (lane == 0 && first + r < rows)
            store(total + (bias ? bias[output] : 0.0f), y + (int64)(first + r) * outputs + output);
    }
}
