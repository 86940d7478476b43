"""Quantization: sites, prepare, calibrate, convert, int8 weights, rotation."""
