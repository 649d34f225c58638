import refdiff
from refdiff import viz

model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled")

# %% attention_maps, AttentionMaps
maps = viz.attention_maps(model, "Once upon a time")
print(maps.tokens)
print(maps.first.shape, maps.lambdas.round(2), maps.most_cancelling())  # (layers, pairs, queries, keys)

# %% maps_of
ids = [0, 1970, 619, 259, 519]
maps = viz.maps_of(model([ids], output_attentions=True), ["<s>", "Once", "upon", "a", "time"])
print(maps.title(layer=4, pair=0))

# %% attention_to
maps = viz.attention_maps(model, "Once upon a time there was a king")
print(viz.attention_to(maps.map("difference", 4, 0), {"first token": [0], "all others": range(1, 9)}))

# %% plot_attention
viz.plot_attention(viz.attention_maps(model, "Once upon a time there was a king"), layer=4, pair=0)

# %% plot_attention_to
viz.plot_attention_to({"A₁": {"needle": 0.23, "noise": 0.77}, "A₁ − λ A₂": {"needle": 0.7, "noise": 0.3}})

# %% explore
print(viz.explore(model, "Once upon a time"))

# %% attention_page
page = viz.attention_page(viz.attention_maps(model, "Once upon a time"), layer=4, pair=0)
print(page.splitlines()[0], round(len(page) / 1000), "kB")
