"""Trephine from Python: each function runs the program and returns its JSON as a dict.

    import trephine

    outcome = trephine.extract(base="Qwen/Qwen3-32B-FP8", tuned="./tuned", out="adapter", rank=128)
    print(outcome["total"]["captured_energy"])

Options have the names of the command line, with underscores; a list repeats an option and ``True`` gives a flag. The keys of the
results are those of src/cli/json.md. A failure raises :class:`TrephineError`, with the message, the hint and the exit code.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any, Dict, Iterable, Optional, Union

__all__ = [
    "TrephineError",
    "analyze",
    "autopsy",
    "calibrate",
    "dequantize",
    "doctor",
    "evaluate",
    "extract",
    "fidelity",
    "merge",
    "probe",
    "program",
    "run",
    "sanitize",
    "verify",
]

StrPath = Union[str, "os.PathLike[str]"]
Option = Union[None, bool, int, float, StrPath, Iterable[Union[int, float, StrPath]]]

#: A check found a problem: its findings are in :attr:`TrephineError.result`.
FOUND = 4


class TrephineError(RuntimeError):
    """The program failed, or a check found a problem."""

    def __init__(self, message: str, hint: Optional[str], code: int, result: Optional[Any] = None) -> None:
        super().__init__(f"{message}\nhint: {hint}" if hint else message)
        #: What failed, on which file and tensor.
        self.message = message
        #: How to fix it, where that is known.
        self.hint = hint
        #: The exit code: 1 unexpected, 2 a decision, 3 bad input, 4 a check found something, 75 stopped.
        self.code = code
        #: What a check printed before it failed.
        self.result = result


def program() -> str:
    """The path of the program that belongs to this package, or else of the one on ``PATH``."""
    name = "trephine" + (sysconfig.get_config_var("EXE") or "")
    user = "nt_user" if os.name == "nt" else "posix_user"
    folders = [sysconfig.get_path("scripts"), sysconfig.get_path("scripts", scheme=user)]
    for folder in folders:
        if folder and (Path(folder) / name).is_file():
            return str(Path(folder) / name)
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError("the program 'trephine' is neither beside Python nor on PATH")
    return found


def run(command: str, *arguments: StrPath, **options: Option) -> Dict[str, Any]:
    """Runs any command with ``--json`` and returns its result."""
    line = [program(), command, "--json", *_words(options), "--", *map(os.fspath, arguments)]
    done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    try:
        result = json.loads(done.stdout) if done.stdout.strip() else None
    except json.JSONDecodeError:
        result = None
    if done.returncode != 0 or result is None:
        message, hint = _failure(done.stderr)
        raise TrephineError(message, hint, done.returncode, result)
    return result


def _words(options: Dict[str, Option]) -> Iterable[str]:
    for name, value in options.items():
        flag = "--" + name.rstrip("_").replace("_", "-")
        if value is None or value is False:
            continue
        if value is True:
            yield flag
            continue
        values = [value] if isinstance(value, (str, int, float, os.PathLike)) else list(value)
        for one in values:
            # In one word, so that a value may begin with a dash.
            yield f"{flag}={os.fspath(one) if isinstance(one, os.PathLike) else one}"


def _failure(stderr: str) -> "tuple[str, Optional[str]]":
    message, hint = None, None
    for line in stderr.splitlines():
        if line.startswith("error: "):
            message = line[len("error: ") :]
        elif line.startswith("hint: "):
            hint = line[len("hint: ") :]
    return message or stderr.strip() or "the program failed without a message", hint


def extract(base: StrPath, tuned: StrPath, out: StrPath, rank: Optional[int] = None, **options: Option) -> Dict[str, Any]:
    """Extracts the difference between two checkpoints as a LoRA adapter, or resumes an extraction that was stopped."""
    return run("extract", base=base, tuned=tuned, out=out, rank=rank, quiet=True, **options)


def merge(base: StrPath, adapter: StrPath, out: StrPath, **options: Option) -> Dict[str, Any]:
    """Writes a checkpoint with an adapter merged into it."""
    return run("merge", base=base, adapter=adapter, out=out, quiet=True, **options)


def dequantize(checkpoint: StrPath, out: StrPath, **options: Option) -> Dict[str, Any]:
    """Writes a quantized checkpoint as a dense one."""
    return run("dequantize", checkpoint, out=out, quiet=True, **options)


def sanitize(adapter: StrPath, out: StrPath, for_: Option = None, **options: Option) -> Dict[str, Any]:
    """Converts any LoRA adapter into one that the given programs load."""
    return run("sanitize", adapter, out=out, for_=for_, quiet=True, **options)


def probe(checkpoint: StrPath, **options: Option) -> Dict[str, Any]:
    """What is in a checkpoint or an adapter, from headers alone. Findings raise an error with ``result``."""
    return run("probe", checkpoint, **options)


def doctor(base: Optional[StrPath] = None, tuned: Optional[StrPath] = None, **options: Option) -> Dict[str, Any]:
    """Checks the machine, and a pair of checkpoints. Problems raise an error with ``result``."""
    return run("doctor", base=base, tuned=tuned, **options)


def autopsy(checkpoint: StrPath, **options: Option) -> Dict[str, Any]:
    """Statistics and verdicts for every tensor. Verdicts raise an error with ``result``."""
    return run("autopsy", checkpoint, quiet=True, **options)


def verify(folder: StrPath, **options: Option) -> Dict[str, Any]:
    """Checks a folder against its checksums, and an adapter against its checkpoints."""
    return run("verify", folder, quiet=True, **options)


def analyze(base: StrPath, base_quantized: StrPath, tuned: StrPath, out: StrPath, **options: Option) -> Dict[str, Any]:
    """Compares quantization noise with the change that a fine-tune made."""
    return run("analyze", base=base, base_quantized=base_quantized, tuned=tuned, out=out, quiet=True, **options)


def fidelity(served: StrPath, tuned: StrPath, adapter: Option, **options: Option) -> Dict[str, Any]:
    """How far the served weights are from the tuned ones, with each adapter and with none."""
    return run("fidelity", served=served, tuned=tuned, adapter=adapter, quiet=True, **options)


def calibrate(model: StrPath, out: StrPath, **options: Option) -> Dict[str, Any]:
    """Runs a model on a text and writes the second moments of its layers' inputs."""
    return run("calibrate", model=model, out=out, quiet=True, **options)


def evaluate(model: StrPath, adapter: Option = None, **options: Option) -> Dict[str, Any]:
    """The next-token loss of a model on a text, with each adapter and with none."""
    return run("evaluate", model=model, adapter=adapter, quiet=True, **options)
