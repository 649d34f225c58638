"""Test vectors for kernels in any language: files with inputs, expected outputs and error budgets.

    from refdiff import oracle

    oracle.golden.export("vectors", oracle.cases("discriminating", dtype="bfloat16"))
    # your program reads vectors/case_*.safetensors and writes outputs/<case>.safetensors, or <case>.out.f32
    print(oracle.golden.verify("vectors", "outputs", diagnose=True))

A folder contains

    manifest.json              the format; for each case its spec, recipe, `blind_to` and limits, and the name, role,
                               dtype, shape, axes and offset of every tensor; the SHA-256 of every file and of the
                               manifest itself
    case_<id>.safetensors      inputs.* bit for bit in the storage dtype; for the output, each gradient and log-sum-exp
                               `expected.*` in float64 and as float32 `.hi` + `.lo`; `budget.*`, `bound.*`, `weights.*`
                               and `divisor.*` in float32
    index.txt                  the same as space-separated text, for programs without JSON: a line
                                   refdiff-golden 3 <number of cases> <CRC-32 of all that follows this line>
                               with at least one case; then for each case
                                   case <id> <file> <bytes> <CRC-32> <number of judged tensors>
                               and for each judged tensor, in one line,
                                   <name> <rows|numbers> <n> <width> <hi> <lo> <budget> <bound> <u> <row> <bulk>
                                   <element> <slope> <factor> <weights> <divisor> <half> <certain>
                               and for each input
                                   input <name> <dtype> <begin> <number of axes> <size of each axis>
                               hi, lo, budget, bound, weights, divisor, begin: byte offsets of these arrays in the file;
                               all arrays are little-endian and in row-major order; a CRC-32 is zlib's, in 8
                               hexadecimal digits

The error of y is (y − hi) − lo, which float32 can compute. A tensor of kind "rows" has n rows of `width` numbers. With
E the budget of a row, B its bound and e its errors, it passes if all of these hold; rows with infinite E are skipped:

    NaN and ±∞ are where hi has them (where lo is NaN, finite or not); the sums below are over the finite numbers
    rms(e) ≤ B                     and rms(e) ≤ row · E
    |eᵢ| ≤ element · (6 E + 2 u |hiᵢ|)
    √mean (rms(e) / E)² ≤ bulk + (row − bulk) / √n, over the n rows that are not skipped
    |Σ e y| / Σ y² ≤ slope         over all rows with E ≤ rms(y)
    |Σ w f| ≤ factor               over all rows, w their weights, f = Σ e (hi + half e) / d² / Σ (hi / d)² for a row
                                   with the divisors d, `width` of them; half is ½ after a norm, else 0

A tensor of kind "numbers" has n numbers and passes if |e| ≤ budget. If `certain` is 0, a tensor that does not fail is
inconclusive: rounding errors may hide any mistake. `tests/golden_readers` has readers in C++ and Rust.
"""

from refdiff.oracle.golden.verifying import Report, verify
from refdiff.oracle.golden.writing import export

__all__ = ["Report", "export", "verify"]
