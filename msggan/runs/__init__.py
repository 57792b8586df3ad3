"""The run folder: its layout, state, checkpoints and results."""
