"""From what a user types to a configuration that is known to work: composition, validation, construction.

Only :mod:`~dualscale_mamba.configuration.instantiate` makes objects (and so imports torch).
"""
