"""Is what a checkpoint holds that of its step, though it is written while training goes on?"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from msggan.runs.checkpoint import newest_checkpoint
from msggan.runs.checkpoint_writer import CheckpointWriter
from msggan.runs.folder import RunFolder


def test_what_changes_after_the_step_is_not_in_the_checkpoint(tmp_path: Path) -> None:
    writer = CheckpointWriter(RunFolder(tmp_path), may_write=lambda: None)
    weights = torch.arange(24.0).view(1, 2, 3, 4).contiguous(memory_format=torch.channels_last)
    writer.save(8, {"ema.weight": weights}, {"note": 1}, config={})
    weights.zero_()
    writer.finish()
    checkpoint, _ = newest_checkpoint(tmp_path / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.state == {"note": 1}
    assert torch.equal(checkpoint.tensors["ema.weight"], torch.arange(24.0).view(1, 2, 3, 4))


def test_what_went_wrong_is_raised_once_where_the_writer_is_next_asked(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("A file where the folder is to be.")
    writer = CheckpointWriter(RunFolder(tmp_path), may_write=lambda: None)
    writer.save(8, {"ema.weight": torch.zeros(3)}, {}, config={})
    writer.wait()
    with pytest.raises(OSError, match="checkpoints"):
        writer.save(16, {"ema.weight": torch.zeros(3)}, {}, config={})
    writer.finish()
