"""What a model costs: time and bytes."""
