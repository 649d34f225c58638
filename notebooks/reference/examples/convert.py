import refdiff
from refdiff import convert

model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled")

# %% convert, prove, Proof
config, params = convert.convert(model.config, model.params, "paper")
print(config.variant, sorted(params["model"]["layers"][0]["self_attn"]))
print(convert.prove((model.config, model.params), (config, params)))

# %% convert_later
config, params = convert.convert_later(model.config, model.params, "paper")  # converts an array when it is read
print(config.variant, type(params["model"]["layers"][0]["self_attn"]["q_proj"]["weight"]).__name__)
