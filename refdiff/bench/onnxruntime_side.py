"""ONNX Runtime's product, as it is measured: a constant weight, which it packs when a session is made."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
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

    def hold(self, weights: list[FloatArray]) -> Callable[[FloatArray], Any]:
        """Make one session, which has its threads once, of a node for each weight; what it reads and writes is bound.

        A session for each weight would have threads for each, and those of the last one spin while the next one works.
        """
        runtime, helper, number = self._runtime, self._onnx.helper, self._onnx.TensorProto.FLOAT
        outputs, inputs = weights[0].shape
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.settings.threads, 1
        products = {f"y{i}": f"w{i}" for i in range(len(weights))}
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", held], [result]) for result, held in products.items()],
            "products",
            [helper.make_tensor_value_info("x", number, ["n", inputs])],
            [helper.make_tensor_value_info(result, number, ["n", outputs]) for result in products],
            [self._in_a_file(held, (inputs, outputs)) for held in products.values()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        with tempfile.TemporaryDirectory(prefix="refdiff-bench-", ignore_cleanup_errors=True) as folder:
            for held, weight in zip(products.values(), weights, strict=True):
                np.ascontiguousarray(weight.T).tofile(Path(folder, held))
            Path(folder, "model.onnx").write_bytes(model.SerializeToString())
            session = runtime.InferenceSession(
                str(Path(folder, "model.onnx")), options, providers=["CPUExecutionProvider"]
            )
        bound: list[Any] = [None]

        def multiply(x: FloatArray) -> Any:
            if bound[0] is not x:
                bound[:] = x, *self._bind(session, list(products), x, outputs)
            _, binding, results = bound
            session.run_with_iobinding(binding)
            return results[-1]

        return multiply

    def _in_a_file(self, name: str, shape: tuple[int, int]) -> Any:
        """Declare a weight whose numbers are in a file of its name: in the graph they would be copied three times."""
        tensor = self._onnx.TensorProto(name=name, dims=shape, data_type=self._onnx.TensorProto.FLOAT)
        tensor.data_location = self._onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=name)
        return tensor

    def _bind(self, session: Any, names: list[str], x: FloatArray, outputs: int) -> tuple[Any, list[FloatArray]]:
        """Say once where x and the results are, which must both be kept: the binding has their addresses alone."""
        binding = session.io_binding()
        binding.bind_cpu_input("x", x)
        results = [np.empty((len(x), outputs), np.float32) for _ in names]
        for name, y in zip(names, results, strict=True):
            binding.bind_output(name, "cpu", 0, np.float32, y.shape, y.ctypes.data)
        return binding, results
