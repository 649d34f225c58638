import refdiff
from refdiff import bundled

tokenizer = refdiff.Tokenizer.from_pretrained("bundled")
weights, config = load(bundled.FOLDER)
print(f"{sum(w.size for w in weights.values()):,} numbers in {len(weights)} arrays")

ids = tokenizer.encode("Once upon a time there was a king who had three sons")
probabilities = softmax(model(ids, weights, config)[-1])
for token in np.argsort(-probabilities)[:5]:
    print(f"  {probabilities[token]:.3f} {tokenizer.decode([int(token)])!r}")

story = generate(tokenizer.encode("The wolf said to the little girl"), 20, weights, config)
print(tokenizer.decode(story, skip_special_tokens=True))
