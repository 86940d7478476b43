"""Observers: where the threshold between ordinary values and outliers lies."""
