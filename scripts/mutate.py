"""Mutates every kind of file that Trephine reads, and holds what the program says against judges that are not ours.

    python scripts/mutate.py PROGRAM [--count 2000] [--seed 1] [--jobs 2] [--kind header ...] [--only KIND SEED]

Judges: the `safetensors` and `gguf` packages, `b3sum --check`, PEFT's own rule for the scale of a module, and the bytes of a run that
nobody disturbed. They are held to in both directions: what Trephine takes, they take too, and what they take, Trephine takes, unless it
says one of the reasons in ON_PURPOSE. So a good share of these inputs are mutated gently (see mutations.py): most of them are still what
they should be, written in another way.

For every input: an exit code among 0, 2, 3 and 4, no signal, no panic, at most --seconds and 1 GiB of address space (4 where a model is run), no control
character on the terminal, and nothing changed outside the output folder. Prints a table of kinds, exit codes and findings; a finding's
input is kept in ./mutate-findings.

Needs safetensors 0.8.0, gguf, blake3, torch and peft 0.21.2, and the program b3sum.
"""

import argparse
import collections
import json
import multiprocessing
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mutations import NASTY, gentle_adapter, gentle_header, gentle_sums, gguf_file, mutate_bytes, mutate_json, mutate_text

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
        r"general.alignment is \d+, not a power of two",
    ],
    "sums": [
        "was listed before",
        "has no newline at its end",
        "is not listed in B3SUMS",
        r'".*//.*" is not a name inside',
    ],
}


# --- the world -------------------------------------------------------------------------------------------------------------------


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
        if ours and taken:
            self.judged = "both take"
        elif ours:
            return [f"the judge refuses it: {why}"]
        elif not taken:
            self.judged = "both refuse"
        elif any(re.search(reason, said) for reason in ON_PURPOSE[kind]):
            self.judged = "on purpose"
        elif self.code in (2, 3, 4):
            said = re.findall(r'"what": "(.*)"', said) or [said.strip()]
            return [f"the judge takes it, we say: {said[0][:300]}"]
        return []


# --- kinds -----------------------------------------------------------------------------------------------------------------------
# Each gets the world, a random generator and a folder of its own, and gives what was run and further findings.


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


def header(world, rng, home):
    folder = shutil.copytree(world.small, home / "in")
    (folder / "model.safetensors.index.json").unlink()
    path = folder / "model.safetensors"
    text, data = read_safetensors(path)
    way = rng.random()
    if way < 0.6:
        write_safetensors(path, *gentle_header(rng, json.loads(text), data))
    elif way < 0.8:
        write_safetensors(path, mutate_text(rng, text), data)
    else:
        path.write_bytes(mutate_bytes(rng, path.read_bytes(), range(8 + len(text))))
    ran = world.run("probe", folder, "--json")
    why = refused_by_safetensors(path)
    if why is None and ran.code != 0 and has_a_name_twice(path):
        # The judge takes the last of them, whatever the others say.
        ran.judged = "on purpose"
        return ran, []
    return ran, ran.held_against("header", why is None, why)


def has_a_name_twice(path: Path) -> bool:
    names = lambda pairs: [name for name, _ in pairs]
    try:
        found = json.loads(read_safetensors(path)[0], object_pairs_hook=names)
    except ValueError:
        return False
    return len(found) > len(set(found))


def tensors(world, rng, home):
    folder = shutil.copytree(world.small, home / "in")
    path = folder / "model.safetensors"
    text, data = read_safetensors(path)
    body = bytearray(data)
    for _ in range(rng.choice([1, 3, 30])):
        at = rng.randrange(len(body) // 4) * 4
        body[at : at + 4] = rng.choice([b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\x7f\x7f", b"\x01\x00\x00\x00", bytes(4)])
    write_safetensors(path, text, bytes(body))
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
    from gguf import GGML_QUANT_SIZES, GGUFReader

    folder = home / "in"
    folder.mkdir()
    path = folder / "model.gguf"
    if rng.random() < 0.6:
        path.write_bytes(gguf_file(rng, {kind.value: size for kind, size in GGML_QUANT_SIZES.items()}))
    else:
        data = rng.choice(world.fixtures).read_bytes()
        path.write_bytes(mutate_bytes(rng, data, range(min(len(data), 1500))))
    ran = world.run("probe", path, "--json")
    try:
        for tensor in GGUFReader(path).tensors:
            _ = tensor.data
        why = None
    except Exception as error:  # whatever it says: it does not take the file
        why = f"{type(error).__name__}: {error}"[:200]
    return ran, ran.held_against("gguf", why is None, why)


def config(world, rng, home):
    folder = shutil.copytree(world.fp8, home / "in")
    path = folder / "config.json"
    path.write_bytes(mutate_text(rng, path.read_bytes()))
    return world.run(*rng.choice([("probe", folder, "--json"), ("dequantize", folder, "--out", home / "out")])), []


MODULES = [f"model.layers.{i}.self_attn.{kind}_proj" for i in range(2) for kind in "qkv"]


def adapter(world, rng, home):
    import numpy
    from safetensors.numpy import save_file

    folder = shutil.copytree(world.adapter, home / "in")
    path = folder / "adapter_config.json"
    value, gentle = json.loads(path.read_bytes()), rng.random() < 0.75
    if gentle:
        value = gentle_adapter(rng, value)
        path.write_text(json.dumps(value))
    else:
        path.write_bytes(mutate_text(rng, path.read_bytes()))
    expected = None
    try:
        expected = peft_scales(json.loads(path.read_bytes()))
        ranks = {name: rank for name, (rank, _) in expected.items()}
        # Factors of the ranks that PEFT would give its modules.
        factors = {f"base_model.model.{name}.lora_{side}.weight": numpy.ones((rank, 8) if side == "A" else (8, rank), "float32") for name, rank in ranks.items() for side in "AB"}
        if max(ranks.values()) < 100:
            save_file(factors, folder / "adapter_model.safetensors")
        else:
            expected = None
    except Exception:  # PEFT makes nothing of it
        expected = None
    ran = world.run("probe", folder, "--json")
    if expected is None:
        ran.judged = "both refuse" if ran.code == 3 else None
        return ran, []
    if ran.code not in (0, 4) or not ran.stdout:
        return ran, [f"PEFT has scales for it, we say: {ran.stderr[:300]}"] if gentle else []
    scales, theirs = json.loads(ran.stdout)["scales"], [scale for _, scale in expected.values()]
    ran.judged = "both take"
    if not scales or any(abs(a - b) > 1e-9 * abs(b) for a, b in zip(scales, [min(theirs), max(theirs)])):
        return ran, [f"PEFT's scales are {min(theirs)} to {max(theirs)}, not {scales}"]
    return ran, []


def peft_scales(value: dict) -> dict[str, tuple[int, float]]:
    """Each module's rank and scale, as `LoraModel._create_and_replace` and `LoraLayer.update_layer` have them."""
    from peft.utils.other import get_pattern_key

    alphas, ranks = value.get("alpha_pattern") or {}, value.get("rank_pattern") or {}
    found = {}
    for name in MODULES:
        rank = ranks.get(get_pattern_key(ranks.keys(), name), value["r"])
        alpha = alphas.get(get_pattern_key(alphas.keys(), name), value["lora_alpha"])
        found[name] = (rank, alpha / (rank**0.5 if value.get("use_rslora") else rank))
    return found


def sums(world, rng, home):
    folder = shutil.copytree(world.adapter, home / "in")
    path = folder / "B3SUMS"
    if rng.random() < 0.75:
        path.write_bytes(gentle_sums(rng, path.read_text()))
        (folder / rng.choice(["extra.txt", "sub\\n", "README.md.bak"])).write_text("not listed")
    else:
        name = rng.choice(sorted(path.name for path in folder.iterdir() if path.is_file() and path.suffix != ".log"))
        (folder / name).write_bytes(mutate_bytes(rng, (folder / name).read_bytes()))
    ran = world.run("verify", folder)
    judge = subprocess.run(["b3sum", "--check", "B3SUMS"], cwd=folder, capture_output=True)
    found = ran.held_against("sums", judge.returncode == 0, judge.stderr.decode(errors="replace")[:200])
    if ran.code == 0 and b"adapter_model.safetensors" not in path.read_bytes():
        found.append("the weights are not in the sums")
    return ran, found


def state(world, rng, home):
    name = rng.choice(list(world.resumed))
    out = shutil.copytree(world.begun / name, home / "out")
    victim = home / "victim"
    victim.mkdir()
    (victim / "x").write_text("mine")
    files = [path for path in (out / ".trephine").rglob("*") if path.is_file()]
    path = rng.choice(files)
    way = rng.randrange(5)
    match way:
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
    ran = world.run(*world.resumed[name], "--out", out, *more)
    found = []
    if {p.name: p.read_bytes() for p in victim.iterdir()} != {"x": b"mine"}:
        found.append("a file outside was touched")
    # Whoever writes the chain of a journal anew may record what he likes: his word goes to the records, never to the weights.
    forged = way == 3
    if ran.code == 0:
        for good in (world.whole / name).rglob("*"):
            if not good.is_file() or good.suffix == ".log" or (forged and good.suffix != ".safetensors"):
                continue
            if (out / good.relative_to(world.whole / name)).read_bytes() != good.read_bytes():
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
    way = rng.random()
    if way < 0.5:
        folder = shutil.copytree(world.adapter, home / "in")
        path = folder / "extraction.json"
    elif way < 0.7:
        folder = shutil.copytree(world.adapter, home / "in")
        path = folder / "spectra.jsonl.zst"
    else:
        folder = shutil.copytree(world.measured / rng.choice(["analysis", "autopsy"]), home / "in")
        path = rng.choice(sorted(folder.glob("*.json")))
    path.write_bytes(mutate_bytes(rng, path.read_bytes()) if path.suffix == ".zst" else mutate_text(rng, path.read_bytes()))
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
    text, data = read_safetensors(path)
    value = {key.replace("q_proj", rng.choice(nasty) + "q_proj") if rng.random() < 0.5 else key: entry for key, entry in json.loads(text).items()}
    write_safetensors(path, json.dumps(value).encode(), data)
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
            ran = world.run("extract", "--base", renamed, "--tuned", world.home / "tuned", "--allow-missing", "--rank", "2", "--out", out)
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


def calibration(world, rng, home):
    """A calibration's index, one of its files, or an importance matrix."""
    folder = shutil.copytree(world.calibration, home / "in")
    path = rng.choice(sorted(path for path in folder.iterdir() if path.name != "B3SUMS"))
    if path.suffix == ".json":
        path.write_bytes(mutate_text(rng, path.read_bytes()))
    elif rng.random() < 0.5:
        text, data = read_safetensors(path)
        write_safetensors(path, mutate_text(rng, text), data)
    else:
        path.write_bytes(mutate_bytes(rng, path.read_bytes()))
    given = folder if rng.random() < 0.8 or path.suffix == ".json" else path
    pair = ["--base", world.fp8, "--tuned", DATA / "data/tuned", "--rank", "2", "--include", "re:layers\\.0\\.self_attn"]
    ran = world.run("extract", *pair, "--calibration", given, "--out", home / "out")
    return ran, ["NaN in the card"] if ran.code == 0 and b"NaN" in (home / "out/README.md").read_bytes() else []


TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m.content | trim }}{{ eos_token }}{% endfor %}"


def text(world, rng, home):
    """What a model is run on: its tokenizer, its chat template, and conversations."""
    folder = home / "tokenizer"
    folder.mkdir()
    for name in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(world.base / name, folder / name)
    config = json.loads((folder / "tokenizer_config.json").read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TEMPLATE}))
    talk = [{"role": "user", "content": "How are you today?"}, {"role": "assistant", "content": "Well, and you?"}]
    lines = [{"messages": talk}, {"text": "Some words that follow one another."}, {"messages": talk}]
    file = home / "text.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    match rng.randrange(4):
        case 0:
            path = folder / "tokenizer.json"
            path.write_bytes(mutate_text(rng, path.read_bytes()))
        case 1:
            path = folder / "tokenizer_config.json"
            path.write_bytes(mutate_text(rng, path.read_bytes()))
        case 2:
            file.write_bytes(b"\n".join(mutate_text(rng, line) if rng.random() < 0.5 else line for line in file.read_bytes().splitlines()))
        case _:
            template = mutate_bytes(rng, rng.choice([TEMPLATE, *TEMPLATES]).encode())
            (folder / "chat_template.jinja").write_bytes(template)
    options = ["--model", world.base, "--tokenizer", folder, "--text", file, "--tokens", "32", "--sequence", "16"]
    command = rng.choice([["evaluate", *options], ["calibrate", *options, "--k", "4", "--out", home / "out"]])
    return world.run(*command), []


TEMPLATES = [
    "{% for i in range(100000) %}{% for j in range(100000) %}{{ i }}{% endfor %}{% endfor %}",
    "{{ 'x' * 10000000000 }}",
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "{{ messages[0].content.center(10000000000) }}{{ messages | tojson(indent=1000000000) }}",
]


def convert(world, rng, home):
    """An adapter's config or factors on the way to another program, whose reader has to take what is written."""
    folder = shutil.copytree(world.adapter, home / "in")
    if rng.random() < 0.5:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(gentle_adapter(rng, json.loads(path.read_bytes())))) if rng.random() < 0.5 else path.write_bytes(mutate_text(rng, path.read_bytes()))
    else:
        path = folder / "adapter_model.safetensors"
        text, data = read_safetensors(path)
        write_safetensors(path, *(gentle_header(rng, json.loads(text), data) if rng.random() < 0.5 else (mutate_text(rng, text), data)))
    form = rng.choice(["gguf", "mlx"])
    ran = world.run("convert-adapter", folder, "--format", form, "--base", world.base, "--out", home / "out")
    found = []
    if ran.code == 0 and form == "gguf":
        from gguf import GGUFReader

        try:
            assert all(len(tensor.data) for tensor in GGUFReader(home / "out/adapter.gguf").tensors)
        except Exception as error:  # whatever it says
            found.append(f"gguf-py refuses what was written: {error}")
    if ran.code == 0 and form == "mlx":
        why = refused_by_safetensors(home / "out/adapters.safetensors")
        found += [f"safetensors refuses what was written: {why}"] if why else []
    return ran, found


KINDS = [header, tensors, index, gguf, config, adapter, sums, state, report, names, calibration, text, convert]
KINDS = {kind.__name__: kind for kind in KINDS}
# What takes milliseconds, and has a judge, comes oftener.
OFTEN = {"header": 4, "gguf": 4, "sums": 3, "adapter": 3, "index": 2, "config": 2, "report": 2, "convert": 2}
WORLD = None


def begin(home):
    global WORLD
    WORLD = home


def one(task):
    world, kind, seed = WORLD, task[0], task[1]
    world.kind = kind
    rng = random.Random(f"{kind} {seed}")
    with tempfile.TemporaryDirectory(dir=world.home) as home:
        home = Path(home)
        try:
            ran, found = KINDS[kind](world, rng, home)
        except (UnicodeEncodeError, ValueError, TypeError, OSError) as error:
            # A mutation that no file can hold.
            return kind, seed, "no input", None, [] if not isinstance(error, OSError) else [f"script: {error}"]
        found = ran.findings() + found
        if found:
            kept = Path("mutate-findings") / f"{kind}-{seed}"
            shutil.copytree(home, kept, symlinks=True, dirs_exist_ok=True)
            (kept / "command").write_text(f"{ran.command}\n{found}\n{ran.stderr.decode(errors='replace')[:2000]}")
        return kind, seed, str(ran.code), ran.judged, found


CODES = ["0", "2", "3", "4", "no input"]
JUDGED = ["both take", "both refuse", "on purpose"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--kind", nargs="*", default=list(KINDS))
    parser.add_argument("--only", nargs=2, metavar=("KIND", "SEED"), help="one input, as a finding names it")
    parser.add_argument("--minutes", type=float, help="stop after so long")
    parser.add_argument("--scratch", default="/dev/shm" if os.path.isdir("/dev/shm") else None)
    parser.add_argument("--seconds", type=float, default=20, help="what takes longer hangs: give more where others use the machine")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.scratch) as home:
        world = World(str(Path(asked.program).resolve()), Path(home), asked.seconds)
        turns = [kind for kind in asked.kind for _ in range(OFTEN.get(kind, 1))]
        tasks = [(turns[i % len(turns)], asked.seed * 1_000_000 + i) for i in range(asked.count)]
        if asked.only:
            tasks = [(asked.only[0], int(asked.only[1]))]
        started = time.monotonic()
        codes, findings = collections.defaultdict(collections.Counter), []
        with multiprocessing.get_context("fork").Pool(asked.jobs, begin, (world,)) as pool:
            for at, (kind, seed, code, judged, found) in enumerate(pool.imap_unordered(one, tasks, 8)):
                if at % 1000 == 0:
                    print(f"{at} of {len(tasks)}, {len(findings)} findings", file=sys.stderr, flush=True)
                codes[kind].update([code, judged])
                findings += [(kind, seed, what) for what in found]
                if asked.minutes and time.monotonic() - started > 60 * asked.minutes:
                    break
        columns = [f"exit {code}" if code.isdigit() else code for code in CODES]
        print("| kind | inputs | " + " | ".join([*columns, "other", "judge: " + JUDGED[0], *JUDGED[1:]]) + " | findings |")
        print("|---|" + "---:|" * (len(CODES) + len(JUDGED) + 3))
        for kind in [*codes, "all"]:
            counts = sum(codes.values(), collections.Counter()) if kind == "all" else codes[kind]
            inputs = sum(count for code, count in counts.items() if code not in (None, *JUDGED))
            other = inputs - sum(counts[code] for code in CODES)
            cells = [*(counts[code] for code in CODES), other, *(counts[judged] for judged in JUDGED)]
            print(f"| {kind} | {inputs} | " + " | ".join(map(str, cells)) + f" | {sum(kind in (k, 'all') for k, _, _ in findings)} |")
        for kind, seed, what in findings[:100]:
            print(f"finding: {kind} {seed}: {what}")


if __name__ == "__main__":
    main()
