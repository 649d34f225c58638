import numpy as np
from refdiff import exercises

# %% names, signature
print(exercises.names()[:4])
print(exercises.signature(exercises.names()[0]))

# %% check, Feedback
feedback = exercises.check("softmax", lambda z: np.exp(z))
print(feedback)
