"""Test vectors for kernels in any language: inputs, right answers and budgets as files.

    from refdiff import oracle

    oracle.golden.export("vectors", oracle.cases("discriminating", dtype="bfloat16"))
    # your program reads vectors/case_*.safetensors and writes outputs/<case>.safetensors, or <case>.out.f32
    print(oracle.golden.verify("vectors", "outputs", diagnose=True))

A folder has

    manifest.json              format, limits, and of each case: spec, recipe, what it is blind to, and every tensor by
                               name, role, dtype, shape, axes and where it begins; the SHA-256 of every file and of the
                               manifest itself
    case_<id>.safetensors      inputs.* bit for bit in the storage dtype; for the output, each gradient and log-sum-exp
                               `expected.*` in float64 and as float32 `.hi` + `.lo`; `budget.*`, `bound.*`, `weights.*`
                               and `divisor.*` in float32
    index.txt                  the same in words and numbers with spaces between, for programs without JSON: a line
                                   refdiff-golden 3 <number of cases> <CRC-32 of all that follows this line>
                               with at least one case; then for each case
                                   case <id> <file> <bytes> <CRC-32> <number of tensors that are judged>
                               and for each of these, in one line,
                                   <name> <rows|numbers> <n> <width> <hi> <lo> <budget> <bound> <u> <row> <bulk>
                                   <element> <slope> <factor> <weights> <divisor> <half> <certain>
                               and for each input
                                   input <name> <dtype> <begin> <number of axes> <size of each axis>
                               hi, lo, budget, bound, weights, divisor, begin: where those begin in the file, in bytes;
                               all arrays are little-endian and in row-major order; a CRC-32 is zlib's, in 8
                               hexadecimal digits

The error of y is (y − hi) − lo, which float32 can compute. In "rows" (n rows of `width` numbers), with E the budget of
a row, B its bound and e its errors, all of these hold or it fails; rows whose E is infinite are left out:

    NaN and ±∞ stand where hi has them (where lo is NaN, either may be), and other numbers count
    rms(e) ≤ B                     and rms(e) ≤ row · E
    |eᵢ| ≤ element · (6 E + 2 u |hiᵢ|)
    √mean (rms(e) / E)² ≤ bulk + (row − bulk) / √n, over the n rows that are not left out
    |Σ e y| / Σ y² ≤ slope         over all rows
    |Σ w f| ≤ factor               over all rows, w their weights, f = Σ e (hi + half e) / d² / Σ (hi / d)² of a row
                                   whose `width` numbers have the divisors d; half is ½ where a norm has made it, else 0

In "numbers" (n of them) |e| ≤ budget. `certain` 0: what does not fail is inconclusive, as rounding may hide anything.
`tests/golden_readers` has readers in C++ and Rust that do this in 80 lines.
"""

from refdiff.oracle.golden.verifying import Report, verify
from refdiff.oracle.golden.writing import export

__all__ = ["Report", "export", "verify"]
