"""A run's progress on a terminal, in a notebook and as HTML."""
