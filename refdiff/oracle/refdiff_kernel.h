/* A kernel of attention in a shared library: refdiff judge libmine.so --symbol attend calls it, and in Python
   oracle.from_c("libmine.so", "attend"). */
#ifndef REFDIFF_KERNEL_H
#define REFDIFF_KERNEL_H
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

enum { REFDIFF_FLOAT32, REFDIFF_FLOAT16, REFDIFF_BFLOAT16, REFDIFF_FLOAT64, REFDIFF_INT64, REFDIFF_INT32, REFDIFF_BOOL };
enum { REFDIFF_DONE, REFDIFF_DECLINED }; /* what a kernel returns; any other number is an error */

typedef struct {
    const char *name;       /* q (B, H, T, d), k, v, lambda_q1, mask, ...; out, lse1, dq, ... are for you to fill */
    void *data;             /* in the memory of the host */
    const int64_t *shape;
    const int64_t *strides; /* in elements, not bytes; an input may have any */
    int32_t dtype, ndim;
} refdiff_array;

/* Fill the outputs that you compute; those left alone (NaN) are not judged, except out.
   spec: the fields of a Spec as a JSON object; a kernel with one spec compiled in need not read it. */
typedef int32_t refdiff_kernel(const char *spec, const refdiff_array *inputs, int32_t n_inputs,
                               const refdiff_array *outputs, int32_t n_outputs);

static inline const refdiff_array *refdiff_find(const refdiff_array *arrays, int32_t n, const char *name) {
    for (int32_t i = 0; i < n; i++) {
        const char *a = arrays[i].name, *b = name;
        while (*a && *a == *b) a++, b++;
        if (*a == *b) return &arrays[i];
    }
    return 0;
}

#ifdef __cplusplus
}
#endif
#endif
