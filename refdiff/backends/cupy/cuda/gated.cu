// silu(gate) ⊙ up, with silu(x) = x / (1 + exp(−x)): the middle of SwiGLU, between its products.

#include "numbers.cuh"

extern "C" __global__ void gated(const NUMBER* gate, const NUMBER* up, NUMBER* y, int64 size) {
    const int64 step = (int64)gridDim.x * blockDim.x;
    for (int64 i = (int64)blockIdx.x * blockDim.x + threadIdx.x; i < size; i += step) {
        const float x = widen(gate[i]);
        store(x / (1.0f + expf(-x)) * widen(up[i]), y + i);
    }
}
