"""Sends msggan to Azure ML: one adapter for each thing there, and `client` as the only door."""
