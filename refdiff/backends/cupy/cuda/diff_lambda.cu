// λ = exp(λ_q1 · λ_k1) − exp(λ_q2 · λ_k2) + λ_init, in one launch where the layer's steps are eight.
//
// One block of 32 threads.

#include "numbers.cuh"

extern "C" __global__ void diff_lambda(
    const float* q1, const float* k1, const float* q2, const float* k2, float* lambda, int size, float init) {
    float first = 0.0f, second = 0.0f;
    for (int i = threadIdx.x; i < size; i += 32) {
        first += q1[i] * k1[i];
        second += q2[i] * k2[i];
    }
    first = sum_over(first, 32);
    second = sum_over(second, 32);
    if (threadIdx.x == 0) *lambda = expf(first) - expf(second) + init;
}
