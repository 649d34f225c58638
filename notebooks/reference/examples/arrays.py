import numpy as np
from refdiff import arrays

# %% namespace
print(arrays.namespace(np.ones(3)).__name__)

# %% device
print(arrays.device(np.ones(3)))

# %% to_numpy
print(arrays.to_numpy(np.arange(3)))

# %% from_numpy
print(arrays.from_numpy(np.arange(3), np))

# %% backend
print(arrays.backend("numpy").__name__)
