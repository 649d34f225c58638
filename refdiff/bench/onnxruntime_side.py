"""ONNX Runtime's product, as it is measured: a constant weight, which it packs when a session is made."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from refdiff.bench.side import FloatArray, ProductSide, UnavailableError


class OnnxRuntimeSide(ProductSide):
    """MatMul on the CPU."""

    def prepare(self) -> dict[str, Any]:
        """Import onnx, which writes the graph, and onnxruntime, which runs it.

        Raises:
            UnavailableError: one of them is not installed.
        """
        try:
            self._onnx: Any = importlib.import_module("onnx")
            self._runtime: Any = importlib.import_module("onnxruntime")
        except ImportError as error:
            raise UnavailableError(
                f"--against onnxruntime needs onnxruntime and onnx (pip install 'refdiff[bench]'): {error}"
            ) from None
        return {}

    def hold(self, weight: FloatArray) -> Callable[[FloatArray], Any]:
        """Make a session of one node."""
        helper, number = self._onnx.helper, self._onnx.TensorProto.FLOAT
        outputs, inputs = weight.shape
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "product",
            [helper.make_tensor_value_info("x", number, ["n", inputs])],
            [helper.make_tensor_value_info("y", number, ["n", outputs])],
            [self._onnx.numpy_helper.from_array(np.ascontiguousarray(weight.T), "w")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = self.settings.threads
        session = self._runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return lambda x: session.run(None, {"x": x})[0]
