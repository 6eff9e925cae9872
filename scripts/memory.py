"""Finds the smallest --memory that every command accepts, and what the process then takes at its peak.

    python scripts/memory.py PROGRAM [--threads 2] [--only many ...] [--keep FOLDER]

Each command is run with 1 MiB, which it refuses; the refusal names the smallest budget (or what its tensors alone take, with which it is
run again). The command is run with that budget, and its
peak resident memory is read from the system (`wait4`). A peak above the budget is a broken promise, and the script then exits with 1.
The ratio of the two says how much is asked for nothing.

The inputs are made here: `many`, sparse block FP8 checkpoints of 92,160 tensors (as DeepSeek-V3 has, 60 layers of 256 experts, but with
small matrices) and dense ones of 46,080, of each kind one where an expert differs; and `plain`, a dense and a block FP8 one of some layers
of 1024 and 2816 columns. `model` is the small one in tests/data. Needs no package.
"""

import argparse
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

SIZES = {"F8_E4M3": 1, "BF16": 2, "F32": 4}


def write_file(path: Path, tensors: list[tuple[str, str, list[int]]], data=None):
    """A safetensors file; without `data` its tensors are a hole in the file."""
    header, end = {}, 0
    for name, dtype, shape in tensors:
        size = SIZES[dtype] * shape[0] * shape[1]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, dtype, shape in tensors if data else []:
            file.write(data(name, dtype, shape))
        file.truncate(8 + len(text) + end)


def write_checkpoint(folder: Path, tensors: list[tuple[str, str, list[int]]], files: int, config: dict, data=None):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    step, places = -(-len(tensors) // files), {}
    for at in range(files):
        name = f"model-{at + 1:05}-of-{files:05}.safetensors"
        own = tensors[at * step : (at + 1) * step]
        write_file(folder / name, own, data)
        places.update({tensor: name for tensor, _, _ in own})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}


def quantized(modules: list[tuple[str, list[int]]]) -> list[tuple[str, str, list[int]]]:
    tensors = []
    for name, (rows, columns) in modules:
        tensors.append((f"{name}.weight", "F8_E4M3", [rows, columns]))
        tensors.append((f"{name}.weight_scale_inv", "F32", [-(-rows // 128), -(-columns // 128)]))
    return tensors


def many(folder: Path, changed: bool, dense: bool = False, layers: int = 60):
    kinds = ["gate", "up", "down"]
    modules = [(f"model.layers.{i}.mlp.experts.{j}.{kind}_proj", [128, 128]) for i in range(layers) for j in range(256) for kind in kinds]
    config = {"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "hidden_size": 128}
    if dense:
        write_checkpoint(folder, [(f"{name}.weight", "BF16", shape) for name, shape in modules], 12, config)
    else:
        write_checkpoint(folder, quantized(modules), 12, config | {"quantization_config": FP8})
    for kind in kinds if changed else []:
        fill(folder, f"model.layers.7.mlp.experts.3.{kind}_proj.weight", dense)


def fill(folder: Path, name: str, dense: bool):
    """Gives one weight other values than zero."""
    places = json.loads((folder / "model.safetensors.index.json").read_bytes())["weight_map"]
    rng = random.Random(name)
    values = numbers(rng, 128 * 128) if dense else codes(rng, 128 * 128)
    for tensor, data in [(name, values), *([] if dense else [(f"{name}_scale_inv", struct.pack("<f", 1.0))])]:
        with open(folder / places[tensor], "r+b") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            start = json.loads(file.read(length))[tensor]["data_offsets"][0]
            file.seek(8 + length + start)
            file.write(data)


def numbers(rng: random.Random, count: int) -> bytes:
    """Small numbers of either sign, in BF16."""
    values = bytearray(2 * count)
    values[0::2] = rng.randbytes(count)
    values[1::2] = rng.randbytes(count).translate(bytes(0x3C | byte & 0x80 for byte in range(256)))
    return bytes(values)


def codes(rng: random.Random, count: int) -> bytes:
    """FP8 without a NaN."""
    return rng.randbytes(count).translate(bytes(byte & 0xBF for byte in range(256)))


SHAPES = [("self_attn.q", 1024, 1024), ("self_attn.k", 256, 1024), ("self_attn.v", 256, 1024), ("self_attn.o", 1024, 1024)]
SHAPES += [("mlp.gate", 2816, 1024), ("mlp.up", 2816, 1024), ("mlp.down", 1024, 2816)]


def plain(folder: Path, fp8: bool, seed: int):
    modules = [(f"model.layers.{i}.{kind}_proj", [m, n]) for i in range(2) for kind, m, n in SHAPES]
    dense = [(f"{name}.weight", "BF16", shape) for name, shape in modules]
    config = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 1024}
    rng = random.Random(seed)

    def data(_, dtype, shape):
        count = shape[0] * shape[1]
        match dtype:
            case "F32":
                return struct.pack(f"<{count}f", *[2.0**-6] * count)
            case "BF16":
                return numbers(rng, count)
            case _:
                return codes(rng, count)

    write_checkpoint(folder, quantized(modules) if fp8 else dense, 1, config | ({"quantization_config": FP8} if fp8 else {}), data)


def peak(command: list[str], home: Path) -> tuple[int, int, float, str]:
    """Exit code, peak resident KiB, seconds, and what it said."""
    with tempfile.TemporaryFile() as said:
        started = time.monotonic()
        child = subprocess.Popen(command, cwd=home, stdout=subprocess.DEVNULL, stderr=said, env=os.environ | {"HF_HOME": "/nonexistent"})
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        return child.returncode, usage.ru_maxrss, time.monotonic() - started, said.read().decode(errors="replace")


# A small trained model, with its tokenizer and a text.
DATA = Path(__file__).resolve().parent.parent / "tests/data/base"
EXPERT = r"re:layers\.7\.mlp\.experts\.3\."
COMMANDS = [
    ("plain", "extract, rank 64", "extract --base plain-fp8 --tuned tuned --rank 64 --out OUT"),
    ("plain", "extract, rank 512", "extract --base plain-fp8 --tuned tuned --rank 512 --out OUT"),
    ("plain", "dequantize", "dequantize plain-fp8 --out OUT"),
    ("plain", "merge", "merge --base plain-fp8 --adapter adapter --out OUT"),
    ("plain", "merge --fp8", "merge --base plain --adapter adapter --fp8 --out OUT"),
    ("plain", "analyze", "analyze --base plain --base-quantized plain-fp8 --tuned tuned --rank 64 --out OUT"),
    ("plain", "fidelity", "fidelity --served plain-fp8 --tuned tuned --adapter adapter --out OUT"),
    ("plain", "sanitize", "sanitize adapter --for vllm --max-rank 16 --out OUT"),
    ("plain", "autopsy", "autopsy plain-fp8 --against tuned"),
    ("plain", "verify", "verify adapter --base plain --tuned tuned"),
    ("plain", "assemble", "assemble OUT", [f"extract --base plain-fp8 --tuned tuned --rank 64 --quiet --part {i}/2 --out OUT" for i in (1, 2)]),
    ("plain", "assemble --finish", "assemble OUT --finish", ["dequantize plain-fp8 --quiet --part 1/2 --out OUT"]),
    ("model", "calibrate", f"calibrate --model {DATA} --tokens 2048 --sequence 512 --k 256 --out OUT"),
    ("model", "evaluate", f"evaluate --model {DATA} --tokens 2048 --sequence 512"),
    ("many", "extract, one expert", f"extract --base many --tuned many-tuned --include {EXPERT} --rank 8 --out OUT"),
    ("many", "extract, plan", f"extract --base many --tuned many-tuned --include {EXPERT} --rank 8 --dry-run --out OUT"),
    ("many", "dequantize", "dequantize many --out OUT"),
    ("many", "autopsy", "autopsy many"),
    ("many", "fidelity", "fidelity --served many --tuned many-dense --adapter expert --out OUT"),
    ("many", "merge", "merge --base many --adapter expert --out OUT"),
    ("many", "verify", "verify expert --base many --tuned many-tuned"),
    ("many", "analyze", "analyze --base many-base --base-quantized many --tuned many-dense --rank 8 --out OUT"),
]


def measured(program: str, words: list[str], before: list[str], threads: int, home: Path) -> tuple[int, int, int, float, float, str]:
    """The smallest budget, the peak of a refusal and of the run in KiB, and their seconds."""
    out = home / "out"
    with_out = lambda words: [str(out) if word == "OUT" else word for word in words]
    # `sanitize` works on one thread.
    more = [] if words[0] == "sanitize" else ["--threads", str(threads)]
    run = lambda budget: peak([program, *with_out(words), *more, "--memory", budget], home)
    shutil.rmtree(out, ignore_errors=True)
    for line in before:
        subprocess.run([program, *with_out(line.split())], cwd=home, check=True)
    code, refusing, early, said = run("1MiB")
    found = re.search(r"(\d+) MiB needed", said)
    # What is needed at least is told before anything is planned; given that much, the refusal is exact.
    while code == 2 and found and "at least" in said:
        code, refusing, _, said = run(f"{found[1]}MiB")
        found = re.search(r"(\d+) MiB needed", said)
    if code != 2 or not found:
        return 0, refusing, 0, early, 0, f"no refusal: exit {code}: {said.strip()[-200:]}"
    least = int(found[1])
    if run(f"{least - 1}MiB")[0] != 2:
        return least, refusing, 0, early, 0, "a smaller budget is accepted as well"
    code, used, took, said = run(f"{least}MiB")
    shutil.rmtree(out, ignore_errors=True)
    if code not in (0, 4):
        return least, refusing, used, early, took, f"exit {code}: {said.strip()[-200:]}"
    return least, refusing, used, early, took, "above the budget" if used > least << 10 else ""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="rows whose input or name contains one of these")
    parser.add_argument("--keep", type=Path, help="a folder for the inputs, which is kept")
    asked = parser.parse_args()
    home = asked.keep or Path(tempfile.mkdtemp())
    program = str(Path(asked.program).resolve())
    makers = {"many": lambda at: many(at, False), "many-tuned": lambda at: many(at, True), "many-base": lambda at: many(at, False, True), "many-dense": lambda at: many(at, True, True), "plain": lambda at: plain(at, False, 1), "tuned": lambda at: plain(at, False, 2)}
    makers["plain-fp8"] = lambda at: plain(at, True, 3)
    # The system counts what a process held before it became the program, so the one that starts the commands stays small.
    made = multiprocessing.get_context("fork").Process(target=lambda: [make(home / name) for name, make in makers.items() if not (home / name).exists()])
    made.start()
    made.join()
    if not (home / "adapter").exists():
        subprocess.run([program, "extract", "--quiet", "--base", "plain", "--tuned", "tuned", "--rank", "32", "--out", "adapter"], cwd=home, check=True)
        subprocess.run([program, *f"extract --quiet --base many --tuned many-tuned --include {EXPERT} --rank 8 --out expert".split()], cwd=home, check=True)
    print("| input | command | smallest --memory, MiB | peak, MiB | ratio | refusal's peak, MiB | refusal, s | run, s | |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---|")
    broken = False
    for kind, name, line, *before in COMMANDS:
        if asked.only and not any(word in f"{kind} {name}" for word in asked.only):
            continue
        least, refusing, used, early, took, remark = measured(program, line.split(), before[0] if before else [], asked.threads, home)
        broken |= bool(remark)
        ratio = f"{least * 1024 / used:.2f}" if used else ""
        print(f"| {kind} | {name} | {least} | {used / 1024:.0f} | {ratio} | {refusing / 1024:.0f} | {early:.1f} | {took:.1f} | {remark} |", flush=True)
    if not asked.keep:
        shutil.rmtree(home)
    sys.exit(broken)


if __name__ == "__main__":
    main()
