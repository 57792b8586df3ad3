"""Trains runs and sweeps on this machine."""
