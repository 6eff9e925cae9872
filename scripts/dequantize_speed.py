"""Times the usual torch code, `cp -r`, and `trephine dequantize` on one checkpoint in block FP8, in one run.

    python -m venv venv && venv/bin/pip install torch==2.13.0 safetensors==0.8.0
    venv/bin/python scripts/dequantize_speed.py target/release/trephine CHECKPOINT SCRATCH [RUNS]

CHECKPOINT is a folder as Qwen3-32B-FP8 is: `X.weight` F8_E4M3 with `X.weight_scale_inv`, blocks of 128 x 128. SCRATCH is a folder on
the disk to be measured, with room for twice the bf16 model; what is made there is removed. The median of RUNS (3) counts.

torch: scales spread by repeat_interleave, one weight after the other, 2 threads, to bf16, each file by save_file, then `sync`; starting Python and
importing torch are not counted. `cp`
copies the dense folder, `sync` included, since trephine syncs every file before it says that it is done. Rates count bytes read and
written. Warm: every file that is read was read before; cold: the input's pages are dropped from the cache (posix_fadvise after a
sync, which needs no rights; what the machine below caches is beyond that). Peak memory is the largest resident set, which counts
mapped files. At the end torch's and trephine's weights are compared bit for bit.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

BLOCK, THREADS = 128, 2
SCALE = "_scale_inv"


def torch_dequantizes(source, out):
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    torch.set_num_threads(THREADS)
    start = time.monotonic()
    Path(out).mkdir()
    files = {path: safe_open(path, "pt") for path in sorted(Path(source).glob("*.safetensors"))}
    where = {name: file for file in files.values() for name in file.keys()}
    for path, file in files.items():
        dense = {}
        for name in file.keys():
            if name.endswith(SCALE):
                continue
            weight = file.get_tensor(name)
            if name + SCALE in where:
                scale = where[name + SCALE].get_tensor(name + SCALE).float()
                scale = scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
                weight = (weight.float() * scale[: weight.shape[0], : weight.shape[1]]).to(torch.bfloat16)
            dense[name] = weight
        save_file(dense, Path(out) / path.name, metadata={"format": "pt"})
    os.sync()
    print(time.monotonic() - start)


def same(first, second):
    """How many tensors there are, after all were found the same in both folders."""
    import torch
    from safetensors import safe_open

    def tensors(folder):
        files = [safe_open(path, "pt") for path in sorted(Path(folder).glob("*.safetensors"))]
        return {name: file for file in files for name in file.keys()}

    first, second = tensors(first), tensors(second)
    if first.keys() != second.keys():
        sys.exit(f"names differ: {sorted(first.keys() ^ second.keys())[:5]}")
    for name, file in first.items():
        a, b = file.get_tensor(name), second[name].get_tensor(name)
        if a.dtype != b.dtype or not torch.equal(a.view(torch.uint8), b.view(torch.uint8)):
            sys.exit(f"{name} differs")
    return len(first)


def timed(command):
    """Seconds, and peak resident MiB, of a command that must succeed. One that prints a number has timed itself."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    told = process.stdout.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    if status:
        sys.exit(f"{command} failed:\n{told[-2000:]}")
    try:
        seconds = float(told)
    except ValueError:
        pass
    return seconds, usage.ru_maxrss / 1024


def files_of(folder):
    return [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]


def size(folder):
    return sum(path.stat().st_size for path in files_of(folder))


def warm(folder):
    for path in files_of(folder):
        with open(path, "rb") as data:
            while data.read(1 << 24):
                pass


def cold(folder):
    os.sync()
    for path in files_of(folder):
        with open(path, "rb") as data:
            os.posix_fadvise(data.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def elements(source):
    """Weights that are dequantized."""
    count = 0
    for path in Path(source).glob("*.safetensors"):
        with open(path, "rb") as data:
            header = json.loads(data.read(int.from_bytes(data.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__" and tensor["dtype"] == "F8_E4M3":
                rows, columns = tensor["shape"]
                count += rows * columns
    return count


def main():
    trephine, source, scratch = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    runs = int(sys.argv[4]) if len(sys.argv) > 4 else 3
    torch_out, ours_out, copy = scratch / "torch", scratch / "trephine", scratch / "copy"
    scratch.mkdir(parents=True, exist_ok=True)
    torch_command = [sys.executable, __file__, "--torch", str(source), str(torch_out)]
    ours = [trephine, "dequantize", "--quiet", "--threads", str(THREADS), str(source), "--out", str(ours_out)]
    both = ["sh", "-c", 'cp -r "$1" "$2" && sync', "sh", str(ours_out), str(copy)]
    # What, command, what it reads, what it writes, whether it computes.
    rows = [
        ("torch", torch_command, source, torch_out, True),
        ("trephine", ours, source, ours_out, True),
        ("cp -r, sync", both, ours_out, copy, False),
    ]
    count, results = elements(source), {}
    for _ in range(runs):
        for state, prepare in [("warm", warm), ("cold", cold)]:
            for name, command, reads, writes, _ in rows:
                if name == "torch" and state == "cold":
                    continue
                shutil.rmtree(writes, ignore_errors=True)
                os.sync()
                prepare(reads)
                results.setdefault((name, state), []).append(timed(command))
    print(f"{count / 1e6:.0f} M weights, {size(source) / 1e9:.2f} GB to {size(ours_out) / 1e9:.2f} GB, median of {runs}\n")
    print(f"{'':12} {'':5} {'seconds':>8} {'G el/s':>7} {'GB/s':>6} {'peak MiB':>9}   all runs, s")
    for (name, state), times in results.items():
        _, _, reads, writes, computes = next(row for row in rows if row[0] == name)
        seconds, peak = statistics.median(s for s, _ in times), max(peak for _, peak in times)
        rate = f"{count / seconds / 1e9:7.2f}" if computes else " " * 7
        moved = (size(reads) + size(writes)) / seconds / 1e9
        each = " ".join(f"{s:.2f}" for s, _ in times)
        print(f"{name:12} {state:5} {seconds:8.2f} {rate} {moved:6.2f} {peak:9.0f}   {each}")
    print(f"\n{same(torch_out, ours_out)} tensors are the same, bit for bit")
    for folder in [torch_out, ours_out, copy]:
        shutil.rmtree(folder)


if sys.argv[1:2] == ["--torch"]:
    torch_dequantizes(*sys.argv[2:4])
else:
    main()
