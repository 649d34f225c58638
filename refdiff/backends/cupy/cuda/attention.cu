// Differential attention in one pass over keys and values: (softmax(Q₁K₁ᵀ/√d) − λ softmax(Q₂K₂ᵀ/√d)) V
// (Ye et al. 2024, eq. 1), each softmax summed up as it goes (Milakov and Gimelshein 2018; Dao et al. 2022). With
// MAPS = 1 it is plain attention, and q2, k2 and lambda are not read.
//
// Prefill: a block for each tile of rows. Decoding, where rows are few and keys many: the keys are split among blocks,
// each leaves its sums in `partial`, and `combine` adds them up (Dao et al. 2023, "Flash-Decoding").
//
// Grid (tiles of rows, splits, B K), 256 threads. out (B, T, H, E); partial (splits, B H T, MAPS, E + 2) floats: for
// each map the largest score, the sum of exp(score − largest), and the values so weighted, not yet divided by the sum.

#include "attention.cuh"

const int C = (E + 15) / 16;  // values of a thread

// The loops over what a thread keeps are unrolled, so that it is kept in registers.
extern "C" __global__ void __launch_bounds__(THREADS, 2) attention(
    const NUMBER* q1, const NUMBER* k1, const NUMBER* q2, const NUMBER* k2, const NUMBER* v, const float* lambda,
    const unsigned char* mask1, const unsigned char* mask2, const float* bias1, const float* bias2,
    NUMBER* out, float* partial, const Shape s) {
    const Rows rows(s);
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    const int first = (gridDim.x - 1 - blockIdx.x) * ROWS;  // those that see most keys start first
    const int begin = blockIdx.y * s.keys_of_a_split;
    const int end = min(begin + s.keys_of_a_split, rows.keys_seen(s, first + ROWS));

    extern __shared__ float shared[];
    float* queries = shared;                                // MAPS × ROWS × (D + 1)
    float* keys = queries + MAPS * ROWS * (D + 1);          // MAPS × KEYS × (D + 1)
    float* values = keys + MAPS * KEYS * (D + 1);           // KEYS × E
    float* weights = values + KEYS * E;                     // MAPS × ROWS × (KEYS + 1)

#pragma unroll
    for (int m = 0; m < MAPS; m++)
        load_rows<D, D + 1>(queries + m * ROWS * (D + 1), m ? q2 : q1, s.q, rows, first);

    float top[MAPS][I], sum[MAPS][I], sums_of_values[MAPS][I][C];
#pragma unroll
    for (int m = 0; m < MAPS; m++)
#pragma unroll
        for (int i = 0; i < I; i++) {
            top[m][i] = -infinity();
            sum[m][i] = 0.0f;
#pragma unroll
            for (int c = 0; c < C; c++) sums_of_values[m][i][c] = 0.0f;
        }

    for (int key = begin; key < end; key += KEYS) {
        __syncthreads();  // all have used the tile before
#pragma unroll
        for (int m = 0; m < MAPS; m++)
            load_keys<D, D + 1>(keys + m * KEYS * (D + 1), m ? k2 : k1, s.k, rows, key, end);
        load_keys<E, E>(values, v, s.v, rows, key, end);
        __syncthreads();

#pragma unroll
        for (int m = 0; m < MAPS; m++) {
            float z[I][J];
            products<D>(z, queries + m * ROWS * (D + 1), keys + m * KEYS * (D + 1));
#pragma unroll
            for (int i = 0; i < I; i++) {
                int row = first + y + 16 * i;
                float highest = top[m][i];
#pragma unroll
                for (int j = 0; j < J; j++) {
                    z[i][j] = score(z[i][j], row, key + x + 16 * j, end, m ? mask2 : mask1, m ? bias2 : bias1, s, rows);
                    highest = fmaxf(highest, z[i][j]);
                }
                highest = max_over(highest, 16);
                float base = highest == -infinity() ? 0.0f : highest;  // a row that has seen nothing yet
                float shrink = expf(top[m][i] - base);
                top[m][i] = highest;
                sum[m][i] *= shrink;
#pragma unroll
                for (int c = 0; c < C; c++) sums_of_values[m][i][c] *= shrink;
#pragma unroll
                for (int j = 0; j < J; j++) {
                    float p = expf(z[i][j] - base);
                    sum[m][i] += p;  // of this thread's keys; those of its neighbours are added at the end
                    weights[(m * ROWS + y + 16 * i) * (KEYS + 1) + x + 16 * j] = p;
                }
            }
        }
        __syncwarp();  // a row's weights are written and read by one warp

        for (int c = 0; c < KEYS; c++) {
            float value[C];
#pragma unroll
            for (int e = 0; e < C; e++) value[e] = x + 16 * e < E ? values[c * E + x + 16 * e] : 0.0f;
#pragma unroll
            for (int m = 0; m < MAPS; m++)
#pragma unroll
                for (int i = 0; i < I; i++) {
                    float p = weights[(m * ROWS + y + 16 * i) * (KEYS + 1) + c];
#pragma unroll
                    for (int e = 0; e < C; e++) sums_of_values[m][i][e] += p * value[e];
                }
        }
    }

#pragma unroll
    for (int i = 0; i < I; i++) {
        int row = first + y + 16 * i;
#pragma unroll
        for (int m = 0; m < MAPS; m++) sum[m][i] = sum_over(sum[m][i], 16);
        if (row >= rows.count) continue;
        if (partial) {
            int64 all = (int64)gridDim.z / s.K * s.H * s.T;
#pragma unroll
            for (int m = 0; m < MAPS; m++) {
                float* part = partial + ((blockIdx.y * all + rows.index(row)) * MAPS + m) * (E + 2);
                if (x == 0) {
                    part[0] = top[m][i];
                    part[1] = sum[m][i];
                }
#pragma unroll
                for (int c = 0; c < C; c++)
                    if (x + 16 * c < E) part[2 + x + 16 * c] = sums_of_values[m][i][c];
            }
        } else {
            float share1 = sum[0][i] == 0.0f ? 0.0f : 1.0f / sum[0][i], share2 = 0.0f;
            if (MAPS == 2) share2 = sum[MAPS - 1][i] == 0.0f ? 0.0f : lambda[rows.at(s.lambda, row)] / sum[MAPS - 1][i];
            NUMBER* to = out + (((int64)rows.b * s.T + rows.query(row)) * s.H + rows.head(row)) * E;
#pragma unroll
            for (int c = 0; c < C; c++) {
                float o = share1 * sums_of_values[0][i][c];
                if (MAPS == 2) o -= share2 * sums_of_values[MAPS - 1][i][c];
                if (x + 16 * c < E) store(o, to + x + 16 * c);
            }
        }
    }
}

// Add up what the splits left. Grid (B H T), any number of threads.
extern "C" __global__ void combine(const float* partial, const float* lambda, NUMBER* out, const Shape s) {
    const int64 all = gridDim.x, row = blockIdx.x;
    const int t = row % s.T, h = row / s.T % s.H, b = row / s.T / s.H;
    float top[MAPS], sum[MAPS];
#pragma unroll
    for (int m = 0; m < MAPS; m++) {
        top[m] = -infinity();
        sum[m] = 0.0f;
        for (int i = 0; i < s.splits; i++) top[m] = fmaxf(top[m], partial[((i * all + row) * MAPS + m) * (E + 2)]);
        if (top[m] == -infinity()) top[m] = 0.0f;
        for (int i = 0; i < s.splits; i++) {
            const float* part = partial + ((i * all + row) * MAPS + m) * (E + 2);
            sum[m] += part[1] * expf(part[0] - top[m]);
        }
    }
    for (int e = threadIdx.x; e < E; e += blockDim.x) {
        float o = 0.0f;
#pragma unroll
        for (int m = 0; m < MAPS; m++) {
            float weighted = 0.0f;
            for (int i = 0; i < s.splits; i++) {
                const float* part = partial + ((i * all + row) * MAPS + m) * (E + 2);
                weighted += part[2 + e] * expf(part[0] - top[m]);
            }
            float share = sum[m] == 0.0f ? 0.0f : 1.0f / sum[m];
            if (m == 1) share *= -lambda[b * s.lambda.batch + h * s.lambda.head + t * s.lambda.row];
            o += share * weighted;
        }
        store(o, out + (((int64)b * s.T + t) * s.H + h) * E + e);
    }
}
