"""Images on disk, decoded, and served as batches."""
