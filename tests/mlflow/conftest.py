"""Fixtures of the tests that log to MLflow."""

from support.mlflow import _own_environment, database  # noqa: F401
