// The way back through attention.cu, with the scores computed anew from what the forward pass left: with P = A₁ − λ A₂
// and G = g Vᵀ, ∂L/∂V = Pᵀ g, ∂L/∂S₁ = A₁ ⊙ (G − rowsum(G ⊙ A₁)), ∂L/∂S₂ = −λ A₂ ⊙ (G − rowsum(G ⊙ A₂)), and
// rowsum(G ⊙ A) = g · (A V), which needs no row of scores (Dao et al. 2022, section B.4).
//
// `row_sums` makes of `partial` (one split) what the others need of each row; `to_queries` goes through the keys that a
// tile of rows sees, `to_keys` through the rows that see a tile of keys, so that no two blocks add to one place.

#include "attention.cuh"

const int CD = (D + 15) / 16, CE = (E + 15) / 16;

// Of one map of one row: A = exp(S − top) · share, and pull = rowsum(G ⊙ A).
struct Sums {
    float top, share, pull;
};

// Grid (B H T), 32 threads. sums (B H T, MAPS); dlambda (B H T), or null.
extern "C" __global__ void row_sums(
    const float* partial, const NUMBER* g, Sums* sums, float* dlambda, const Axes axes, const Shape s) {
    const int64 row = blockIdx.x;
    const int t = row % s.T, h = row / s.T % s.H, b = row / s.T / s.H;
    const NUMBER* gradient = g + b * axes.batch + h * axes.head + t * axes.row;
    for (int m = 0; m < MAPS; m++) {
        const float* part = partial + (row * MAPS + m) * (E + 2);
        float pull = 0.0f, share = part[1] == 0.0f ? 0.0f : 1.0f / part[1];
        for (int e = threadIdx.x; e < E; e += 32) pull += widen(gradient[e]) * (part[2 + e] * share);
        pull = sum_over(pull, 32);
        if (threadIdx.x == 0) {
            sums[row * MAPS + m] = Sums{part[0] == -infinity() ? 0.0f : part[0], share, pull};
            if (m == 1 && dlambda) dlambda[row] = -pull;
        }
    }
}

// What a block keeps in shared memory.
struct Tiles {
    float *queries, *keys, *values, *gradients, *scores, *weights;

    __device__ Tiles(float* shared) {
        queries = shared;                              // MAPS × ROWS × (D + 1)
        keys = queries + MAPS * ROWS * (D + 1);        // MAPS × KEYS × (D + 1)
        values = keys + MAPS * KEYS * (D + 1);         // KEYS × (E + 1)
        gradients = values + KEYS * (E + 1);           // ROWS × (E + 1)
        scores = gradients + ROWS * (E + 1);           // MAPS × ROWS × (KEYS + 1)
        weights = scores + MAPS * ROWS * (KEYS + 1);   // ROWS × (KEYS + 1)
    }
};

// scores[m] ← ∂L/∂S_m / √d and weights ← P for the rows and keys in the tiles.
__device__ void through_softmax(
    const Tiles& tiles, int first, int key, int end, const Sums* sums, const float* lambda, const unsigned char* mask1,
    const unsigned char* mask2, const float* bias1, const float* bias2, const Shape& s, const Rows& rows) {
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    float gv[I][J], p[I][J];
    products<E>(gv, tiles.gradients, tiles.values);
    for (int i = 0; i < I; i++)
        for (int j = 0; j < J; j++) p[i][j] = 0.0f;
    for (int m = 0; m < MAPS; m++) {
        float z[I][J];
        products<D>(z, tiles.queries + m * ROWS * (D + 1), tiles.keys + m * KEYS * (D + 1));
        for (int i = 0; i < I; i++) {
            int row = first + y + 16 * i;
            bool there = row < rows.count;
            Sums of = there ? sums[rows.index(row) * MAPS + m] : Sums{0.0f, 0.0f, 0.0f};
            float sign = m == 0 ? 1.0f : there ? -lambda[rows.at(s.lambda, row)] : 0.0f;
            for (int j = 0; j < J; j++) {
                float shown = score(
                    z[i][j], row, key + x + 16 * j, end, m ? mask2 : mask1, m ? bias2 : bias1, s, rows);
                float a = sign * expf(shown - of.top) * of.share;
                p[i][j] += a;
                tiles.scores[(m * ROWS + y + 16 * i) * (KEYS + 1) + x + 16 * j] = a * (gv[i][j] - of.pull) * s.scale;
            }
        }
    }
    for (int i = 0; i < I; i++)
        for (int j = 0; j < J; j++) tiles.weights[(y + 16 * i) * (KEYS + 1) + x + 16 * j] = p[i][j];
}

// Grid (tiles of rows, 1, B K), 256 threads. dq1, dq2 (B, H, T, D).
extern "C" __global__ void __launch_bounds__(THREADS, 2) to_queries(
    const NUMBER* g, const NUMBER* q1, const NUMBER* k1, const NUMBER* q2, const NUMBER* k2, const NUMBER* v,
    const float* lambda, const unsigned char* mask1, const unsigned char* mask2, const float* bias1, const float* bias2,
    const Sums* sums, NUMBER* dq1, NUMBER* dq2, const Axes axes, const Shape s) {
    const Rows rows(s);
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    const int first = (gridDim.x - 1 - blockIdx.x) * ROWS, end = rows.keys_seen(s, first + ROWS);
    extern __shared__ float shared[];
    const Tiles tiles(shared);
    for (int m = 0; m < MAPS; m++)
        load_rows<D, D + 1>(tiles.queries + m * ROWS * (D + 1), m ? q2 : q1, s.q, rows, first);
    load_rows<E, E + 1>(tiles.gradients, g, axes, rows, first);

    float dq[MAPS][I][CD];
    for (int m = 0; m < MAPS; m++)
        for (int i = 0; i < I; i++)
            for (int c = 0; c < CD; c++) dq[m][i][c] = 0.0f;
    for (int key = 0; key < end; key += KEYS) {
        __syncthreads();
        for (int m = 0; m < MAPS; m++)
            load_keys<D, D + 1>(tiles.keys + m * KEYS * (D + 1), m ? k2 : k1, s.k, rows, key, end);
        load_keys<E, E + 1>(tiles.values, v, s.v, rows, key, end);
        __syncthreads();
        through_softmax(tiles, first, key, end, sums, lambda, mask1, mask2, bias1, bias2, s, rows);
        __syncwarp();
        for (int k = 0; k < KEYS; k++)
#pragma unroll  // so that each sum has a register
            for (int m = 0; m < MAPS; m++)
#pragma unroll
                for (int c = 0; c < CD; c++) {
                    float column = x + 16 * c < D ? tiles.keys[(m * KEYS + k) * (D + 1) + x + 16 * c] : 0.0f;
                    for (int i = 0; i < I; i++)
                        dq[m][i][c] += tiles.scores[(m * ROWS + y + 16 * i) * (KEYS + 1) + k] * column;
                }
    }
#pragma unroll
    for (int m = 0; m < MAPS; m++)
        for (int i = 0; i < I; i++)
#pragma unroll
            for (int c = 0; c < CD; c++) {
                int row = first + y + 16 * i;
                if (row < rows.count && x + 16 * c < D)
                    store(dq[m][i][c], (m ? dq2 : dq1) + rows.index(row) * D + x + 16 * c);
            }
}

// Grid (tiles of keys, 1, B K), 256 threads. dk1, dk2 (B, K, S, D), dv (B, K, S, E).
extern "C" __global__ void __launch_bounds__(THREADS) to_keys(
    const NUMBER* g, const NUMBER* q1, const NUMBER* k1, const NUMBER* q2, const NUMBER* k2, const NUMBER* v,
    const float* lambda, const unsigned char* mask1, const unsigned char* mask2, const float* bias1, const float* bias2,
    const Sums* sums, NUMBER* dk1, NUMBER* dk2, NUMBER* dv, const Axes axes, const Shape s) {
    const Rows rows(s);
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    const int key = blockIdx.x * KEYS, end = min(key + KEYS, s.S);
    extern __shared__ float shared[];
    const Tiles tiles(shared);
    for (int m = 0; m < MAPS; m++)
        load_keys<D, D + 1>(tiles.keys + m * KEYS * (D + 1), m ? k2 : k1, s.k, rows, key, end);
    load_keys<E, E + 1>(tiles.values, v, s.v, rows, key, end);

    float dk[MAPS][J][CD], dvalue[J][CE];
    for (int j = 0; j < J; j++) {
        for (int m = 0; m < MAPS; m++)
            for (int c = 0; c < CD; c++) dk[m][j][c] = 0.0f;
        for (int c = 0; c < CE; c++) dvalue[j][c] = 0.0f;
    }
    const int earliest = s.causal ? max(key - (s.S - s.T), 0) * rows.G : 0;  // rows before it see none of these keys
    for (int first = earliest; first < rows.count; first += ROWS) {
        __syncthreads();
        for (int m = 0; m < MAPS; m++)
            load_rows<D, D + 1>(tiles.queries + m * ROWS * (D + 1), m ? q2 : q1, s.q, rows, first);
        load_rows<E, E + 1>(tiles.gradients, g, axes, rows, first);
        __syncthreads();
        through_softmax(tiles, first, key, end, sums, lambda, mask1, mask2, bias1, bias2, s, rows);
        __syncthreads();
        for (int r = 0; r < ROWS; r++) {
#pragma unroll
            for (int m = 0; m < MAPS; m++)
                for (int c = 0; c < CD; c++) {
                    float column = x + 16 * c < D ? tiles.queries[(m * ROWS + r) * (D + 1) + x + 16 * c] : 0.0f;
                    for (int j = 0; j < J; j++)
                        dk[m][j][c] += tiles.scores[(m * ROWS + r) * (KEYS + 1) + y + 16 * j] * column;
                }
            for (int c = 0; c < CE; c++) {
                float column = x + 16 * c < E ? tiles.gradients[r * (E + 1) + x + 16 * c] : 0.0f;
                for (int j = 0; j < J; j++) dvalue[j][c] += tiles.weights[r * (KEYS + 1) + y + 16 * j] * column;
            }
        }
    }
    for (int j = 0; j < J; j++) {
        if (key + y + 16 * j >= end) continue;
        int64 at = ((int64)rows.b * s.K + rows.kv) * s.S + key + y + 16 * j;
        for (int c = 0; c < CD; c++)
            for (int m = 0; m < MAPS; m++)
                if (x + 16 * c < D) store(dk[m][j][c], (m ? dk2 : dk1) + at * D + x + 16 * c);
        for (int c = 0; c < CE; c++)
            if (x + 16 * c < E) store(dvalue[j][c], dv + at * E + x + 16 * c);
    }
}
