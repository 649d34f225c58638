"""Test vectors for kernels in any language: inputs, right answers and budgets as files.

    from refdiff import oracle

    oracle.golden.export("vectors", oracle.cases("identify", dtype="bfloat16"))
    # your program reads vectors/case_*.safetensors and writes outputs/<case>.safetensors, or <case>.out.f32
    print(oracle.golden.verify("vectors", "outputs"))

A folder has

    manifest.json              format, limits, and of each case: spec, recipe, what it is blind to, and every tensor by
                               name, role, dtype, shape and axes; the SHA-256 of every file and of the manifest itself
    case_<id>.safetensors      inputs.* bit for bit in the storage dtype; for the output, each gradient and log-sum-exp
                               `expected.*` in float64 and as float32 `.hi` + `.lo`, `budget.*`, `bound.*` in float32
    index.txt                  the same in words and numbers with spaces between, for programs without JSON: a line
                               refdiff-golden 1; then for each case
                                   case <id> <file> <bytes> <CRC-32> <number of tensors>
                               and for each of these
                                   <name> <rows|numbers> <n> <width> <hi> <lo> <budget> <bound> <u> <row> <bulk>
                                   <element> <slope> <certain>
                               in one line; hi, lo, budget, bound: where those begin in the file, in bytes

The error of y is (y − hi) − lo, which float32 can compute. In "rows" (n rows of `width` numbers), with E the budget of
a row, B its bound and e its errors, all of these hold or it fails; rows whose E is infinite are left out:

    NaN and ±∞ stand where hi has them (where lo is NaN, either may be), and other numbers count
    rms(e) ≤ B                     and rms(e) ≤ row · E
    |eᵢ| ≤ element · (6 E + 2 u |hiᵢ|)
    √mean (rms(e) / E)² ≤ bulk + (row − bulk) / √n, over the n rows that are not left out
    |Σ e y| / Σ y² ≤ slope         over all rows

In "numbers" (n of them) |e| ≤ budget. `certain` 0: what does not fail is inconclusive, as rounding may hide anything.
`tests/golden_readers` has readers in C++ and Rust that do this in 80 lines.
"""

from refdiff.oracle.golden.verifying import Report, verify
from refdiff.oracle.golden.writing import export

__all__ = ["Report", "export", "verify"]
