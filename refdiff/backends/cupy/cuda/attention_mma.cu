// Prefill on tensor cores: what attention.cu computes of one split, with q, k, v and the weights of the softmax rounded to
// TILE, 16 bits; scores, sums and the result are in float32.
//
// The compiler is told NUMBER, TILE, MAPS, D, E, ROWS and KEYS, these two multiples of 16. A block has a warp for each 16
// rows, and up to 128 columns of the values. In a warp, thread (g, t) has rows g and g + 8 of its 16, as mma.cuh says.
//
// Grid (tiles of rows, columns of values / COLUMNS, B K), 2 ROWS threads. out (B, T, H, E).

#include "attention_rows.cuh"
#include "mma.cuh"

const int COLUMNS = E < 128 ? (E + 7) / 8 * 8 : 128;
const int WIDTH = (D + 15) / 16 * 16;  // of a query, with zeros up to whole matrices
const int STRIDE = WIDTH + 8;          // so that the rows of a matrix lie in different banks
const int STRIDE_V = KEYS + 8;
const int N = KEYS / 8;     // matrices of scores beside each other
const int M = COLUMNS / 8;  // of the result

__device__ __forceinline__ TILE narrow(NUMBER x) {
    TILE y;
    store(widen(x), &y);
    return y;
}

__device__ void load_queries(TILE* tile, const NUMBER* x, const Shape& s, const Rows& rows, int first) {
    for (int i = threadIdx.x; i < ROWS * WIDTH; i += 2 * ROWS) {
        const int r = i / WIDTH, c = i % WIDTH;
        tile[r * STRIDE + c] = first + r < rows.count && c < D ? narrow(x[rows.at(s.q, first + r) + c]) : TILE{0};
    }
}

__device__ void load_keys(TILE* tile, const NUMBER* x, const Shape& s, const Rows& rows, int first, int end) {
    const NUMBER* head = x + rows.b * s.k.batch + rows.kv * s.k.head;
    for (int i = threadIdx.x; i < KEYS * WIDTH; i += 2 * ROWS) {
        const int k = i / WIDTH, c = i % WIDTH;
        tile[k * STRIDE + c] = first + k < end && c < D ? narrow(head[(first + k) * s.k.row + c]) : TILE{0};
    }
}

// Values column, column + 1, …, transposed: what is multiplied together must lie together.
__device__ void load_values(
    TILE* tile, const NUMBER* x, const Shape& s, const Rows& rows, int first, int end, int column) {
    const NUMBER* head = x + rows.b * s.v.batch + rows.kv * s.v.head + column;
    for (int i = threadIdx.x; i < KEYS * COLUMNS; i += 2 * ROWS) {
        const int k = i / COLUMNS, c = i % COLUMNS;
        tile[c * STRIDE_V + k] = first + k < end && column + c < E ? narrow(head[(first + k) * s.v.row + c]) : TILE{0};
    }
}

extern "C" __global__ void __launch_bounds__(2 * ROWS) attention_mma(
    const NUMBER* q1, const NUMBER* k1, const NUMBER* q2, const NUMBER* k2, const NUMBER* v, const float* lambda,
    const unsigned char* mask1, const unsigned char* mask2, const float* bias1, const float* bias2,
    NUMBER* out, const Shape s) {
    const Rows rows(s);
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const int first = (gridDim.x - 1 - blockIdx.x) * ROWS, column = blockIdx.y * COLUMNS;
    const int end = rows.keys_seen(s, first + ROWS);

    extern __shared__ float shared[];
    TILE* queries = (TILE*)shared;                  // MAPS × ROWS × STRIDE
    TILE* keys = queries + MAPS * ROWS * STRIDE;    // MAPS × KEYS × STRIDE
    TILE* values = keys + MAPS * KEYS * STRIDE;     // COLUMNS × STRIDE_V
    for (int m = 0; m < MAPS; m++) load_queries(queries + m * ROWS * STRIDE, m ? q2 : q1, s, rows, first);

    float top[MAPS][2], sum[MAPS][2];
    C o[MAPS][M];
#pragma unroll
    for (int m = 0; m < MAPS; m++) {
        top[m][0] = top[m][1] = -infinity();
        sum[m][0] = sum[m][1] = 0.0f;
#pragma unroll
        for (int e = 0; e < M; e++) o[m][e] = C{{0.0f, 0.0f, 0.0f, 0.0f}};
    }

    for (int key = 0; key < end; key += KEYS) {
        __syncthreads();  // all have used the tile before
        for (int m = 0; m < MAPS; m++) load_keys(keys + m * KEYS * STRIDE, m ? k2 : k1, s, rows, key, end);
        load_values(values, v, s, rows, key, end, column);
        __syncthreads();

#pragma unroll
        for (int m = 0; m < MAPS; m++) {
            C z[N];
#pragma unroll
            for (int j = 0; j < N; j++) z[j] = C{{0.0f, 0.0f, 0.0f, 0.0f}};
#pragma unroll 2  // more, and a thread's sums do not stay in its registers
            for (int c = 0; c < WIDTH; c += 16) {
                const A a = load_a(queries + (m * ROWS + 16 * warp) * STRIDE + c, STRIDE);
#pragma unroll
                for (int j = 0; j < N; j++)
                    multiply_add(z[j], a, load_b(keys + (m * KEYS + 8 * j) * STRIDE + c, STRIDE), TILE());
            }
#pragma unroll
            for (int i = 0; i < 2; i++) {  // rows g and g + 8
                const int row = first + 16 * warp + g + 8 * i;
                float highest = top[m][i];
#pragma unroll
                for (int j = 0; j < 2 * N; j++) {  // keys 2 t and 2 t + 1 of each eight
                    float& of = z[j / 2].of[2 * i + j % 2];
                    of = score(
                        of, row, key + 8 * (j / 2) + 2 * t + j % 2, end, m ? mask2 : mask1, m ? bias2 : bias1, s, rows);
                    highest = fmaxf(highest, of);
                }
                highest = max_over(highest, 4);
                const float base = highest == -infinity() ? 0.0f : highest;  // a row that has seen nothing yet
                const float shrink = expf(top[m][i] - base);
                top[m][i] = highest;
                sum[m][i] *= shrink;
#pragma unroll
                for (int e = 0; e < M; e++) {
                    o[m][e].of[2 * i] *= shrink;
                    o[m][e].of[2 * i + 1] *= shrink;
                }
#pragma unroll
                for (int j = 0; j < 2 * N; j++) {
                    float& p = z[j / 2].of[2 * i + j % 2];
                    p = expf(p - base);
                    sum[m][i] += p;  // of this thread's keys; those of its neighbours are added at the end
                }
            }
#pragma unroll
            for (int j = 0; j < N; j += 2) {
                const float *low = z[j].of, *high = z[j + 1].of;
                const A p = {{pack(low[0], low[1]), pack(low[2], low[3]), pack(high[0], high[1]), pack(high[2], high[3])}};
#pragma unroll
                for (int e = 0; e < M; e++)
                    multiply_add(o[m][e], p, load_b(values + 8 * e * STRIDE_V + 8 * j, STRIDE_V), TILE());
            }
        }
    }

#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int row = first + 16 * warp + g + 8 * i;
#pragma unroll
        for (int m = 0; m < MAPS; m++) sum[m][i] = sum_over(sum[m][i], 4);
        if (row >= rows.count) continue;
        const float share1 = sum[0][i] == 0.0f ? 0.0f : 1.0f / sum[0][i];
        float share2 = 0.0f;
        if (MAPS == 2) share2 = sum[MAPS - 1][i] == 0.0f ? 0.0f : lambda[rows.at(s.lambda, row)] / sum[MAPS - 1][i];
        NUMBER* to = out + (((int64)rows.b * s.T + rows.query(row)) * s.H + rows.head(row)) * E;
#pragma unroll
        for (int e = 0; e < M; e++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const int at = column + 8 * e + 2 * t + j;
                float x = share1 * o[0][e].of[2 * i + j];
                if (MAPS == 2) x -= share2 * o[MAPS - 1][e].of[2 * i + j];
                if (at < E) store(x, to + at);
            }
    }
}
