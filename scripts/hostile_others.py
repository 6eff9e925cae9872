"""The kinds of the other numbers, for hostile.py."""

import json
import os
import random
import re
import shutil
import struct
import subprocess
import time
from pathlib import Path

from hostile_lab import alive, checkpoint, DATA, floats, kind, NAME, pair, QWEN, sparse


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


@kind("11", "`--part 1/100000`, then `assemble` and `status`", "hostile_numbers::one_part_of_very_many_says_little")
def many_parts(lab):
    first = lab.run(*lab.extract(DATA / "data/base", DATA / "data/tuned", "out", "--part", "1/100000"))
    others = [lab.run(command, lab.path("out")) for command in ("assemble", "status")]
    return "; ".join(f"exit {ran.code}, {len(ran.said)} bytes" for ran in [first, *others])


@kind("11", "`analyze` with a base of zeros", "hostile_numbers::an_analysis_of_a_base_of_zeros_prints_short_numbers")
def zeros(lab):
    rng = random.Random(1)
    base = checkpoint(lab.path("base"), {NAME: ("F32", [32, 32], bytes(4096))})
    # Of a norm below 4: relative to the smallest positive number, it is no infinity.
    tuned = checkpoint(lab.path("tuned"), {NAME: ("F32", [32, 32], floats(rng.uniform(-0.1, 0.1) for _ in range(1024)))})
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
