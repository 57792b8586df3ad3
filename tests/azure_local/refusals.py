"""Runs a command whose system calls to append to a file or to rename one fail, as on some mounts of blob storage.

The kernel refuses them (seccomp), for every file and also to the command's children: Linux on x86-64 or ARM only.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

# The numbers of the system calls, by machine.
OPENAT = {"x86_64": 257, "aarch64": 56}
RENAMES = {"x86_64": (82, 264, 316), "aarch64": (38, 276)}
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, FILTER = 22, 38, 2
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06  # instructions of the filter
CALL, FLAGS_OF_OPENAT = 0, 32  # offsets in what the filter sees
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | errno.EOPNOTSUPP


def instruction(code: int, value: int, *, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


def refuse(*, appending: bool, renaming: bool) -> None:
    """Refuses them to this process from now on."""
    machine = platform.machine()
    program = []
    if renaming:
        program += [instruction(LOAD, CALL)]
        for number in RENAMES[machine]:
            program += [instruction(EQUAL, number, if_false=1), instruction(RETURN, REFUSE)]
    if appending:
        program += [
            instruction(LOAD, CALL),
            instruction(EQUAL, OPENAT[machine], if_false=3),
            instruction(LOAD, FLAGS_OF_OPENAT),
            instruction(ANY_BIT, os.O_APPEND, if_false=1),
            instruction(RETURN, REFUSE),
        ]
    code = b"".join([*program, instruction(RETURN, ALLOW)])
    buffer = ctypes.create_string_buffer(code, len(code))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer)))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or prctl(PR_SET_SECCOMP, FILTER, header, 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp is not available")


if __name__ == "__main__":
    refused, command = sys.argv[1].split(","), sys.argv[2:]
    refuse(appending="append" in refused, renaming="rename" in refused)
    os.execvp(command[0], command)  # noqa: S606 - the job's own command
