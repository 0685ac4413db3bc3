"""quota.py MOUNT USER MIB: how much the user may have on a filesystem, as setquota(8), which is not in the image."""

import ctypes
import os
import pwd
import struct
import sys
from pathlib import Path

Q_SETQUOTA, USRQUOTA, QIF_BLIMITS = 0x800008, 0, 1
"""linux/quota.h"""


def main() -> None:
    mount, user, size = sys.argv[1:]
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    (device,) = (words[0] for words in mounts if words[1] == mount)
    # struct if_dqblk: limits are in units of 1 KiB.
    limits = bytearray(struct.pack("=8QI4x", int(size) << 10, 0, 0, 0, 0, 0, 0, 0, QIF_BLIMITS))
    libc = ctypes.CDLL(None, use_errno=True)
    address = (ctypes.c_char * len(limits)).from_buffer(limits)
    command = ctypes.c_uint(Q_SETQUOTA << 8 | USRQUOTA)
    if libc.quotactl(command, os.fsencode(device), pwd.getpwnam(user).pw_uid, address):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), device)


main()
