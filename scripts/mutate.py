"""Mutates every kind of file that Trephine reads, and holds what the program says against judges that are not ours.

    python scripts/mutate.py PROGRAM [--count 2000] [--seed 1] [--jobs 2] [--kind header ...]

Judges: the `safetensors` and `gguf` packages (what Trephine takes, they take too), BLAKE3 of the files as `b3sum --check` counts it
(package `blake3`), PEFT's own rule for the scale of a module, and the bytes of a run that nobody disturbed. For every input: an exit
code among 0, 2, 3 and 4, no signal, no panic, at most --seconds and 768 MiB of address space, no control character on the terminal, and nothing changed
outside the output folder. Prints a table of kinds, exit codes and findings; a finding's input is kept in ./mutate-findings.

Needs safetensors 0.8.0, gguf, blake3, torch and peft 0.21.2.
"""

import argparse
import collections
import json
import multiprocessing
import os
import random
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

DATA = Path(__file__).parent.parent / "tests"
MEBIBYTES = 768
NASTY = ["", "../x", "/etc/passwd", "a\nb", "\x1b[2J", "\u009b31m", "a" * 5000, "..", "\u202ee", "'; touch x; '", "`x`", "%s", "\\", "é"]
NUMBERS = [0, 1, -1, 2, 7, 127, 255, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 1e308, 1e-320, 0.5, -0.0]


# --- mutations -------------------------------------------------------------------------------------------------------------------


def mutate_bytes(rng: random.Random, data: bytes, where: range | None = None) -> bytes:
    data, where = bytearray(data), where or range(len(data))
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        if not data:
            break
        at = min(rng.choice(where), len(data) - 1) if len(where) else 0
        match rng.randrange(6):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x5B, 0x7B])
            case 2:
                del data[at : at + rng.choice([1, 2, 8, 64])]
            case 3:
                data[at:at] = bytes(rng.choice([0, 0xFF, 0x20, 0x39]) for _ in range(rng.choice([1, 8, 64])))
            case 4:
                data[at : at + 8] = struct.pack("<Q", rng.choice([0, 1, 2**20, 2**32, 2**63, 2**64 - 1]))
            case 5:
                data = data[:at]
    return bytes(data)


def any_value(rng: random.Random):
    return rng.choice([None, True, False, [], {}, rng.choice(NUMBERS), rng.choice(NASTY), [rng.choice(NUMBERS)] * rng.choice([1, 2, 40])])


def mutate_json(rng: random.Random, value, depth: int = 0):
    """One change somewhere in a value."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        value, key = dict(value), rng.choice(list(value))
        match rng.randrange(6) if depth else rng.randrange(5):
            case 0:
                del value[key]
            case 1:
                value[rng.choice(NASTY)] = value[key]
            case _:
                value[key] = mutate_json(rng, value[key], depth + 1)
        return value
    if isinstance(value, list) and value and rng.random() < 0.8:
        value, at = list(value), rng.randrange(len(value))
        if rng.random() < 0.2:
            value.insert(at, any_value(rng))
        else:
            value[at] = mutate_json(rng, value[at], depth + 1)
        return value
    if isinstance(value, bool):
        return rng.choice([not value, "false", 0, None])
    if isinstance(value, (int, float)) and rng.random() < 0.6:
        return rng.choice([value + 1, value - 1, value * 2, -value, str(value), rng.choice(NUMBERS)])
    if isinstance(value, str) and rng.random() < 0.6:
        return rng.choice([value + "x", value.upper(), value[:-1], value + "\n", "re:" + value, "(" + value, rng.choice(NASTY)])
    return any_value(rng)


def mutate_text(rng: random.Random, text: bytes) -> bytes:
    """Either JSON with another value, or JSON with another byte."""
    if rng.random() < 0.75:
        value = json.loads(text)
        for _ in range(rng.choice([1, 1, 2, 3])):
            value = mutate_json(rng, value)
        return json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    return mutate_bytes(rng, text)


# --- the world -------------------------------------------------------------------------------------------------------------------


class World:
    """Good inputs, made once, and how the program is run."""

    def __init__(self, program: str, home: Path, seconds: float):
        self.program, self.home, self.seconds = program, home, seconds
        self.small = home / "small"
        self.write_checkpoint(self.small, 1.0)
        self.write_checkpoint(home / "tuned", 1.25)
        self.fp8 = home / "fp8"
        shutil.copytree(DATA / "data/base-fp8", self.fp8)
        self.gguf = next(iter(sorted((DATA / "fixtures/gguf").glob("q4_0_33x32.gguf"))))
        self.adapter = home / "adapter"
        self.must("extract", "--base", self.small, "--tuned", home / "tuned", "--rank", "2", "--out", self.adapter)
        self.whole = home / "whole"
        self.must("dequantize", self.fp8, "--max-shard-size", "300kB", "--out", self.whole)
        self.begun = home / "begun"
        self.must("dequantize", self.fp8, "--max-shard-size", "300kB", "--part", "1/2", "--out", self.begun)

    @staticmethod
    def write_checkpoint(folder: Path, scale: float):
        folder.mkdir()
        names = [f"model.layers.{i}.self_attn.{kind}_proj.weight" for i in range(2) for kind in "qkv"]
        header, data = {"__metadata__": {"format": "pt"}}, b""
        for at, name in enumerate(names):
            values = [scale * ((at * 7 + i * i) % 13 - 6) for i in range(64)]
            header[name] = {"dtype": "F32", "shape": [8, 8], "data_offsets": [len(data), len(data) + 256]}
            data += struct.pack("<64f", *values)
        text = json.dumps(header).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
        (folder / "config.json").write_text(json.dumps({"model_type": "qwen3", "hidden_size": 8, "architectures": ["Qwen3ForCausalLM"]}))
        index = {"metadata": {}, "weight_map": {name: "model.safetensors" for name in names}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    def must(self, *arguments):
        ran = self.run(*arguments)
        assert ran.code == 0, (arguments, ran.stderr)

    def run(self, *arguments) -> "Ran":
        # More than a little address space is a finding: the program then ends with 1.
        limited = f'ulimit -v {MEBIBYTES << 10}; exec "$@"'
        command = ["sh", "-c", limited, "sh", self.program, *map(str, arguments)]
        environment = {"PATH": os.environ["PATH"], "HF_HOME": "/nonexistent", "HOME": str(self.home), "RAYON_NUM_THREADS": "2"}
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


# --- kinds -----------------------------------------------------------------------------------------------------------------------
# Each gets the world, a random generator and a folder of its own, and gives what was run and further findings.


def taken_by_safetensors(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            list(file.keys())
        return True
    except (SafetensorError, OSError):
        return False


def header(world, rng, home):
    folder = shutil.copytree(world.small, home / "in")
    (folder / "model.safetensors.index.json").unlink()
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    if rng.random() < 0.6:
        text = mutate_text(rng, data[8 : 8 + length])
        data = struct.pack("<Q", len(text)) + text + data[8 + length :]
    else:
        data = mutate_bytes(rng, data, range(8 + length))
    path.write_bytes(data)
    ran = world.run("probe", folder, "--json")
    found = []
    if ran.code == 0 and not taken_by_safetensors(path):
        found.append("safetensors refuses it")
    return ran, found


def tensors(world, rng, home):
    folder = shutil.copytree(world.small, home / "in")
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    body = bytearray(data[8 + length :])
    for _ in range(rng.choice([1, 3, 30])):
        at = rng.randrange(len(body) // 4) * 4
        body[at : at + 4] = rng.choice([b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\x7f\x7f", b"\x01\x00\x00\x00", bytes(4)])
    path.write_bytes(data[: 8 + length] + bytes(body))
    zero = rng.choice([[], ["--non-finite", "zero"]])
    dtype = rng.choice(["bf16", "f16", "f32"])
    ran = world.run("extract", "--base", world.small, "--tuned", folder, "--rank", "2", "--dtype", dtype, "--json", "--out", home / "out", *zero)
    found = []
    if ran.code == 0:
        total = json.loads(ran.stdout)["total"]
        if not -0.01 <= total["captured_energy"] <= 1.000001:
            found.append(f"captured {total['captured_energy']}")
        if b"NaN" in (home / "out/README.md").read_bytes():
            found.append("NaN in the card")
    return ran, found


def index(world, rng, home):
    folder = shutil.copytree(world.small, home / "in")
    path = folder / "model.safetensors.index.json"
    path.write_bytes(mutate_text(rng, path.read_bytes()))
    return world.run("probe", folder, "--json"), []


def gguf(world, rng, home):
    folder = home / "in"
    folder.mkdir()
    path = folder / "model.gguf"
    data = world.gguf.read_bytes()
    path.write_bytes(mutate_bytes(rng, data, range(min(len(data), 1500))))
    ran = world.run("probe", path, "--json")
    found = []
    if ran.code == 0:
        from gguf import GGUFReader

        try:
            for tensor in GGUFReader(path).tensors:
                _ = tensor.data
        except Exception as error:  # whatever it says: it does not take the file
            found.append(f"gguf-py refuses it: {type(error).__name__}")
    return ran, found


def config(world, rng, home):
    folder = shutil.copytree(world.fp8, home / "in")
    path = folder / "config.json"
    path.write_bytes(mutate_text(rng, path.read_bytes()))
    return world.run(*rng.choice([("probe", folder, "--json"), ("dequantize", folder, "--out", home / "out")])), []


def adapter(world, rng, home):
    folder = shutil.copytree(world.adapter, home / "in")
    path = folder / "adapter_config.json"
    value = json.loads(path.read_bytes())
    names = [f"model.layers.{i}.self_attn.{kind}_proj" for i in range(2) for kind in "qkv"]
    keys = ["q_proj", "layers.0.self_attn.k_proj", "self_attn", "layers.1", r"layers\.[01]\..*v_proj", ".*", "model.layers.0.self_attn.q_proj", "q.proj"]
    if rng.random() < 0.7:
        value["alpha_pattern"] = {rng.choice(keys): rng.choice([1, 2, 8, 0.5, 64]) for _ in range(rng.randrange(4))}
        value["use_rslora"] = rng.random() < 0.3
        value["lora_alpha"] = rng.choice([1, 4, 2.5, 16])
        path.write_text(json.dumps(value))
    else:
        path.write_bytes(mutate_text(rng, path.read_bytes()))
    ran = world.run("probe", folder, "--json")
    found = []
    try:
        value = json.loads(path.read_bytes())
        expected = peft_scales(value, names)
    except Exception:
        expected = None
    if ran.code in (0, 4) and ran.stdout and expected:
        scales = json.loads(ran.stdout)["scales"]
        if scales and any(abs(a - b) > 1e-9 * abs(b) for a, b in zip(scales, [min(expected), max(expected)])):
            found.append(f"PEFT's scales are {min(expected)} to {max(expected)}, not {scales}")
    return ran, found


def peft_scales(value: dict, names: list[str]) -> list[float]:
    from peft.utils.other import get_pattern_key

    patterns = value.get("alpha_pattern") or {}
    rank, rslora = 2, bool(value.get("use_rslora"))
    scales = []
    for name in names:
        alpha = patterns.get(get_pattern_key(patterns.keys(), name), value["lora_alpha"])
        scales.append(alpha / (rank**0.5 if rslora else rank))
    return scales


def sums(world, rng, home):
    from blake3 import blake3

    folder = shutil.copytree(world.adapter, home / "in")
    name = rng.choice(sorted(path.name for path in folder.iterdir() if path.is_file() and path.suffix != ".log"))
    path = folder / name
    data = path.read_bytes()
    path.write_bytes(mutate_bytes(rng, data))
    ran = world.run("verify", folder)
    if ran.code != 0:
        return ran, []
    found, text = [], (folder / "B3SUMS").read_text()
    listed = dict(reversed(line.split("  ", 1)) for line in text.splitlines())
    for file, digest in listed.items():
        if blake3((folder / file).read_bytes()).hexdigest() != digest:
            found.append(f"b3sum fails for {file}")
    if "adapter_model.safetensors" not in {file.removeprefix("./") for file in listed}:
        found.append("the weights are not in the sums")
    return ran, found


def state(world, rng, home):
    out = shutil.copytree(world.begun, home / "out")
    victim = home / "victim"
    victim.mkdir()
    (victim / "x").write_text("mine")
    files = [path for path in (out / ".trephine").rglob("*") if path.is_file()]
    path = rng.choice(files)
    match rng.randrange(5):
        case 0 if path.suffix == ".json":
            path.write_bytes(mutate_text(rng, path.read_bytes()))
        case 1:
            info = next((out / ".trephine/parts").glob("*/attempt.json"))
            value = json.loads(info.read_bytes())
            value["outputs"] = value.get("outputs", []) + ["../victim/x", str(victim / "x"), "..", "."]
            info.write_text(json.dumps(value))
        case 2:
            path.unlink()
            path.symlink_to(victim / "x")
        case 3:
            chained(path, rng, victim)
        case _:
            path.write_bytes(mutate_bytes(rng, path.read_bytes()))
    more = rng.choice([[], ["--overwrite"]])
    ran = world.run("dequantize", world.fp8, "--max-shard-size", "300kB", "--out", out, *more)
    found = []
    if {p.name: p.read_bytes() for p in victim.iterdir()} != {"x": b"mine"}:
        found.append("a file outside was touched")
    if ran.code == 0:
        for good in world.whole.rglob("*"):
            if good.is_file() and (out / good.relative_to(world.whole)).read_bytes() != good.read_bytes():
                found.append(f"{good.name} has other bytes")
    return ran, found


def chained(path: Path, rng: random.Random, victim: Path):
    """A journal with changed records whose chain of checksums is right: it has no key."""
    from blake3 import blake3

    journals = [path] if path.name == "journal" else list(path.parents[0].rglob("journal"))
    if not journals:
        return
    before, out = b"trephine.journal", b""
    for line in journals[0].read_bytes().splitlines():
        record = json.loads(line[17:])
        if rng.random() < 0.5:
            record = mutate_json(rng, record)
        if rng.random() < 0.3 and isinstance(record, dict) and "file" in record and isinstance(record["file"], dict):
            record["file"]["name"] = rng.choice(["../victim/x", str(victim / "x"), "../../victim/x", ""])
        text = json.dumps(record, separators=(",", ":")).encode()
        digits = blake3(before + text).hexdigest()[:16].encode()
        out, before = out + digits + b" " + text + b"\n", digits
    journals[0].write_bytes(out)


def report(world, rng, home):
    folder = shutil.copytree(world.adapter, home / "in")
    if rng.random() < 0.7:
        path = folder / "extraction.json"
        path.write_bytes(mutate_text(rng, path.read_bytes()))
    else:
        path = folder / "spectra.jsonl.zst"
        path.write_bytes(mutate_bytes(rng, path.read_bytes()))
    ran = world.run("report", folder, "--out", home / "report.html")
    found = []
    page = home / "report.html"
    if page.exists() and any(c in page.read_text() for c in "\x1b\u009b\u202e"):
        found.append("control characters in the page")
    return ran, found


def names(world, rng, home):
    folder = shutil.copytree(world.small, home / "in")
    (folder / "model.safetensors.index.json").unlink()
    nasty = [name for name in NASTY if name and len(name) < 200 and "/" not in name and name != ".."]
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    value = json.loads(data[8 : 8 + length])
    value = {key.replace("q_proj", rng.choice(nasty) + "q_proj") if rng.random() < 0.5 else key: entry for key, entry in value.items()}
    text = json.dumps(value).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    if rng.random() < 0.5:
        (folder / (rng.choice(nasty) + rng.choice([".txt", "", ".json"]))).write_text("side")
    renamed = home / ("in" + rng.choice(nasty))
    folder.rename(renamed)
    command = rng.choice(["probe", "extract", "dequantize", "autopsy"])
    out = home / ("out" + rng.choice(nasty))
    match command:
        case "probe":
            ran = world.run("probe", renamed)
        case "extract":
            ran = world.run("extract", "--base", renamed, "--tuned", renamed, "--rank", "2", "--out", out)
        case "autopsy":
            ran = world.run("autopsy", renamed)
        case _:
            ran = world.run("dequantize", renamed, "--out", out)
    found = []
    if command in ("extract", "dequantize") and ran.code == 0:
        verified = world.run("verify", out)
        if verified.code != 0:
            found.append(f"verify of its output exits {verified.code}")
        found += verified.findings()
    return ran, found


KINDS = {kind.__name__: kind for kind in [header, tensors, index, gguf, config, adapter, sums, state, report, names]}
WORLD = None


def begin(program, home):
    global WORLD
    WORLD = home


def one(task):
    world, kind, seed = WORLD, task[0], task[1]
    rng = random.Random(f"{kind} {seed}")
    with tempfile.TemporaryDirectory(dir=world.home) as home:
        home = Path(home)
        try:
            ran, found = KINDS[kind](world, rng, home)
        except (UnicodeEncodeError, ValueError, TypeError, OSError) as error:
            # A mutation that no file can hold.
            return kind, seed, "no input", [] if not isinstance(error, OSError) else [f"script: {error}"]
        found = ran.findings() + found
        if found:
            kept = Path("mutate-findings") / f"{kind}-{seed}"
            shutil.copytree(home, kept, symlinks=True, dirs_exist_ok=True)
            (kept / "command").write_text(f"{ran.command}\n{found}\n{ran.stderr.decode(errors='replace')[:2000]}")
        return kind, seed, str(ran.code), found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--kind", nargs="*", default=list(KINDS))
    parser.add_argument("--seconds", type=float, default=20, help="what takes longer hangs: give more where others use the machine")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        world = World(str(Path(asked.program).resolve()), Path(home), asked.seconds)
        tasks = [(asked.kind[i % len(asked.kind)], asked.seed * 1_000_000 + i) for i in range(asked.count)]
        codes, findings = collections.defaultdict(collections.Counter), []
        with multiprocessing.get_context("fork").Pool(asked.jobs, begin, (None, world)) as pool:
            for kind, seed, code, found in pool.imap_unordered(one, tasks, 8):
                codes[kind][code] += 1
                findings += [(kind, seed, what) for what in found]
        columns = ["0", "2", "3", "4", "no input", "other"]
        print("| kind | inputs | " + " | ".join(f"exit {c}" if c.isdigit() else c for c in columns) + " | findings |")
        print("|---|" + "---:|" * (len(columns) + 2))
        for kind in asked.kind:
            counts = codes[kind]
            other = sum(count for code, count in counts.items() if code not in columns)
            cells = [counts[column] for column in columns[:-1]] + [other]
            print(f"| {kind} | {sum(counts.values())} | " + " | ".join(map(str, cells)) + f" | {sum(k == kind for k, _, _ in findings)} |")
        print(f"| all | {asked.count} |" + " |" * len(columns) + f" {len(findings)} |")
        for kind, seed, what in findings[:50]:
            print(f"finding: {kind} {seed}: {what}")


if __name__ == "__main__":
    main()
