"""What a sweep is, wherever it runs."""
