// From logits to one token a row, so that its number is all that leaves the device: the most likely, or one drawn after
// temperature, top-k, top-p and min-p, in this order and with the results of refdiff/generation/sampling.py.
//
// A block for each row; its threads, a power of two, take V numbers in turn, or an equal run of them each where order
// matters. Sums are in float64, as on the host. Scores keep their order as integers, so that the most likely token is
// the largest of numbers that carry their places, found in one pass, and a threshold is found from its highest bits on,
// two bits a pass. A row that no token can be chosen by gets −1.

#include "numbers.cuh"

// What lies above what as numbers does so as integers, and −0 is 0; −inf is the least of them.
__device__ __forceinline__ unsigned rank_of(float x) {
    const unsigned bits = __float_as_uint(x);
    return bits & 0x80000000 ? 0u - bits : bits | 0x80000000;
}

// The largest over all threads of a block; every one gets it.
__device__ unsigned long long block_max(unsigned long long x, unsigned long long* most) {
    most[threadIdx.x] = x;
    for (int step = blockDim.x / 2; step > 0; step /= 2) {
        __syncthreads();
        if (threadIdx.x < step) most[threadIdx.x] = max(most[threadIdx.x], most[threadIdx.x + step]);
    }
    __syncthreads();
    return most[0];
}

// The sum over all threads of a block; every one gets it.
__device__ double block_sum(double x, double* sums) {
    __syncthreads();
    sums[threadIdx.x] = x;
    for (int step = blockDim.x / 2; step > 0; step /= 2) {
        __syncthreads();
        if (threadIdx.x < step) sums[threadIdx.x] += sums[threadIdx.x + step];
    }
    __syncthreads();
    return sums[0];
}

// The same of three numbers at once; they stay in registers.
template <class NUMBERS>
__device__ __forceinline__ void block_sums(NUMBERS* x, double* shared) {
    NUMBERS* sums = (NUMBERS*)shared;
    __syncthreads();
    for (int k = 0; k < 3; k++) sums[3 * threadIdx.x + k] = x[k];
    for (int step = blockDim.x / 2; step > 0; step /= 2) {
        __syncthreads();
        for (int k = 0; k < 3 && threadIdx.x < step; k++)
            sums[3 * threadIdx.x + k] += sums[3 * (threadIdx.x + step) + k];
    }
    __syncthreads();
    for (int k = 0; k < 3; k++) x[k] = sums[k];
}

// The sum over all threads before this one.
__device__ double sum_before(double x, double* sums) {
    __syncthreads();
    sums[threadIdx.x] = x;
    for (int step = 1; step < blockDim.x; step *= 2) {
        __syncthreads();
        const double other = threadIdx.x >= step ? sums[threadIdx.x - step] : 0.0;
        __syncthreads();
        sums[threadIdx.x] += other;
    }
    __syncthreads();
    return threadIdx.x > 0 ? sums[threadIdx.x - 1] : 0.0;
}

struct Row {
    const NUMBER* logits;
    int size;
    float top;
    double temperature;
    unsigned least;  // ranks below it are out

    __device__ float at(int i) const { return widen(logits[i]); }

    __device__ bool in(int i) const { return rank_of(at(i)) >= least; }

    __device__ double weight(int i) const { return exp(at(i) / temperature - top / temperature); }
};

// The greatest rank that at least `count` scores reach.
__device__ unsigned rank_reached_by(const Row& row, int count, double* sums) {
    unsigned rank = 0;
    for (int shift = 30; shift >= 0; shift -= 2) {
        int reached[3] = {0, 0, 0};  // a processor has far fewer units for float64 than for integers
        for (int i = threadIdx.x; i < row.size; i += blockDim.x) {
            const unsigned own = rank_of(row.at(i));
            for (unsigned k = 0; k < 3; k++) reached[k] += own >= (rank | (k + 1) << shift);
        }
        block_sums(reached, sums);
        rank |= (unsigned)((reached[0] >= count) + (reached[1] >= count) + (reached[2] >= count)) << shift;
    }
    return rank;
}

// The greatest rank below which what is in weighs no more than `mass` in all.
__device__ unsigned rank_over_mass(const Row& row, double mass, double* sums) {
    unsigned rank = 0;
    for (int shift = 30; shift >= 0; shift -= 2) {
        double below[3] = {0.0, 0.0, 0.0};
        for (int i = threadIdx.x; i < row.size; i += blockDim.x) {
            if (!row.in(i)) continue;
            const double weight = row.weight(i);
            for (unsigned k = 0; k < 3; k++)
                if (rank_of(row.at(i)) < (rank | (k + 1) << shift)) below[k] += weight;
        }
        block_sums(below, sums);
        rank |= (unsigned)((below[0] <= mass) + (below[1] <= mass) + (below[2] <= mass)) << shift;
    }
    return rank;
}

// Grid (rows), any power of two of threads, 24 bytes of shared memory for each. uniforms in [0, 1), or null for the
// most likely token. top_k = 0, top_p = 1 and min_p = 0 leave everything in.
extern "C" __global__ void __launch_bounds__(1024) choose(
    const NUMBER* logits, const double* uniforms, int64* tokens, int64 row_stride, int size, double temperature,
    int top_k, double top_p, double min_p) {
    extern __shared__ float shared[];
    double* sums = (double*)shared;
    Row row = {logits + blockIdx.x * row_stride, size, 0.0f, temperature, 0};

    // NaN ranks above all; of equal scores the first has the largest number
    unsigned long long best = 0;
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
        const unsigned rank = row.at(i) == row.at(i) ? rank_of(row.at(i)) : 0xffffffff;
        best = max(best, (unsigned long long)rank << 32 | (0xffffffff - i));
    }
    best = block_max(best, (unsigned long long*)shared);
    const unsigned highest = best >> 32, infinite = rank_of(infinity());
    const bool wrong = highest <= rank_of(-infinity()) || highest > infinite || (uniforms && highest == infinite);
    if (wrong || !uniforms) {
        if (threadIdx.x == 0) tokens[blockIdx.x] = wrong ? -1 : (int64)(0xffffffff - (unsigned)best);
        return;
    }

    if (threadIdx.x == 0) tokens[blockIdx.x] = -1;  // and so it stays where no weight is a number

    const int run = (size + blockDim.x - 1) / blockDim.x;
    const int first = min((int)threadIdx.x * run, size), last = min(first + run, size);
    row.top = __uint_as_float(highest & 0x80000000 ? highest & 0x7fffffff : 0u - highest);
    row.least = rank_of(-infinity()) + 1;
    if (top_k > 0 && top_k < size) row.least = max(row.least, rank_reached_by(row, top_k, sums));
    double ties_kept = size;  // of the scores that are the least
    if (top_p < 1.0) {
        double all = 0.0;
        for (int i = threadIdx.x; i < size; i += blockDim.x)
            if (row.in(i)) all += row.weight(i);
        const double mass = (1.0 - top_p) * block_sum(all, sums);
        // Scores below it are out; of those that equal it, as many as the mass has room for.
        const unsigned edge = max(row.least, min(rank_over_mass(row, mass, sums), highest));
        double below = 0.0, ties = 0.0, weight = 0.0;
        for (int i = threadIdx.x; i < size; i += blockDim.x) {
            if (row.in(i) && rank_of(row.at(i)) < edge) below += row.weight(i);
            if (rank_of(row.at(i)) == edge) ties += 1.0, weight += row.weight(i);
        }
        below = block_sum(below, sums);
        ties = block_sum(ties, sums);
        weight = block_sum(weight, sums);
        row.least = edge;
        const double out = weight > 0.0 ? floor((mass - below) / (weight / ties)) : 0.0;
        ties_kept = ties - max(0.0, min(out, edge == highest ? ties - 1.0 : ties));
    }

    // Of equal scores the lower index stays; then the sum of weights before each run, and where u falls.
    double ties = 0.0;
    for (int i = first; i < last; i++) ties += rank_of(row.at(i)) == row.least;
    double tie = sum_before(ties, sums), weight = 0.0;
    const double ties_before = tie;
    for (int i = first; i < last; i++) {
        if (!row.in(i) || (rank_of(row.at(i)) == row.least && tie++ >= ties_kept) || row.weight(i) < min_p) continue;
        weight += row.weight(i);
    }
    double before = sum_before(weight, sums);
    const double goal = uniforms[blockIdx.x] * block_sum(weight, sums);
    // Rounding may leave the goal at the end of all: then the last token with any weight is it.
    const double at_or_past = block_sum(weight > 0.0 && before <= goal ? 1.0 : 0.0, sums);
    const double place = sum_before(weight > 0.0 ? 1.0 : 0.0, sums);
    if (weight == 0.0 || before > goal || place != at_or_past - 1.0) return;
    int token = -1;
    tie = ties_before;
    for (int i = first; i < last; i++) {
        if (!row.in(i) || (rank_of(row.at(i)) == row.least && tie++ >= ties_kept) || row.weight(i) < min_p) continue;
        before += row.weight(i);
        if (row.weight(i) > 0.0) token = i;
        if (before > goal) break;
    }
    tokens[blockIdx.x] = token;
}
