import numpy as np
from refdiff import training

# %% learning_rate
print([round(training.learning_rate(step, peak=1.0, steps=10, warmup=2), 2) for step in range(1, 11)])

# %% global_norm, clip
gradients = {"a": np.array([3.0]), "b": np.array([4.0])}
print(training.global_norm(gradients))
print(training.clip(gradients, 1.0))

# %% newton_schulz
matrix = np.random.default_rng(0).standard_normal((3, 3))
print(np.linalg.svd(matrix, compute_uv=False).round(2))
print(np.linalg.svd(training.newton_schulz(matrix), compute_uv=False).round(2))  # near 1

# %% Settings
print(training.Settings(max_steps=100, batch_size=8))

# %% AdamW, Muon
weights = {"w": np.ones((2, 2))}
for optimizer in (training.AdamW(weights), training.Muon(weights)):
    print(type(optimizer).__name__, [name for name in dir(optimizer) if not name.startswith("_")])
