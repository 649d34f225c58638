"""Torch in one line: an attention module as a kernel that the oracle can call, and a whole model layer by layer.

    oracle.check(oracle.torch.module(attention, spec), spec, case.inputs, recipe="bfloat16", dout=case.dout)
    print(oracle.torch.model(model, ids, attn_implementation="sdpa"))

torch is imported when one of the two is called; neither changes the module or the model that it is given.
"""

from refdiff.oracle.torch.attention_module import NAMES, TENSORS, module
from refdiff.oracle.torch.whole_model import ModelReport, model

__all__ = ["NAMES", "TENSORS", "ModelReport", "model", "module"]
