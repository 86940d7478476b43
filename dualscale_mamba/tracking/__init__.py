"""Where results are sent besides ``result.json``, which is the source of truth."""
