"""GET / answers with what the three packages say now, GET /built with what they said during the build."""

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from local_setup_cfg import answer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/":
            self.reply(200, "text/plain", f"{answer()}\n")
        elif self.path == "/built":
            self.reply(200, "text/html", Path("public/index.html").read_text())
        else:
            self.reply(404, "text/plain", "no such page\n")

    def reply(self, status: int, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


port = int(os.environ.get("PORT", "5000"))
with ThreadingHTTPServer(("", port), Handler) as server:
    print(f"Listening on port {port}", flush=True)
    server.serve_forever()
