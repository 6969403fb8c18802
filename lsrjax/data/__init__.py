"""Examples: reading/ files to examples, batching/ examples to batches."""
