"""Gives the same hostile inputs and bad luck to several builds of the program, and prints what each did: one row a kind.

    python scripts/hostile.py PROGRAM [PROGRAM ...] [--only 4 9 ...] [--seconds 60]

The kinds are numbered as in the issue that collected them. A row says the exit code or signal, and what gives it away: a peak of memory,
a file outside that was touched, the words of the error. Every program gets at most --seconds and 3 GiB of address space a run; what takes
more is written so. Needs strace (runs are slowed down by delaying their fsyncs) and gcc (a clock that is set wrong); rows whose means are
not there (control groups, mounts, root) say so.
"""

import argparse
import json
import multiprocessing
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


# --- severe ----------------------------------------------------------------------------------------------------------------------


@kind("1", "a tampered journal names files outside, then `--overwrite`", "hostile_folder::names_in_an_attempt_that_lead_out_of_the_folder_are_no_files_of_the_run, a_unit_that_is_not_planned_moves_no_file")
def tampered(lab):
    lab.begun()
    victim = lab.path("victim")
    victim.mkdir()
    (victim / "x").write_text("mine")
    names = ["../victim/x", str(victim / "x")]

    def change(value):
        for key, inner in value.items() if isinstance(value, dict) else []:
            if key in ("files", "outputs") and isinstance(inner, list):
                inner.extend(names)
            change(inner)

    state = lab.path("out/.trephine")
    for path in sorted(state.rglob("*")):
        if path.name == "journal":
            chain(path, change)
        elif path.name == "attempt.json":
            value = json.loads(path.read_bytes())
            value.setdefault("outputs", []).extend(names)
            path.write_text(json.dumps(value))
    ran = lab.run(*lab.dequantize("out", "--overwrite"))
    return f"{ran.how()}, {'the file outside is untouched' if (victim / 'x').exists() else '**deleted a file outside**'}"


LINKS = [(".trephine/lock", "file"), (".trephine/journal", "file"), (".trephine/.tmp-heartbeat", "file"), ("extraction.log", "file"), (".trephine", "folder"), (".trephine/shards", "folder")]


@kind("1", "links in the output folder: lock, journal, heartbeat, log, `.trephine`, shards", "hostile_folder::links_where_a_run_keeps_its_state_are_refused_and_lead_nowhere, a_log_that_is_a_link_is_not_appended_to")
def links(lab):
    harmed, codes = [], []
    for at, (link, to) in enumerate(LINKS):
        for more in [[], ["--overwrite"]]:
            home = lab.path(f"{at}-{len(more)}")
            victim, out = home / "victim", home / "out"
            (victim / "folder/shards").mkdir(parents=True)
            for name in ["file", "folder/journal", "folder/lock", "folder/shards/a.shard", "folder/heartbeat.json"]:
                (victim / name).write_text("mine")
            before = {str(p.relative_to(victim)): p.read_bytes() for p in victim.rglob("*") if p.is_file()}
            (out / link).parent.mkdir(parents=True)
            (out / link).symlink_to(victim / to)
            codes.append(lab.run(*lab.extract(DATA / "data/base", DATA / "data/tuned", out, *more)).code)
            now = {str(p.relative_to(victim)): p.read_bytes() for p in victim.rglob("*") if p.is_file()}
            harmed += [link + (" --overwrite" if more else "")] if now != before else []
    return f"exits {', '.join(map(str, sorted(set(codes))))}; " + (f"**harmed through {', '.join(harmed)}**" if harmed else "nothing outside was touched")


@kind("1", "a side file is a link to a private key", "hostile_folder::side_files_that_lead_out_of_the_checkpoint_are_not_copied")
def key(lab):
    base = lab.data("base-fp8")
    lab.path("id_ed25519").write_text("PRIVATE")
    (base / "tokenizer_config.json").unlink()
    (base / "tokenizer_config.json").symlink_to(lab.path("id_ed25519"))
    ran = lab.run("dequantize", base, "--out", lab.path("out"))
    copied = lab.path("out/tokenizer_config.json").exists() and "PRIVATE" in lab.path("out/tokenizer_config.json").read_text()
    return f"{ran.how()}, {'**the key is in the output**' if copied else 'not copied'}"


def changed(lab, command, file: Path):
    """Writes to a file once something of the run is durable."""
    child = lab.slowed(*command)
    journals = lambda: [path for path in lab.path("out").rglob("journal") if path.stat().st_size > 2000]
    results = lambda: [*lab.path("out").rglob("*.shard*"), *lab.path("out").rglob("*.safetensors*"), *journals()]
    while not results() and alive(child):
        time.sleep(0.01)
    data = bytearray(file.read_bytes())
    for at in range(len(data) // 2, len(data) - 1, 2):
        data[at] ^= 1
    with open(file, "r+b") as target:
        target.write(data)
    ran = lab.end(child)
    return ran.full() + ("" if ran.code else " **(made of two states)**")


@kind("2", "`extract`: the tuned file is written to during the run", "changed_inputs::an_extraction_of_two_states_is_none")
def changed_extract(lab):
    tuned = lab.data("tuned")
    return changed(lab, [*lab.extract(DATA / "data/base", tuned), "--threads", "1"], tuned / "model.safetensors")


@kind("2", "`dequantize`: likewise", "changed_inputs::a_conversion_of_two_states_is_none")
def changed_dequantize(lab):
    base = lab.data("base-fp8")
    return changed(lab, ["dequantize", base, "--quiet", "--max-shard-size", "300kB", "--threads", "1", "--out", lab.path("out")], base / "model.safetensors")


@kind("2", "`merge`: likewise", "changed_inputs::a_merge_of_two_states_is_none")
def changed_merge(lab):
    base = lab.data("base")
    lab.run(*lab.extract(base, DATA / "data/tuned", "adapter"))
    return changed(lab, ["merge", "--base", base, "--adapter", lab.path("adapter"), "--quiet", "--max-shard-size", "300kB", "--threads", "1", "--out", lab.path("out")], base / "model.safetensors")


@kind("2", "`analyze`: likewise", "changed_inputs::an_analysis_of_two_states_is_none")
def changed_analyze(lab):
    tuned = lab.data("tuned")
    quartet = ["--base", DATA / "data/base", "--base-quantized", DATA / "data/base-fp8", "--tuned", tuned]
    command = ["analyze", *quartet, "--rank", "4", "--quiet", "--threads", "1", "--out", lab.path("out")]
    return changed(lab, command, tuned / "model.safetensors")


def header_bomb(number, what, make):
    @kind(number, what, "hostile_inputs::headers_that_stand_for_gigabytes")
    def bomb(lab):
        # In a process of its own: the peak of a run counts what its parent held.
        maker = multiprocessing.get_context("fork").Process(target=make, args=(lab,))
        maker.start()
        maker.join()
        folder = lab.path("in")
        return lab.run("probe" if (folder / "model.gguf").exists() else "dequantize", folder, *([] if (folder / "model.gguf").exists() else ["--out", lab.path("out")])).full()


def gguf_bomb(lab):
    folder = lab.path("in")
    folder.mkdir()
    entry = b"".join([struct.pack("<Q", 6), b"%06d", struct.pack("<IQIQ", 1, 0, 0, 0)])
    out = b"GGUF" + struct.pack("<IQQ", 3, 2_600_000, 0)
    at = entry.index(b"%06d")
    parts = [entry[:at] + f"{i:06x}".encode() + entry[at + 4 :] for i in range(2_600_000)]
    (folder / "model.gguf").write_bytes(out + b"".join(parts) + bytes(64))
    return folder


header_bomb("4", "84 MB header of empty objects", lambda lab: with_header(lab.path("in"), '{"a":{' + "".join(f'"{i:06x}":{{}},' for i in range(7_000_000)) + '"z":1}}'))
header_bomb("4", "shape of 49 million numbers", lambda lab: with_header(lab.path("in"), '{"a":{"dtype":"U8","shape":[' + "1," * 49_000_000 + '1],"data_offsets":[0,1]}}', b"x"))
header_bomb("4", "1.7 million empty tensors", lambda lab: with_header(lab.path("in"), "{" + ",".join(f'"{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(1_700_000)) + "}"))
header_bomb("4", "99 MB GGUF of 2.6 million tensors", gguf_bomb)

PATTERNS = [f"(x{{99}}){{99}}{i}" for i in range(2000)]


@kind("4", "`adapter_config.json` of 2,000 patterns", "hostile_inputs::patterns_that_stand_for_gigabytes")
def adapter_patterns(lab):
    lab.run(*lab.extract(*pair(lab.home)))
    path = lab.path("out/adapter_config.json")
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"rank_pattern": {pattern: 4 for pattern in PATTERNS}}))
    return lab.run("probe", lab.path("out")).full()


@kind("4", "`quantization_config.ignore` of 2,000 patterns", "hostile_inputs::patterns_that_stand_for_gigabytes")
def ignore_patterns(lab):
    quantization = {"quant_method": "compressed-tensors", "format": "dense", "ignore": [f"re:{pattern}" for pattern in PATTERNS]}
    folder = checkpoint(lab.path("in"), {NAME: ("F32", [8, 8], bytes(256))}, QWEN | {"quantization_config": quantization})
    return lab.run("dequantize", folder, "--out", lab.path("out")).full()


@kind("4", "36 KB of spectra that unpack to gigabytes, in `report`", "hostile_inputs::spectra_that_stand_for_gigabytes")
def spectra(lab):
    lab.run(*lab.extract(*pair(lab.home)))
    # In a process of its own: the peak of a run counts what its parent held.
    make = "(printf '{\"module\":\"'; head -c 1073741824 /dev/zero | tr '\\0' x) | zstd -q -c > \"$1\""
    if subprocess.run(["bash", "-o", "pipefail", "-c", make, "bash", lab.path("out/spectra.jsonl.zst")]).returncode:
        return "not run: no zstd here"
    return lab.run("report", lab.path("out"), "--out", lab.path("r.html")).full()


@kind("4", "config.json is a link to /dev/zero", "hostile_inputs::pipes_and_devices_in_place_of_files")
def zero(lab):
    base = lab.data("base-fp8")
    (base / "config.json").unlink()
    (base / "config.json").symlink_to("/dev/zero")
    return lab.run("dequantize", base, "--out", lab.path("out")).full()


@kind("4", "a pipe in place of config, weights, index, adapter config, sums", "hostile_inputs::pipes_and_devices_in_place_of_files")
def pipes(lab):
    lab.seconds = min(lab.seconds, 10)
    ends = []
    for name in ["config.json", "model.safetensors", "model.safetensors.index.json"]:
        base = shutil.copytree(DATA / "data/base-fp8", lab.path(name))
        (base / name).unlink(missing_ok=True)
        os.mkfifo(base / name)
        ends.append(lab.run("dequantize", base, "--out", lab.path("out")).how())
    lab.run(*lab.extract(*pair(lab.home), "adapter"))
    for name, command in [("adapter_config.json", "probe"), ("B3SUMS", "verify")]:
        folder = shutil.copytree(lab.path("adapter"), lab.path("a-" + name))
        (folder / name).unlink()
        os.mkfifo(folder / name)
        ends.append(lab.run(command, folder).how())
    return "; ".join(ends)


# --- medium ----------------------------------------------------------------------------------------------------------------------


@kind("5", "`--non-finite zero` on a weight of NaN alone", "hostile_inputs::what_non_finite_zero_does_is_said_and_bounded")
def all_nan(lab):
    base, _ = pair(lab.home)
    tuned = checkpoint(lab.path("nan"), {NAME: ("F32", [32, 32], floats([float("nan")] * 1024))})
    ran = lab.run(*lab.extract(base, tuned, "out", "--non-finite", "zero"))
    captured = re.search(r"captured\s+[\d.]+ ?%|100\.00 ?%", ran.out)
    return ran.full() + (f", says \"{captured[0]}\"" if captured else "")


@kind("5", "`fidelity` of an adapter with a NaN", "hostile_inputs::a_measurement_of_numbers_that_are_none_is_none")
def nan_fidelity(lab):
    base, tuned = pair(lab.home)
    lab.run(*lab.extract(base, tuned, "adapter"))
    path = lab.path("adapter/adapter_model.safetensors")
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    path.write_bytes(data[: 8 + length] + b"\xc0\x7f" + data[8 + length + 2 :])
    ran = lab.run("fidelity", "--served", base, "--tuned", tuned, "--adapter", lab.path("adapter"))
    return ran.full() + (", prints NaN" if "NaN" in ran.out else "")


@kind("6", "the card's commands with a path `a b; touch c #`", "hostile_inputs::the_cards_commands_are_quoted")
def card(lab):
    base, tuned = pair(lab.home)
    name = "a b; touch c #\n```\n# \"x\""
    ran = lab.run(*lab.extract(base, tuned, "out", "--base-model-name", name))
    text = lab.path("out/README.md").read_text()
    line = next((line for line in text.splitlines() if line.startswith("vllm serve ")), "no command")
    fences = sum(line.startswith("```") for line in text.splitlines())
    return f"{ran.how()}, `{line[:45].replace('|', ' ')}`, {fences} fences"


@kind("7", "control characters in names of tensors and folders", "hostile_inputs::names_write_nothing_to_the_terminal_or_the_log")
def control(lab):
    name = "model.layers.0.self_attn.\x1b[2J\u009b31m\nerror: forged\u202e.q_proj.weight"
    base, tuned = pair(lab.home, name)
    bad = lambda text: any((ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0 or c == "\u202e" for c in text)
    out = lab.path("o\x1b[2J")
    commands = {"probe": ["probe", base], "probe --json": ["probe", base, "--json"], "extract": lab.extract(base, tuned, out), "verify": ["verify", out], "status": ["status", out]}
    commands["a missing file"] = ["probe", "no\x1b[2Jthing"]
    found = [name for name, command in commands.items() if bad(lab.run(*command).said)]
    log = out / "extraction.log"
    found += ["the log"] if log.exists() and bad(log.read_text()) else []
    return "**reach: " + ", ".join(found) + "**" if found else "none in six outputs and the log"


class Group:
    """A control group (v1) with a limit."""

    def __init__(self, limit: int):
        own = next((line.split(":memory:", 1)[1].strip() for line in open("/proc/self/cgroup") if ":memory:" in line), None)
        self.path = Path("/sys/fs/cgroup/memory") / (own or "").lstrip("/") / f"trephine-{os.getpid()}"
        self.path.mkdir()
        (self.path / "memory.limit_in_bytes").write_text(str(limit))

    def __enter__(self):
        return ["sh", "-c", f'echo $$ > "{self.path}/cgroup.procs"; exec "$@"', "sh"]

    def __exit__(self, *_):
        self.path.rmdir()


@kind("8", "a control group of 512 MB, no `--memory` (extract on 1.5 GiB of weights)", "hostile_inputs::a_group_with_little_memory_is_heeded")
def group(lab):
    try:
        group = Group(512 << 20)
    except OSError as error:
        return f"not run: {error}"
    base, tuned = sparse(lab.path("base"), 768), sparse(lab.path("tuned"), 768)
    with open(tuned / "model.safetensors", "r+b") as file:
        file.seek(8 + struct.unpack("<Q", file.read(8))[0])
        for _ in range(12):
            file.write(os.urandom(1 << 19).translate(bytes(byte & 0x3F for byte in range(256))))
            file.seek((64 << 20) - (1 << 19), 1)
    with group as before:
        lab.seconds, seconds = 300, lab.seconds
        plan = lab.run("extract", "--base", base, "--tuned", tuned, "--rank", "64", "--dry-run", "--json", "--out", lab.path("out"), before=before, limit=None)
        allowed = json.loads(plan.out)["memory"] >> 20 if plan.code == 0 else plan.full()
        ran = lab.run("extract", "--base", base, "--tuned", tuned, "--rank", "64", "--quiet", "--out", lab.path("out"), before=before, limit=None)
        lab.seconds = seconds
    return f"{allowed} MiB allowed; {ran.full()}, peak {ran.peak} MiB"


@kind("9", "a file is truncated while it is mapped", "hostile_inputs::a_file_that_is_cut_short_is_named")
def truncated(lab):
    base = sparse(lab.path("base"), 4096)
    child = lab.begin("dequantize", base, "--quiet", "--dtype", "f32", "--threads", "1", "--out", lab.path("out"), limit=None)
    # Until the first file is being written.
    while not any(path.stat().st_size > 1 << 20 for path in lab.path("out").rglob(".tmp-*")) and alive(child):
        time.sleep(0.01)
    os.truncate(base / "model.safetensors", 65536)
    ran = lab.end(child)
    return ran.full()


@kind("9", "`ulimit -v` of 60, 120 and 200 MiB", "hostile_inputs::limits_of_the_system_are_errors")
def address_space(lab):
    return "; ".join(lab.run(*lab.extract(DATA / "data/base", DATA / "data/tuned", f"{n}"), limit=n << 20).full()[:90] for n in [60, 120, 200])


@kind("9", "`ulimit -f` of 4 KiB", "hostile_inputs::limits_of_the_system_are_errors, bad_luck::every_command_goes_on_after_files_that_may_not_grow")
def file_size(lab):
    ran = lab.run(*lab.extract(DATA / "data/base", DATA / "data/tuned"), before=["prlimit", "--fsize=4096"])
    left = [p.name for p in lab.path("out").rglob(".tmp-*") if p.name != ".tmp-heartbeat"]
    return ran.full() + (f", left {left[0]}" if left else "")


@kind("9", "`ulimit -u`: 1 to 8 processes and threads, as another user", "bad_luck::threads_that_the_system_does_not_give_are_an_error")
def threads(lab):
    if os.geteuid() != 0:
        return "not run: needs root"
    for folder in [lab.home, *lab.home.parents]:
        if folder.stat().st_uid == 0 and folder != Path("/tmp") and folder != Path("/"):
            folder.chmod(0o755)
    program = shutil.copy(lab.program, lab.path("program"))
    data = {name: lab.data(name) for name in ["base", "tuned"]}
    ends = []
    for count in range(1, 9):
        out = lab.path(f"o{count}")
        out.mkdir()
        os.chown(out, 65534, 65534)
        lab.program, real = str(program), lab.program
        ran = lab.run(*lab.extract(data["base"], data["tuned"], out, "--threads", "4"), before=["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "prlimit", f"--nproc={count}"])
        lab.program = real
        ends.append(ran.how())
    return "; ".join(f"{ends.count(end)} x {end}" for end in dict.fromkeys(ends))


CLOCK = """
#include <time.h>
#include <sys/time.h>
int clock_gettime(clockid_t id, struct timespec *t) {{ t->tv_sec = {seconds}LL; t->tv_nsec = 0; return 0; }}
"""


@kind("9", "a clock before 1970, and one after 9999", "run::log::tests::a_clock_out_of_range_is_no_panic (src)")
def clock(lab):
    ends = []
    for name, seconds in [("before", -86400 * 365), ("after", 86400 * 366 * 9000)]:
        lab.path(f"{name}.c").write_text(CLOCK.format(seconds=seconds))
        if subprocess.run(["gcc", "-shared", "-fPIC", "-o", lab.path(f"{name}.so"), lab.path(f"{name}.c")]).returncode:
            return "not run: no gcc here"
        # Only what reads the date: sleeps and timers go by the same clock here.
        ends.append(lab.run(*lab.extract(DATA / "data/base", DATA / "data/tuned", name), environment={"LD_PRELOAD": str(lab.path(f"{name}.so"))}).full())
    return "; ".join(ends)


@kind("10", "x-00000-of-00000.gguf", "hostile_inputs::gguf_that_is_one_of_no_parts")
def no_parts(lab):
    lab.path("x-00000-of-00000.gguf").write_text("anything")
    return lab.run("probe", lab.path("x-00000-of-00000.gguf")).full()


GGUF_CASES = ["alignment_u64", "key_not_utf8", "no_whole_blocks", "unknown_type", "value_type", "version_0"]


@kind("10", "GGUF that gguf-py refuses: alignment's type, keys not UTF-8, broken blocks, types, version", "fuzz_corpus::headers_of_gguf")
def gguf_fields(lab):
    taken = []
    for name in GGUF_CASES:
        path = lab.path(f"{name}.gguf")
        shutil.copy(DATA / "fuzz/corpus/gguf_header" / name, path)
        taken += [name] if lab.run("probe", path).code == 0 else []
    return f"**takes {', '.join(taken)}**" if taken else "refuses all six"


@kind("10", "a side file named `Icon\\r`, in `dequantize`", "hostile_folder::side_files_that_lead_out_of_the_checkpoint_are_not_copied")
def icon(lab):
    base = lab.data("base-fp8")
    (base / "Icon\r").write_text("")
    return lab.run("dequantize", base, "--quiet", "--out", lab.path("out")).full()


# --- low -------------------------------------------------------------------------------------------------------------------------


@kind("11", "compressed-tensors' `symmetric`: \"yes\", 1, []", "hostile_numbers::symmetric_is_true_or_false")
def symmetric(lab):
    ends = []
    for at, value in enumerate(["yes", 1, []]):
        weights = {"num_bits": 8, "type": "int", "symmetric": value, "strategy": "channel"}
        quantization = {"quant_method": "compressed-tensors", "format": "int-quantized", "ignore": [], "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}
        tensors = {NAME: ("I8", [8, 8], b"\1" * 64), f"{NAME}_scale": ("F32", [8, 1], floats([1] * 8))}
        folder = checkpoint(lab.path(f"in{at}"), tensors, QWEN | {"quantization_config": quantization})
        ends.append(lab.run("dequantize", folder, "--quiet", "--out", lab.path(f"out{at}")).full())
    return "; ".join(dict.fromkeys(ends))


@kind("11", "factors that underflow in f16", "hostile_inputs::factors_that_vanish_in_their_type_are_refused")
def underflow(lab):
    base = checkpoint(lab.path("base"), {NAME: ("F32", [32, 32], bytes(4096))})
    tuned = checkpoint(lab.path("tuned"), {NAME: ("F32", [32, 32], floats(1e-20 * (i % 32) * (i // 32) for i in range(1024)))})
    ran = lab.run(*lab.extract(base, tuned, "out", "--dtype", "f16", "--json"))
    captured = re.search(r'"captured_energy":\s*(-?[\d.]+)', ran.out)
    return ran.full() + (f", captured {float(captured[1]):.2f}" if captured else "")


@kind("11", "an F64 change below what f32 holds", "hostile_numbers::a_change_below_what_f32_holds_is_no_change_of_nothing")
def below(lab):
    doubles = lambda scale: struct.pack("<1024d", *(scale * i for i in range(1024)))
    base = checkpoint(lab.path("base"), {NAME: ("F64", [32, 32], doubles(0))})
    tuned = checkpoint(lab.path("tuned"), {NAME: ("F64", [32, 32], doubles(1e-60))})
    return lab.run(*lab.extract(base, tuned)).full()


@kind("11", "`verify` where the weights are not in B3SUMS", "hostile_inputs::the_weights_have_to_be_among_the_sums")
def not_in_sums(lab):
    lab.run(*lab.extract(*pair(lab.home)))
    path = lab.path("out/B3SUMS")
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "adapter_model" not in line))
    return lab.run("verify", lab.path("out")).full()


@kind("11", "a finished `dequantize` with a touched input, given again", "every_command::a_touched_input_is_hashed_again_before_finished_work_is_kept")
def touched(lab):
    base = lab.data("base-fp8")
    command = ["dequantize", base, "--quiet", "--out", lab.path("out")]
    lab.run(*command)
    os.utime(base / "model.safetensors", (1, time.time() + 60))
    return lab.run(*command).full()


@kind("11", "`dequantize IN --out IN/o`, twice", "hostile_inputs::an_output_inside_the_input_is_no_part_of_it")
def inside(lab):
    base = lab.data("base-fp8")
    ends = [lab.run("dequantize", base, "--quiet", "--out", base / "o").full() for _ in range(2)]
    return "; ".join(ends) + (", **copied into itself**" if (base / "o/o").exists() else "")


@kind("11", "`status --watch` whose reader goes away", "hostile_inputs::a_watch_ends_when_nobody_reads_it")
def watch(lab):
    lab.run(*lab.extract(DATA / "data/base", DATA / "data/tuned", "out", "--part", "1/2"))
    child = subprocess.Popen([lab.program, "status", "--watch=1", lab.path("out")], stdout=subprocess.PIPE)
    child.stdout.readline()
    child.stdout.close()
    try:
        child.wait(15)
        return "ends"
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
        return "**watches on after 15 s**"


@kind("11", "`--part 1/100000`, then `assemble`", "hostile_numbers::one_part_of_very_many_says_little")
def many_parts(lab):
    first = lab.run(*lab.extract(DATA / "data/base", DATA / "data/tuned", "out", "--part", "1/100000"))
    second = lab.run("assemble", lab.path("out"))
    return f"exits {first.code} and {second.code}, print {len(first.said) + len(second.said)} bytes"


@kind("11", "`analyze` with a base of zeros", "hostile_numbers::an_analysis_of_a_base_of_zeros_prints_short_numbers")
def zeros(lab):
    rng = random.Random(1)
    base = checkpoint(lab.path("base"), {NAME: ("F32", [32, 32], bytes(4096))})
    tuned = checkpoint(lab.path("tuned"), {NAME: ("F32", [32, 32], floats(rng.uniform(-1, 1) for _ in range(1024)))})
    fp8 = QWEN | {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    quantized = checkpoint(lab.path("q"), {NAME: ("F8_E4M3", [32, 32], bytes(1024)), f"{NAME}_scale_inv": ("F32", [1, 1], floats([1]))}, fp8)
    ran = lab.run("analyze", "--base", base, "--tuned", tuned, "--base-quantized", quantized, "--rank", "4", "--out", lab.path("out"))
    return f"{ran.full()}, longest number of {max(map(len, re.findall('[0-9]+', ran.out)), default=0)} digits"


@kind("11", "8 open files allowed (soft limit)", "hostile_inputs::limits_of_the_system_are_errors")
def files(lab):
    return lab.run(*lab.extract(DATA / "data/base", DATA / "data/tuned"), before=["prlimit", "--nofile=8:4096"]).full()


@kind("11", "a weight file whose name is not UTF-8", "bad_luck::names_that_are_no_text_are_said_and_not_taken_for_others")
def not_text(lab):
    base = lab.data("base-fp8")
    os.rename(base / "model.safetensors", os.fsencode(base) + b"/model \xff.safetensors")
    return lab.run("dequantize", base, "--quiet", "--out", lab.path("out")).full()


@kind("11", "a loop of links as the base", "bad_luck::links_that_lead_to_themselves_are_called_that")
def loop(lab):
    lab.path("one").symlink_to(lab.path("two"))
    lab.path("two").symlink_to(lab.path("one"))
    return lab.run(*lab.extract(lab.path("one"), DATA / "data/tuned")).full()


@kind("11", "a finished folder on a read-only file system", "bad_luck::a_finished_folder_of_any_command_may_lie_where_nothing_can_be_written")
def read_only(lab):
    disk = lab.path("disk")
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], capture_output=True).returncode:
        return "not run: nothing can be mounted here"
    try:
        commands = [lab.dequantize("disk/d"), lab.extract(DATA / "data/base", DATA / "data/tuned", "disk/e")]
        [lab.run(*command) for command in commands]
        subprocess.run(["mount", "-o", "remount,ro", disk])
        return "; ".join(lab.run(*command).full() for command in commands)
    finally:
        subprocess.run(["umount", disk])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("programs", nargs="+")
    parser.add_argument("--only", nargs="*", help="numbers of kinds")
    parser.add_argument("--seconds", type=float, default=60)
    asked = parser.parse_args()
    print(f"| | kind | {' | '.join(asked.programs)} | test (tests/runs, tests/formats) |\n|---|---|{'---|' * len(asked.programs)}---|")
    for number, what, test, function in KINDS:
        if asked.only and number not in asked.only:
            continue
        cells = []
        for program in asked.programs:
            with tempfile.TemporaryDirectory(dir="/var/tmp") as home:
                try:
                    cells.append(function(Lab(str(Path(program).resolve()), Path(home), asked.seconds)))
                except Exception as error:  # one row that cannot be had costs no other
                    cells.append(f"script: {type(error).__name__}: {error}")
        clean = ["".join(c if c.isprintable() else "?" for c in cell).replace("|", "\\|").replace(home, "") for cell in cells]
        print(f"| {number} | {what} | {' | '.join(clean)} | {test} |", flush=True)


if __name__ == "__main__":
    main()
