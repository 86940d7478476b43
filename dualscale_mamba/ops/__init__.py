"""The typed face of the operators: what the rest of the package calls.

CUDA tensors run the CUDA kernels, CPU tensors the C++ kernels. There is no silent fallback: without the compiled
library for a device a call raises :class:`~dualscale_mamba.ops.build.BuildError`, which says what to do. The
PyTorch reference is a choice (``with implementation("reference")``), and results record which ran.
"""
