"""Runs Trephine beside mergekit and torch on models of real shapes, in one go, and prints the README's comparison.

    python -m venv venv && venv/bin/pip install torch==2.13.0 mergekit==0.1.5 safetensors==0.8.0
    cargo bench --bench shape_true -- MODELS/layer                       # one layer of Qwen3-32B's shape
    cargo bench --bench shape_true -- MODELS/small --hidden 1024 --intermediate 3072 --heads 16 --layers 28
    venv/bin/python scripts/compare.py target/release/trephine MODELS [ROW ...]

Rows: layer, fp8, tolerance, gram, rank, small, torch, memory, growth (MODELS/layers2, MODELS/layers4 as well). All by default.
Files are read once before a pair is timed, so that all programs find them in the page cache. Trephine runs three times, its median
counts; mergekit, which takes minutes, once, unless MERGEKIT_RUNS says more. Peak memory is the largest resident set of the process,
as the system counts it. mergekit leaves embeddings, head and norms out (`--exclude-regex`), as Trephine does by itself.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

MERGEKIT_RUNS = int(os.environ.get("MERGEKIT_RUNS", "1"))
OURS_RUNS = 3


def timed(command):
    """Seconds, and peak resident KiB, of a command that must succeed. This process must stay small: what it holds counts as a
    child's peak."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    error = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command} failed:\n{error.decode(errors='replace')[-2000:]}")
    return time.monotonic() - start, usage.ru_maxrss


def warm(*folders):
    for folder in folders:
        for file in sorted(Path(folder).glob("*.safetensors")):
            with open(file, "rb") as data:
                while data.read(1 << 24):
                    pass


class Runs:
    def __init__(self, trephine, models):
        self.trephine, self.models = trephine, Path(models)
        self.out = self.models / "out"

    def ours(self, base, tuned, rank, *more, runs=OURS_RUNS):
        warm(base, tuned)
        command = [self.trephine, "extract", "--base", base, "--tuned", tuned, "--rank", rank, "--quiet"]
        command += ["--overwrite", "--out", self.out / "trephine", *more]
        command = [str(word) for word in command]
        found = [timed(command) for _ in range(runs)]
        return statistics.median(t for t, _ in found), max(m for _, m in found)

    def mergekit(self, base, tuned, rank):
        warm(base, tuned)
        program = Path(sys.executable).parent / "mergekit-extract-lora"
        found = []
        for _ in range(MERGEKIT_RUNS):
            out = self.out / "mergekit"
            shutil.rmtree(out, ignore_errors=True)
            command = [program, "--model", tuned, "--base-model", base, "--out-path", out, "--max-rank", rank]
            command += ["--exclude-regex", "embed_tokens|lm_head|norm", "--skip-undecomposable", "--quiet"]
            found.append(timed([str(word) for word in command]))
        return statistics.median(t for t, _ in found), max(m for _, m in found)


def row(what, ours, peer=None, note=""):
    mib = f"{ours[1] / 1024:.0f} MiB"
    if peer is None:
        print(f"| {what} | {ours[0]:.2f} s | {mib} | | | {note} |", flush=True)
    else:
        times = f"{peer[0] / ours[0]:.1f} x"
        print(f"| {what} | {ours[0]:.2f} s | {mib} | {peer[0]:.1f} s | {peer[1] / 1024:.0f} MiB | {times}{note} |", flush=True)


def torch_row(runs, base, tuned):
    """svd_lowrank of the same delta, held in memory, against Trephine's whole process on that module alone."""
    import torch
    from safetensors import safe_open

    torch.set_num_threads(2)
    name = "model.layers.0.mlp.gate_proj"

    def tensor(folder):
        for file in Path(folder).glob("*.safetensors"):
            with safe_open(file, "pt") as data:
                if f"{name}.weight" in data.keys():
                    return data.get_tensor(f"{name}.weight").float()

    def ours(tolerance):
        found = runs.ours(base, tuned, 256, "--include", name, "--memory", "2GiB", "--tolerance", tolerance)
        module = json.load(open(runs.out / "trephine" / "extraction.json"))["modules"][0]
        return tolerance, found, (module.get("quality") or module)["relative_error"]

    # Before this process grows.
    found = [ours(tolerance) for tolerance in ("0.005", "0.003")]
    delta = tensor(tuned) - tensor(base)
    times, errors = [], []
    for seed in range(3):
        torch.manual_seed(seed)
        start = time.monotonic()
        u, s, v = torch.svd_lowrank(delta, q=266, niter=4)
        times.append(time.monotonic() - start)
        product = (u[:, :256] * s[:256]) @ v[:, :256].T
        errors.append(float((delta - product).double().norm() / delta.double().norm()))
    theirs, theirs_error = statistics.median(times), statistics.median(errors)
    for tolerance, run, error in found:
        note = f" relative error {error:.6f} with bf16 factors, torch {theirs_error:.6f} with f32"
        what = f"gate_proj alone, tolerance {tolerance}, torch `svd_lowrank(q=266, niter=4)` in memory"
        row(what, run, (theirs, 0), note)


def main(trephine, models, *rows):
    runs, every = Runs(trephine, models), not rows
    wanted = lambda name: every or name in rows
    layer, small = runs.models / "layer", runs.models / "small"
    base, tuned, fp8 = layer / "base", layer / "tuned", layer / "base-fp8"
    print("| | Trephine | peak | peer | peak | |\n|---|---:|---:|---:|---:|---|", flush=True)
    peer = None
    if any(map(wanted, ["layer", "tolerance", "gram"])):
        peer = runs.mergekit(base, tuned, 256)
    if wanted("layer"):
        row("Qwen3-32B layer, rank 256, bf16 base", runs.ours(base, tuned, 256, "--memory", "1GiB"), peer)
    if wanted("fp8"):
        bridge = runs.out / "bridge"
        if not (bridge / "B3SUMS").exists():
            subprocess.run([trephine, "dequantize", fp8, "--out", bridge, "--quiet"], check=True, stdout=subprocess.DEVNULL)
        ours = runs.ours(fp8, tuned, 256, "--memory", "1GiB")
        row("the same, block FP8 base (mergekit on its bf16 bridge)", ours, runs.mergekit(bridge, tuned, 256))
    if wanted("tolerance"):
        row("`--tolerance 0.001`", runs.ours(base, tuned, 256, "--memory", "1GiB", "--tolerance", "0.001"), peer)
    if wanted("gram"):
        row("`--method gram` (optimal)", runs.ours(base, tuned, 256, "--memory", "1GiB", "--method", "gram"), peer)
    if wanted("rank"):
        few, many = (runs.ours(base, tuned, rank, "--memory", "1GiB") for rank in (32, 256))
        row("rank 32", few, note=f"{few[0] / many[0]:.2f} of rank 256's {many[0]:.2f} s")
    if wanted("small"):
        pair = small / "base", small / "tuned"
        row("Qwen3-0.6B shape, 28 layers, rank 64", runs.ours(*pair, 64, "--memory", "1GiB"), runs.mergekit(*pair, 64))
    if wanted("memory"):
        for name, folder in (("bf16", base), ("block FP8", fp8)):
            least, much = (runs.ours(folder, tuned, 256, "--memory", memory) for memory in ("384MiB", "2GiB"))
            row(f"{name}, 384 MiB", least, note=f"{least[0] / much[0]:.2f} of 2 GiB's {much[0]:.2f} s ({much[1] / 1024:.0f} MiB)")
    if wanted("growth"):
        # By turns, since the machine's pace drifts over minutes.
        folders = [runs.models / name for name in ("layer", "layers2", "layers4")]
        once = lambda folder: runs.ours(folder / "base", folder / "tuned", 256, "--memory", "1GiB", runs=1)
        rounds = [[once(folder) for folder in folders] for _ in range(OURS_RUNS)]
        one, two, four = (statistics.median(t for t, _ in found) for found in zip(*rounds))
        share = (four - two) / (2 * (two - one))
        peak = max(found[2][1] for found in rounds)
        note = f"1, 2, 4 layers: {one:.2f}, {two:.2f}, {four:.2f} s; (T4 - T2) / 2 (T2 - T1) = {share:.3f}"
        row("4 layers", (four, peak), note=note)

    # Last, for torch and the delta are held in this very process.
    if wanted("torch"):
        torch_row(runs, base, tuned)


if __name__ == "__main__":
    main(*sys.argv[1:])
