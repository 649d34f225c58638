import numpy as np
from refdiff import oracle

spec = oracle.Spec.preset("hf_diffllama", query_heads=4, key_heads=2, head_dim=8, layer=3)
case = oracle.cases("discriminating", seed=1, spec=spec)[0]

# %% Spec
print(spec.pairing, spec.norm, spec.lambda_form)
print(spec.replace(pairing="interleaved").pairing)

# %% cases, Case
print(case.name, case.dtype)
print({name: array.shape for name, array in case.inputs.items()})

# %% truth, Result
result = oracle.truth(spec, case.inputs)
print(result.out.shape, result.out.dtype, result.lse1.shape)

# %% Recipe
print(oracle.Recipe.preset("bfloat16") if hasattr(oracle.Recipe, "preset") else oracle.Recipe())

# %% budget, Budget
budget = oracle.budget(spec, case.inputs, "float32")
print({name: rows.shape for name, rows in budget.rows.items()})

# %% check, Verdict
right = oracle.truth(spec, case.inputs).out.astype(np.float32)
print(oracle.check(right, spec, case.inputs, recipe="float32"))

# %% assert_close
right = oracle.truth(spec, case.inputs).out.astype(np.float32)
oracle.assert_close(right, spec, case.inputs, recipe="float32")
try:
    oracle.assert_close(1.01 * right, spec, case.inputs, recipe="float32", diagnose=False)
except AssertionError as error:
    print(str(error).splitlines()[0])

# %% diagnose, Ranking
wrong = oracle.truth(spec.replace(pairing="interleaved"), case.inputs).out.astype(np.float32)
print(oracle.diagnose(wrong, spec, case.inputs, recipe="float32"))

# %% deviations, Mistake
for deviation in oracle.deviations(spec)[:3]:
    print(f"{deviation.name}: {deviation.what}")

# %% blind_spots
print([deviation.name for deviation in oracle.blind_spots(spec, case.inputs, "bfloat16")][:3])

# %% trace, Trace
import refdiff

trace = oracle.trace(refdiff.DiffLlamaForCausalLM.from_pretrained("bundled"), [[0, 1970, 619]])
print(len(trace.points), list(trace.points)[:3])

# %% first_divergence, Divergence
import refdiff

model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled")
ids = [[0, 1970, 619]]
print(str(oracle.first_divergence(oracle.trace(model, ids), oracle.trace(model, ids))).splitlines()[0])

# %% read_trace
points = {
    "model.embed_tokens": np.zeros((1, 3, 192), np.float32)
}  # yours: arrays by the names of refdiff trace --points
print(list(oracle.read_trace(points).points))
