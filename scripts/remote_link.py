#!/usr/bin/env python3
"""Serves a folder over HTTP at a given rate, all connections together, and says how busy the link was.

    python scripts/remote_link.py FOLDER PORT MEGABYTES_PER_SECOND

`GET /_stats` answers with the bytes sent since the last such request, the seconds from the first to the last of them,
and the share of that time in which the link was full; each request has a latency of 20 ms.
"""

import hashlib
import http.server
import json
import os
import sys
import threading
import time

ROOT, PORT, RATE = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]) * 1e6
PIECE = 64 << 10
LATENCY = 0.02


class Link:
    """One line for all: a piece may be sent when those before it are through."""

    def __init__(self):
        self.lock = threading.Lock()
        self.reset()

    def reset(self):
        self.free_at, self.first, self.last, self.sent, self.requests = 0.0, None, None, 0, 0

    def send(self, count):
        with self.lock:
            now = time.monotonic()
            start = max(now, self.free_at)
            self.free_at = start + count / RATE
            if self.first is None:
                self.first = now
            self.last, self.sent = self.free_at, self.sent + count
            wait = self.free_at - now
        if wait > 0:
            time.sleep(wait)

    def stats(self):
        with self.lock:
            seconds = (self.last or 0) - (self.first or 0)
            busy = self.sent / RATE / seconds if seconds else 0
            found = {"bytes": self.sent, "requests": self.requests, "seconds": seconds, "busy": busy}
            self.reset()
        return found


LINK = Link()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path == "/_stats":
            return self.answer(200, json.dumps(LINK.stats()).encode())
        path = os.path.join(ROOT, self.path.lstrip("/"))
        if not os.path.isfile(path):
            return self.answer(404, b"")
        time.sleep(LATENCY)
        LINK.requests += 1
        data = os.stat(path)
        tag = '"' + hashlib.sha256(f"{path} {data.st_size} {data.st_mtime_ns}".encode()).hexdigest()[:32] + '"'
        start, end = 0, data.st_size
        if wanted := self.headers.get("Range"):
            first, last = wanted.removeprefix("bytes=").split("-")
            start, end = int(first), min(int(last) + 1, data.st_size)
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", tag)
        self.send_header("Content-Length", str(end - start))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{data.st_size}")
        self.end_headers()
        with open(path, "rb", buffering=0) as file:
            file.seek(start)
            left = end - start
            while left:
                piece = file.read(min(PIECE, left))
                LINK.send(len(piece))
                self.wfile.write(piece)
                left -= len(piece)

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


http.server.ThreadingHTTPServer.request_queue_size = 64
http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
