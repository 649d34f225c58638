"""Torch adapters: `module` turns an attention module into a kernel, `model` checks a whole model point by point.

    oracle.check(oracle.torch.module(attention, spec), spec, case.inputs, recipe="bfloat16", dout=case.dout)
    print(oracle.torch.model(model, ids, attn_implementation="sdpa"))

Both import torch when they are called. Neither changes the module or model.
"""

from refdiff.oracle.torch.attention_module import NAMES, TENSORS, module
from refdiff.oracle.torch.whole_model import ModelReport, model

__all__ = ["NAMES", "TENSORS", "ModelReport", "model", "module"]
