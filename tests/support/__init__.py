"""Utilities shared by the tests: images, programs started as processes, disks, a browser."""
