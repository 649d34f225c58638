"""Fast kernels for CUDA, and what uploads weights to a device.

cuda/*.cu       the kernels, readable by themselves
kernels.py      their namespace, with a layer's name and signature each
geometry.py     how work is cut into blocks
device.py       NVRTC, launches, cuBLAS
graph.py        a step's launches recorded as one
sampling.py     from logits to a token
upload.py       weights from their file to the device
"""
