"""Mamba language models: architecture, states, checkpoints, generation."""
