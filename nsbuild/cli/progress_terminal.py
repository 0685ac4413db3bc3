"""Where a person watches: a last line with the step and its running time, then a summary in tables.

The last line is drawn where the cursor is, which then goes back: whatever writes next writes over it, and a build
that is killed leaves no cursor hidden and no mode set. It is there only while the buildpack's own output is at the
beginning of a line: a progress bar of its own is not ours to cut.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nsbuild.build import Event, Record
from nsbuild.cli.progress import write_out
from nsbuild.cli.say import tell
from nsbuild.cli.summary import Summary, line_of, ours, size, summarize
from nsbuild.errors import NsbuildError
from nsbuild.printable import printable

_SAVE, _BACK, _ERASE = "\x1b7", "\x1b8", "\r\x1b[J"
_TICK = 0.2
_SOON = 0.5
"""Seconds. A step that takes less needs no running time."""
_MOVES = re.compile(rb"\x1b(?!\[[0-9;:]*(?:m|$)|$)")
"""An escape sequence that is no colour: whoever sends it draws lines, and knows nothing of ours."""
_STYLES = {"ended": "bright_black", "started": "cyan", "warning": "yellow"}


class TerminalProgress:
    """`live`: with the last line. It needs a thread, so it has to be made before what asks whether there is one."""

    def __init__(self, *, live: bool) -> None:
        self._began = time.monotonic()
        self._console = Console(
            stderr=True, force_terminal=True, highlight=False, markup=False, emoji=False, safe_box=True
        )
        self._same = _is_terminal(1)
        """Output is on a terminal, which is taken to be ours."""
        self._open = False
        """The output has not ended its line."""
        self._drawn = ""
        self._step: tuple[str, float] | None = None
        self._download: Event | None = None
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True) if live else None
        if self._thread is not None:
            # Signals are the main thread's: it holds them back where a step must not be cut in half.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            try:
                self._thread.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def __call__(self, event: Event) -> None:
        with self._lock:
            if event.kind == "output":
                self._erase()
                write_out(event.data)
                if self._same and event.data:
                    self._open = not event.data.endswith(b"\n")
                    if _MOVES.search(event.data):
                        self._over.set()
            if event.kind == "started":
                self._step = (f"{event.name} {event.text}".rstrip(), time.monotonic())
            elif event.kind == "ended":
                self._step = None
            self._download = event if event.kind == "download" and event.done != event.total else None
            if (line := line_of(event)) is not None:
                self._line(line, _STYLES.get(event.kind, ""))

    def finished(self, record: Record) -> None:
        self.close()
        summary = summarize(record)
        self._tables(summary)
        for warning in record.warnings:
            self._line(ours(f"warning: {warning}"), _STYLES["warning"])
        self._line(ours(summary.result), "green")

    def failed(self, error: NsbuildError) -> None:
        self.close()
        if getattr(error, "record", None) is not None:  # it had begun
            self._line(ours(f"failed after {time.monotonic() - self._began:.1f} s"), "red")

    def close(self) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        self._erase()
        if self._open:
            tell("\n")
            self._open = False

    def _tick(self) -> None:
        while not self._over.wait(_TICK):
            with self._lock:
                if not self._open and not self._over.is_set():
                    self._draw(self._status(time.monotonic()))

    def _status(self, now: float) -> str:
        if self._download is not None:
            return _bar(self._download)
        if self._step is None or now - self._step[1] < _SOON:
            return ""
        seconds = int(now - self._step[1])
        clock = f"{seconds // 60}:{seconds % 60:02}"
        return f"{clock}  {printable(self._step[0])}"

    def _draw(self, status: str) -> None:
        if status == self._drawn:
            return
        line = Text(status, style="cyan")
        line.truncate(_columns() - 1)
        tell(f"{_ERASE}{_SAVE}{self._rendered(line)}{_BACK}")
        self._drawn = status

    def _erase(self) -> None:
        if self._drawn:
            tell(_ERASE)
            self._drawn = ""

    def _line(self, text: str, style: str) -> None:
        self._erase()
        start = "\n" if self._open else ""
        self._open = False
        tell(f"{start}{self._rendered(Text(text, style=style))}\n")

    def _rendered(self, line: Text) -> str:
        with self._console.capture() as captured:
            self._console.print(line, end="", soft_wrap=True)
        return captured.get()

    def _tables(self, summary: Summary) -> None:
        phases = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        phases.add_column("phase", no_wrap=True)
        phases.add_column("time", justify="right", no_wrap=True)
        phases.add_column("buildpack", overflow="fold")
        for name, buildpack, seconds in summary.phases:
            phases.add_row(Text(name), seconds, Text(printable(buildpack)))
        facts = Table.grid(padding=(0, 2, 0, 0))
        facts.add_column(style="bold", no_wrap=True)
        facts.add_column(overflow="fold")
        for label, texts in summary.facts:
            facts.add_row(label, Text("\n".join(map(printable, texts))))
        self._console.width = _columns()
        with self._console.capture() as captured:
            self._console.print()
            for table in (phases, facts):
                self._console.print(table)
                self._console.print()
        tell(captured.get())


def _bar(event: Event) -> str:
    name = printable(event.text)
    if not event.total:
        return f"{size(event.done)}  {name}"
    filled = round(20 * min(event.done / event.total, 1.0))
    return f"[{'=' * filled:20}] {size(event.done)} of {size(event.total)}  {name}"


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno() if sys.stderr else 2).columns or 80
    except OSError:
        return 80


def _is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False
