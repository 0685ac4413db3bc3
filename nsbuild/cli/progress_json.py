"""`--json`: one object a line on stdout, as docs/events.md tells."""

from __future__ import annotations

import base64
import codecs
import dataclasses
import json
import time
from typing import Any

from nsbuild.build import Event, Record
from nsbuild.cli.progress import write_out
from nsbuild.errors import NsbuildError


class JsonProgress:
    """Nothing else is on stdout, and on stderr only the error."""

    def __init__(self) -> None:
        self._phase: dict[str, Any] = {}
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def __call__(self, event: Event) -> None:
        if event.kind == "started":
            self._phase = {"phase": event.name, "buildpack": event.text}
            write_event("started", self._phase)
        elif event.kind == "ended":
            self._output(b"", final=True)
            write_event("ended", {"phase": event.name, "buildpack": event.text, "seconds": event.seconds})
            self._phase = {}
        elif event.kind == "output":
            self._output(event.data)
        elif event.kind == "download":
            write_event("download", {"text": event.text, "done": event.done, "total": event.total or None})
        else:
            write_event(event.kind, {**self._phase, "text": event.text})

    def finished(self, record: Record) -> None:
        write_event("result", {"record": dataclasses.asdict(record), "error": None})

    def failed(self, error: NsbuildError) -> None:
        record = getattr(error, "record", None)
        about = {"code": int(error.code), "sentence": error.sentence, "fix": error.fix}
        write_event("result", {"record": dataclasses.asdict(record) if record else None, "error": about})

    def close(self) -> None:
        return

    def _output(self, data: bytes, *, final: bool = False) -> None:
        """A character that a pipe has cut in two is told with its second half."""
        text = self._decoder.decode(data, final)
        if not text:
            return
        try:
            text.encode()
        except UnicodeEncodeError:
            raw = text.encode("utf-8", "surrogateescape")
            write_event("output", {**self._phase, "base64": base64.b64encode(raw).decode()})
        else:
            write_event("output", {**self._phase, "text": text})


def write_event(kind: str, fields: dict[str, Any]) -> None:
    """One line of JSON on stdout."""
    write_out(json.dumps({"time": round(time.time(), 3), "kind": kind, **fields}).encode() + b"\n")
