/* Causal attention with grouped queries in float32: the preset `attention`. -DMISTAKE plants one: it reads a key too
   many. */
#include "refdiff_kernel.h"
#include <math.h>

static float at(const refdiff_array *x, int64_t b, int64_t h, int64_t t, int64_t i) {
    const int64_t *s = x->strides;
    return ((const float *)x->data)[b * s[0] + h * s[1] + t * s[2] + i * s[3]];
}

int32_t attend(const char *spec, const refdiff_array *in, int32_t n_in, const refdiff_array *out, int32_t n_out) {
    (void)spec;
    const refdiff_array *q = refdiff_find(in, n_in, "q"), *k = refdiff_find(in, n_in, "k");
    const refdiff_array *v = refdiff_find(in, n_in, "v"), *o = refdiff_find(out, n_out, "out");
    if (!q || !k || !v || n_in != 3 || q->dtype != REFDIFF_FLOAT32) return REFDIFF_DECLINED;
    int64_t B = q->shape[0], H = q->shape[1], T = q->shape[2], d = q->shape[3];
    int64_t K = k->shape[1], S = k->shape[2], e = v->shape[3];
    float *to = o->data;
    for (int64_t row = 0; row < B * H * T; row++) {
        int64_t b = row / (H * T), h = row / T % H, t = row % T, kh = h / (H / K);
        int64_t seen = t + S - T + 1;
#ifdef MISTAKE
        if (seen < S) seen++;
#endif
        float largest = -INFINITY, sum = 0;
        for (int64_t i = 0; i < e; i++) to[row * e + i] = 0;
        for (int64_t s = 0; s < seen; s++) {
            float score = 0;
            for (int64_t i = 0; i < d; i++) score += at(q, b, h, t, i) * at(k, b, kh, s, i);
            score /= sqrtf((float)d);
            float top = score > largest ? score : largest;
            float old = expf(largest - top), weight = expf(score - top);
            sum = sum * old + weight;
            for (int64_t i = 0; i < e; i++) to[row * e + i] = to[row * e + i] * old + weight * at(v, b, kh, s, i);
            largest = top;
        }
        for (int64_t i = 0; i < e && seen > 0; i++) to[row * e + i] /= sum;
    }
    return REFDIFF_DONE;
}

int32_t broken(const char *spec, const refdiff_array *in, int32_t n_in, const refdiff_array *out, int32_t n_out) {
    (void)spec, (void)in, (void)n_in, (void)out, (void)n_out;
    return 77;
}
