// The way back through rms_norm.cu: with r = 1 / √(mean x² + ε), x̂ = r x and h = g ⊙ w,
// ∂L/∂x = r (h − x̂ mean(h ⊙ x̂)) and ∂L/∂w = Σ_rows g ⊙ x̂.
//
// `to_rows` has a block for each row, as rms_norm has, and leaves r of each. `to_weight` sums over rows: a block for 32
// columns and a share of the rows, whose sums it leaves in `partial`, so that no two blocks add to one place.

#include "numbers.cuh"

// Grid (rows), a power of two of threads from 32 on, 8 bytes of shared memory for each warp. roots (rows).
extern "C" __global__ void __launch_bounds__(1024) to_rows(
    const NUMBER* g, const NUMBER* x, const WEIGHT* weight, NUMBER* dx, float* roots, int size, float eps) {
    extern __shared__ float shared[];
    const int warps = blockDim.x / 32, warp = threadIdx.x / 32;
    g += (int64)blockIdx.x * size;
    x += (int64)blockIdx.x * size;
    dx += (int64)blockIdx.x * size;
    float squares = 0.0f, pull = 0.0f;  // Σ x² and Σ h x
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
        squares += widen(x[i]) * widen(x[i]);
        pull += widen(g[i]) * (weight ? widen(weight[i]) : 1.0f) * widen(x[i]);
    }
    squares = sum_over(squares, 32);
    pull = sum_over(pull, 32);
    if (threadIdx.x % 32 == 0) {
        shared[warp] = squares;
        shared[warps + warp] = pull;
    }
    __syncthreads();
    squares = pull = 0.0f;
    for (int i = 0; i < warps; i++) {
        squares += shared[i];
        pull += shared[warps + i];
    }
    const float r = 1.0f / sqrtf(squares / size + eps);
    const float mean = r * pull / size;  // of h ⊙ x̂
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
        const float h = widen(g[i]) * (weight ? widen(weight[i]) : 1.0f);
        store(r * (h - widen(x[i]) * r * mean), dx + i);
    }
    if (threadIdx.x == 0) roots[blockIdx.x] = r;
}

// Grid (columns / 32, shares of rows), 256 threads: 32 columns × 8 rows at a time. partial (shares, size).
extern "C" __global__ void to_weight(
    const NUMBER* g, const NUMBER* x, const float* roots, float* partial, int rows, int size) {
    extern __shared__ float shared[];  // one of each thread
    const int column = blockIdx.x * 32 + threadIdx.x % 32, y = threadIdx.x / 32;
    float sum = 0.0f;
    for (int row = blockIdx.y * 8 + y; row < rows && column < size; row += gridDim.y * 8)
        sum += widen(g[(int64)row * size + column]) * (widen(x[(int64)row * size + column]) * roots[row]);
    shared[threadIdx.x] = sum;
    __syncthreads();
    if (y > 0 || column >= size) return;
    for (int i = 1; i < 8; i++) sum += shared[32 * i + threadIdx.x];
    partial[(int64)blockIdx.y * size + column] = sum;
}
