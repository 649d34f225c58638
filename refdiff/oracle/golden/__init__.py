"""Test vectors for kernels in any language: files with inputs, expected outputs and error budgets.

    from refdiff import oracle

    oracle.golden.export("vectors", oracle.cases("discriminating", spec=spec, dtype="bfloat16"))
    # your program reads vectors/case_*.safetensors and writes outputs/<case>.safetensors, or <case>.out.f32
    print(oracle.golden.verify("vectors", "outputs", diagnose=True))   # `check` of each case

The guide `refdiff/oracle/guides/vectors.md` describes the files, the rule by which a program can judge itself, and the
forms that other projects read: `export(..., target="pytest")`, "llama.cpp" or "flashinfer-trace".
"""

from refdiff.oracle.golden.report import Report, verify
from refdiff.oracle.golden.write import WRITERS, export

__all__ = ["WRITERS", "Report", "export", "verify"]
