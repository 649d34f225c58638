"""Torch adapter: `module` turns an attention module into a kernel. It imports torch when it is called.

    oracle.check(oracle.torch.module(attention, spec), spec, case.inputs, recipe="bfloat16", dout=case.dout)

The module stays as it is. A whole model is compared point by point: `oracle.hooks` and `oracle.first_divergence`.
"""

from refdiff.oracle.torch.attention_module import NAMES, TENSORS, module

__all__ = ["NAMES", "TENSORS", "module"]
