"""The computations between the step's GEMMs: norms, SwiGLU, attention, loss, int8 rounding.

Start with ops.py, which has one function for each and chooses among the compiled CPU kernels
(elementwise.cpp and attention.cpp, compiled by build.py), GPU kernels (inductor.py, varlen.py) and
torch operations.
"""
