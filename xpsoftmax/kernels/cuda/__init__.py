"""Row operations on CuPy arrays: CUDA C++ kernels (`*.cu`, shared code in `*.cuh`), and what launches them.

`launcher` has the operations and is the only module that imports CuPy, so this package does not import it. `plan` says
what is launched, in plain Python: it can be read and tested without a GPU.
"""
