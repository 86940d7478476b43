"""Post-training quantization of Mamba language models with dual-scale int8 codes in compiled kernels."""

__version__ = "0.1.0"
