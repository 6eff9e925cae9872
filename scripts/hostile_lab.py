"""What hostile.py works with: inputs, and a program that is run in a folder of its own."""

import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import tempfile
import time
from pathlib import Path

DATA = Path(__file__).resolve().parent.parent / "tests"
LIMIT = 3 << 30
NAME = "model.layers.0.self_attn.q_proj.weight"
QWEN = {"model_type": "qwen3", "tie_word_embeddings": False}
KINDS = []


def kind(number: str, what: str, test: str):
    def add(function):
        KINDS.append((number, what, test, function))
        return function

    return add


# --- inputs ----------------------------------------------------------------------------------------------------------------------


def checkpoint(folder: Path, tensors: dict[str, tuple[str, list[int], bytes]], config: dict = QWEN, holes: int = 0) -> Path:
    folder.mkdir(parents=True)
    header, data = {}, b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    with_header(folder, json.dumps(header), data)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def with_header(folder: Path, header: str, data: bytes = b"") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header.encode())) + header.encode() + data)
    return folder


def floats(values) -> bytes:
    values = list(values)
    return struct.pack(f"<{len(values)}f", *values)


def pair(home: Path, name: str = NAME, size: int = 32) -> tuple[Path, Path]:
    rng = random.Random(name)
    base = [rng.uniform(-1, 1) for _ in range(size * size)]
    u, v = [rng.uniform(-1, 1) for _ in range(size)], [rng.uniform(-0.1, 0.1) for _ in range(size)]
    tuned = [base[i * size + j] + u[i] * v[j] for i in range(size) for j in range(size)]
    return tuple(checkpoint(home / side, {name: ("F32", [size, size], floats(values))}) for side, values in [("base", base), ("tuned", tuned)])


def sparse(folder: Path, megabytes: int) -> Path:
    """BF16 weights of zeros, as a hole in the file."""
    folder.mkdir()
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(megabytes // 64)]
    header = {name: {"dtype": "BF16", "shape": [8192, 4096], "data_offsets": [at << 26, (at + 1) << 26]} for at, name in enumerate(names)}
    with_header(folder, json.dumps(header))
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size + (len(names) << 26))
    (folder / "config.json").write_text(json.dumps(QWEN))
    return folder


# --- runs ------------------------------------------------------------------------------------------------------------------------


class Ran:
    def __init__(self, code, out: str, err: str, peak: int, seconds: float):
        self.code, self.out, self.err, self.peak, self.seconds = code, out, err, peak, seconds

    @property
    def said(self) -> str:
        return self.out + self.err

    def how(self) -> str:
        if self.code is None:
            return f"hangs ({self.seconds:.0f} s, {self.peak} MiB)"
        if self.code < 0:
            return f"{signal.Signals(-self.code).name}, {self.peak} MiB, {self.seconds:.0f} s"
        text = f"exit {self.code}"
        if self.peak > 300 or self.seconds > 10:
            text += f", {self.peak} MiB, {self.seconds:.0f} s"
        return text + (", panic" if "panicked" in self.said else "")

    def full(self) -> str:
        """How it ended, and the error's words."""
        error = re.search(r"error: (.*)", self.err)
        return self.how() + (f": {error[1][:110]}" if error else "")


def alive(child: subprocess.Popen) -> bool:
    """Without taking the record of what it used."""
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


class Lab:
    """A program, and a folder for one kind."""

    def __init__(self, program: str, home: Path, seconds: float):
        self.program, self.home, self.seconds = program, home, seconds

    def path(self, name: str) -> Path:
        return self.home / name

    def begin(self, *arguments, before=(), environment=None, limit=LIMIT, **more):
        out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        command = [*before, self.program, *map(str, arguments)]
        environment = os.environ | {"HF_HOME": "/nonexistent", "RAYON_NUM_THREADS": "2"} | (environment or {})
        limits = lambda: limit and resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        child = subprocess.Popen(command, stdout=out, stderr=err, env=environment, cwd=self.home, preexec_fn=limits, start_new_session=True, **more)
        child.files, child.started = (out, err), time.monotonic()
        return child

    def end(self, child) -> Ran:
        usage = None
        while time.monotonic() - child.started < self.seconds and usage is None:
            pid, status, used = os.wait4(child.pid, os.WNOHANG)
            if pid:
                usage, child.returncode = used, os.waitstatus_to_exitcode(status)
            else:
                time.sleep(0.01)
        hung = usage is None
        if hung:
            os.killpg(child.pid, signal.SIGKILL)
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for file in child.files:
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        return Ran(None if hung else child.returncode, *texts, usage.ru_maxrss >> 10, time.monotonic() - child.started)

    def run(self, *arguments, **more) -> Ran:
        return self.end(self.begin(*arguments, **more))

    def slowed(self, *arguments) -> subprocess.Popen:
        """A run whose fsyncs take longer."""
        before = ["strace", "-f", "-qq", "--seccomp-bpf", "-o", "/dev/null", "-e", "inject=fsync,fdatasync:delay_enter=150000"]
        return self.begin(*arguments, before=before, limit=None)

    def data(self, name: str) -> Path:
        return shutil.copytree(DATA / "data" / name, self.home / name)

    def dequantize(self, out="out", *more) -> list:
        return ["dequantize", DATA / "data/base-fp8", "--quiet", "--max-shard-size", "300kB", "--out", self.path(out), *more]

    def extract(self, base, tuned, out="out", *more) -> list:
        return ["extract", "--base", base, "--tuned", tuned, "--rank", "4", "--quiet", "--out", self.path(out), *more]

    def begun(self, out="out"):
        """An unfinished dequantization: killed when its third file is made durable."""
        before = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "inject=fsync:signal=KILL:when=9"]
        self.run(*self.dequantize(out, "--threads", "1"), before=before, limit=None)


def chain(journal: Path, change):
    """Rewrites a journal with other records and a chain of checksums that is right: it has no key."""
    from blake3 import blake3

    before, out = b"trephine.journal", b""
    for line in journal.read_bytes().splitlines():
        record = json.loads(line[17:])
        change(record)
        text = json.dumps(record, separators=(",", ":")).encode()
        digits = blake3(before + text).hexdigest()[:16].encode()
        out, before = out + digits + b" " + text + b"\n", digits
    journal.write_bytes(out)
