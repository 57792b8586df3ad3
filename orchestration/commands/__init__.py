"""The commands of `msggan-aml`, and the only place that prints."""
