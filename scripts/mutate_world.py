"""What mutate.py runs: good inputs, the program, and how what it says is held against a judge."""

import json
import os
import re
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

DATA = Path(__file__).parent.parent / "tests"
MEBIBYTES = 1024
# Matrix products reserve some hundred megabytes of addresses, of which they touch little.
MORE = {"calibration": 4096, "text": 4096}

# What Trephine refuses though the judge takes it, by what it says.
ON_PURPOSE = {
    "header": [
        r"a tensor's name has \d+ bytes; at most",
        r"shape has \d+ dimensions; at most",
        "the header names a tensor twice",
        "belongs to no weight that is read",
        "nothing declares how it is quantized",
    ],
    "gguf": [
        "is not supported",
        "belong to no tensor",
        "overlap those of",
        "which is not a multiple of",
        r"\d+ dimensions; the format allows 4",
        "GGUF models of the architecture",
        "does not say its general.architecture",
        r"[\w.]+ is not given",
        r"head_count\w* is \d+, which does not match \d+ rows",
        r"general.alignment is \d+, not a power of two",
    ],
    "sums": [
        "was listed before",
        "has no newline at its end",
        "ends with a carriage return",
        # Of weights and configs alone: what else is not listed is a note.
        "is not listed in B3SUMS",
        "lists nothing, so nothing was checked",
        # b3sum follows such a path wherever it leads; and a file has one name.
        r'"[^"]*(//|\.\./|/\./)[^"]*" is not a name inside',
    ],
}
# What counts as a reason where a command says several things: `verify` prints notes, too.
REASONS = {"sums": r"(?m)^error: (.*)"}


class World:
    """Good inputs, made once, and how the program is run."""

    kind = ""

    def __init__(self, program: str, home: Path, seconds: float):
        self.program, self.home, self.seconds = program, home, seconds
        self.small = home / "small"
        self.write_checkpoint(self.small, 1.0)
        self.write_checkpoint(home / "tuned", 1.25)
        self.base, self.fp8 = home / "base", home / "fp8"
        shutil.copytree(DATA / "data/base", self.base)
        shutil.copytree(DATA / "data/base-fp8", self.fp8)
        self.fixtures = sorted((DATA / "fixtures/gguf").glob("*.gguf"), key=lambda path: path.stat().st_size)[:20]
        self.adapter = home / "adapter"
        self.must("extract", "--base", self.small, "--tuned", home / "tuned", "--rank", "2", "--out", self.adapter)
        self.measured = home / "measured"
        quartet = ["--base", self.base, "--base-quantized", self.fp8, "--tuned", DATA / "data/tuned", "--rank", "2"]
        self.must("analyze", *quartet, "--out", self.measured / "analysis")
        self.must("autopsy", self.fp8, "--out", self.measured / "autopsy")
        self.calibration = home / "calibration"
        self.must("calibrate", "--model", self.base, "--tokens", "64", "--sequence", "32", "--k", "16", "--out", self.calibration)
        # Commands whose state is mutated: each run whole, and each begun.
        self.resumed = {
            "dequantize": ["dequantize", self.fp8, "--max-shard-size", "300kB"],
            "extract": ["extract", "--base", self.small, "--tuned", home / "tuned", "--rank", "2"],
            "merge": ["merge", "--base", self.small, "--adapter", self.adapter, "--max-shard-size", "1kB"],
        }
        self.whole, self.begun = home / "whole", home / "begun"
        for name, command in self.resumed.items():
            self.must(*command, "--out", self.whole / name)
            self.must(*command, "--part", "1/2", "--out", self.begun / name)

    @staticmethod
    def write_checkpoint(folder: Path, scale: float):
        folder.mkdir()
        names = [f"model.layers.{i}.self_attn.{kind}_proj.weight" for i in range(2) for kind in "qkv"]
        header, data = {"__metadata__": {"format": "pt"}}, b""
        for at, name in enumerate(names):
            values = [scale * ((at * 7 + i * i) % 13 - 6) for i in range(64)]
            header[name] = {"dtype": "F32", "shape": [8, 8], "data_offsets": [len(data), len(data) + 256]}
            data += struct.pack("<64f", *values)
        write_safetensors(folder / "model.safetensors", json.dumps(header).encode(), data)
        (folder / "config.json").write_text(json.dumps({"model_type": "qwen3", "hidden_size": 8, "architectures": ["Qwen3ForCausalLM"]}))
        index = {"metadata": {}, "weight_map": {name: "model.safetensors" for name in names}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    def must(self, *arguments):
        ran = self.run(*arguments, mebibytes=8192)
        assert ran.code == 0, (arguments, ran.stderr)

    def run(self, *arguments, mebibytes: int = MEBIBYTES) -> "Ran":
        self.started = True
        mebibytes = max(mebibytes, MORE.get(self.kind, 0))
        # More than a little address space is a finding: the program then ends with 1.
        limited = f'ulimit -v {mebibytes << 10}; exec "$@"'
        command = ["sh", "-c", limited, "sh", self.program, *map(str, arguments)]
        environment = {"PATH": os.environ["PATH"], "HF_HOME": "/nonexistent", "HOME": str(self.home), "RAYON_NUM_THREADS": "2", "MALLOC_ARENA_MAX": "1"}
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = subprocess.Popen(command, stdout=out, stderr=err, env=environment, cwd=self.home)
            try:
                child.wait(self.seconds)
                hung = False
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
                hung = True
            out.seek(0), err.seek(0)
            return Ran(command, None if hung else child.returncode, out.read(), err.read())


class Ran:
    """How a run ended; a kind that has a judge says in `judged` what the two made of the input."""

    judged: str | None = None
    purpose: str | None = None

    def __init__(self, command, code, stdout: bytes, stderr: bytes):
        self.command, self.code, self.stdout, self.stderr = command, code, stdout, stderr

    def findings(self, allowed=(0, 2, 3, 4)) -> list[str]:
        found = []
        if self.code is None:
            found.append("hangs")
        elif self.code not in allowed:
            found.append(f"exit {self.code}")
        if b"panicked" in self.stderr:
            found.append("panic")
        for text in (self.stdout, self.stderr):
            try:
                text = text.decode()
            except UnicodeDecodeError:
                found.append("output is not UTF-8")
                continue
            if any((ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0 or c in "\u202e\u2028" for c in text):
                found.append("control characters")
        return found

    def held_against(self, kind: str, taken: bool, why: str) -> list[str]:
        """The disagreement with a judge, who takes the input, or refuses it and says why."""
        ours = self.code == 0
        said = (self.stdout + self.stderr).decode(errors="replace")
        # Each of them has to be on purpose.
        reasons = re.findall(REASONS[kind], self.stdout.decode(errors="replace")) if kind in REASONS else [said]
        purposes = [next((known for known in ON_PURPOSE[kind] if re.search(known, reason)), None) for reason in reasons]
        if ours and taken:
            self.judged = "both take"
        elif ours:
            return [f"the judge refuses it: {why}"]
        elif not taken:
            self.judged = "both refuse"
        elif purposes and None not in purposes:
            self.judged, self.purpose = "on purpose", purposes[0]
        elif self.code in (2, 3, 4):
            said = re.findall(r'"what": "(.*)"', said) or [said.strip()]
            return [f"the judge takes it, we say: {said[0][:300]}"]
        return []


def write_safetensors(path: Path, header: bytes, data: bytes):
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def read_safetensors(path: Path) -> tuple[bytes, bytes]:
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return data[8 : 8 + length], data[8 + length :]


def refused_by_safetensors(path: Path) -> str | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            list(file.keys())
        return None
    except (SafetensorError, OSError) as error:
        return str(error)[:200]
