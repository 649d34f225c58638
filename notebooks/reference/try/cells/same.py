reference = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype="float64")
difference = np.abs(model(ids, weights, config) - reference([ids]).logits[0]).max()
print(f"largest difference from refdiff's logits: {difference:.0e}")
