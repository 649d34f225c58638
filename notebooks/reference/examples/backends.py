import numpy as np
from refdiff import backends

# %% ops_for
ops = backends.ops_for()
print(len(vars(ops)), ops.softmax(np.array([0.0, 0.0])))


# %% overlay
def counted(name, function):
    def call(*args, **options):
        print(name)
        return function(*args, **options)

    return call


ops = backends.overlay(backends.ops_for(), counted)
print(ops.rms_norm(np.array([3.0, 4.0]), None, 0.0))
