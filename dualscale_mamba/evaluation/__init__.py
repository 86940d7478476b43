"""Evaluations of a model: perplexity, divergence from a reference, tasks of lm-eval."""
