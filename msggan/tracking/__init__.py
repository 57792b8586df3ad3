"""Metrics: `metrics.jsonl`, and MLflow."""
