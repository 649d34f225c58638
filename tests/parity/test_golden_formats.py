"""Vectors for other projects, read by these projects' own packages: gguf and flashinfer-bench."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from refdiff.oracle import Spec, cases, golden
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.inputs.arrays import read_arrays
from tests.oracle.arrays import same_bits
from tests.oracle.golden.vectors import case

SPECS = {
    "attention": small_spec("attention"),
    "sinks, window, softcap": small_spec("attention").replace(sinks=True, window=4, softcap=3.0),
    **{
        name: small_spec(name).replace(rope="none")
        for name in ("hf_diffllama", "ms_v1_naive", "diff_v2", "gda", "timm")
    },
    "layer norm, from the top left": small_spec("ms_v1").replace(
        rope="none", norm="layer", window=3, softcap=2.0, sinks=True, causal="top_left"
    ),
    "given λ": small_spec("phi4flash").replace(lambda_form="given", out_scale="1 - lambda"),
}


def reader(package: str) -> ModuleType:
    """A package that reads a format; CI has all of them (noxfile.py)."""
    if os.environ.get("CI"):
        return importlib.import_module(package)
    return pytest.importorskip(package)


def test_gguf(tmp_path: Path) -> None:
    gguf = reader("gguf")
    kinds = ("whole", "half", "packed")
    golden.export(tmp_path / "files", [case(kind) for kind in kinds], target="llama.cpp")
    golden.export(tmp_path / "vectors", [case(kind) for kind in kinds])
    for kind in kinds:
        read = gguf.GGUFReader(tmp_path / "files" / f"{kind}.gguf")
        assert Spec(**json.loads(read.fields["refdiff.spec"].contents())) == case(kind).spec
        assert read.fields["refdiff.out.row"].contents() == 4
        arrays, _ = read_arrays(tmp_path / "vectors" / f"case_{kind}.safetensors")
        assert {tensor.name for tensor in read.tensors} == arrays.keys()
        for tensor in read.tensors:
            x = np.asarray(arrays[tensor.name])
            assert tuple(map(int, tensor.shape)) == (x.shape[::-1] or (1,))  # ggml's order: the fastest axis first
            x = x.astype(np.float32) if x.dtype == np.float64 else x
            data = tensor.data.view(x.dtype) if x.dtype.name == "bfloat16" else tensor.data.astype(x.dtype)
            assert same_bits(data.reshape(x.shape), x), tensor.name


def test_the_error_that_test_backend_ops_allows(tmp_path: Path) -> None:
    """Every row off by its whole allowance has this normalized squared error, and rounding has less."""
    gguf = reader("gguf")
    golden.export(tmp_path, [case("half")], target="llama.cpp", gradients=False)
    read = gguf.GGUFReader(tmp_path / "half.gguf")
    arrays = {tensor.name: tensor.data for tensor in read.tensors}
    truth, budget = arrays["expected.out"], arrays["budget.out"]
    allowed = read.fields["refdiff.out.nmse"].contents()
    farthest = truth + 4.0 * budget[..., None]
    np.testing.assert_allclose(np.sum((farthest - truth) ** 2) / np.sum(truth**2), allowed, rtol=1e-4)
    rounded = torch.tensor(truth).bfloat16().float().numpy()
    assert 0 < np.sum((rounded - truth) ** 2) / np.sum(truth**2) < allowed / 10


@pytest.mark.parametrize("name", SPECS)
def test_flashinfer_trace(tmp_path: Path, name: str) -> None:
    """flashinfer-bench reads the data set, and the references that it builds compute the truth."""
    reader("flashinfer_bench")
    from flashinfer_bench.bench.utils import gen_inputs, load_safetensors
    from flashinfer_bench.compile import BuilderRegistry
    from flashinfer_bench.data import TraceSet

    profiles = ("discriminating", "layout", "tiles")
    made = [one for profile in profiles for one in cases(profile, spec=SPECS[name], dtype="float16")]
    golden.export(tmp_path / "trace", made, target="flashinfer-trace")
    read = TraceSet.from_path(str(tmp_path / "trace"))
    compared = 0
    for name, definition in read.definitions.items():
        built = BuilderRegistry.get_instance().build_reference(definition)
        exact: dict = {}
        exec(definition.reference.replace(".to(torch.float16)", ""), exact)
        for entry in read.workloads[name]:
            loaded = load_safetensors(definition, entry.workload, tmp_path / "trace")
            inputs = gen_inputs(definition, entry.workload, "cpu", loaded)
            assert definition.get_axes_values_from_inputs(inputs) == entry.workload.axes
            blob = read.get_workload_blob_tensor(entry.workload.inputs["q"].path)
            out = built(*inputs)
            assert out.dtype == torch.float16
            torch.testing.assert_close(exact["run"](*inputs), blob["expected.out"], rtol=1e-12, atol=1e-12)
            near = (out.double() - blob["expected.out"]).square().mean(-1).sqrt() <= 4 * blob["budget.out"]
            assert near.all()
            compared += 1
    assert compared == 24
