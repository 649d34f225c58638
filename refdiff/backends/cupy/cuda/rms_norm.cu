// y = factor · x / √(mean x² + ε) ⊙ w, squares summed in float32 whatever the numbers are.
//
// A block for each row of `size` numbers; its threads, a power of two from 32 on, take each its share. NUMBER is that
// of x and y, WEIGHT that of the weight, which may be null.

#include "numbers.cuh"

extern "C" __global__ void __launch_bounds__(1024) rms_norm(
    const NUMBER* x, const WEIGHT* weight, NUMBER* y, int size, float eps, float factor) {
    extern __shared__ float shared[];  // one of each warp
    x += (int64)blockIdx.x * size;
    y += (int64)blockIdx.x * size;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < size; i += blockDim.x) squares += widen(x[i]) * widen(x[i]);
    squares = sum_over(squares, 32);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = squares;
    __syncthreads();
    float total = 0.0f;
    for (int warp = 0; warp < blockDim.x / 32; warp++) total += shared[warp];
    const float root = sqrtf(total / size + eps);
    for (int i = threadIdx.x; i < size; i += blockDim.x)
        store(widen(x[i]) / root * factor * (weight ? widen(weight[i]) : 1.0f), y + i);
}
