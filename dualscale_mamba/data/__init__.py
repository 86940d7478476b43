"""Text, tokenizers and token batches."""
