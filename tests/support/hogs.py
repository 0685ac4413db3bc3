"""Python programs that want more than they may have."""

from __future__ import annotations

MEMORY = """
for _ in range(4):
    if os.fork() == 0:
        held = bytearray(40 << 20)
        for page in range(0, len(held), 4096):
            held[page] = 1
        time.sleep(20)
        os._exit(0)
for _ in range(4):
    os.wait()
"""
"""160 MiB, 40 in each of four processes. Needs `os` and `time`."""

PROCESSES = """
count = 0
try:
    while count < 60:
        if os.fork() == 0:
            time.sleep(20)
            os._exit(0)
        count += 1
except OSError as error:
    print(count, errno.errorcode[error.errno])
"""
"""60 processes; says how many there could be, and why no more. Needs `errno`, `os` and `time`."""
