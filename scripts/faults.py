"""Kills every command that writes at any of its system calls, fills its disk at any of its writes, and looks whether the same command
then gives the bytes of a run that nobody disturbed.

    python scripts/faults.py PROGRAM [--kills 200] [--stride 1] [--only extract ...] [--jobs 2] [--scratch /dev/shm]

A first run counts each command's calls that change files (`write`, `fsync`, `rename`, `mkdir`, ...). Then

- `--kills` kills, spread evenly over all calls of all commands: `SIGKILL` in place of the call;
- for every call (with `--stride N` every Nth): the call fails with `ENOSPC`. The run ends with 1, says what it could not write, and
  leaves no unfinished file; or the call did not matter, as that of a heartbeat, and the run is as good as any other.

After each the same command, undisturbed, has to end with 0 and the reference's bytes in every file but the log. A single file (a report)
is complete or not there at all. Uses `strace` (its fault injection) and the checkpoints in tests/data. Needs no package. A scratch folder
in memory makes every fsync quick: some 15 minutes for all commands on two processors.
"""

import argparse
import collections
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DATA = Path(__file__).resolve().parent.parent / "tests/data"
CALLS = ["write", "pwrite64", "fsync", "fdatasync", "ftruncate", "fallocate", "mkdir", "mkdirat", "rename", "renameat", "unlink", "unlinkat"]
# Removing needs no room.
FULL = [call for call in CALLS if not call.startswith("unlink")]

# The commands, and what has to be there before: a list of commands of which only the last one is disturbed.
EXTRACT = "extract --base base-fp8 --tuned tuned --rank 4 --threads 2"
DEQUANTIZE = "dequantize base-fp8 --max-shard-size 300kB --threads 2"
COMMANDS = {
    "extract": [f"{EXTRACT} --out OUT"],
    "extract, a part": [f"{EXTRACT} --out OUT --part 1/2", f"{EXTRACT} --out OUT --part 2/2", "assemble OUT"],
    "dequantize": [f"{DEQUANTIZE} --out OUT"],
    "merge": ["merge --base base-fp8 --adapter adapter --max-shard-size 300kB --threads 2 --out OUT"],
    "analyze": ["analyze --base base --base-quantized base-fp8 --tuned tuned --rank 4 --threads 2 --out OUT"],
    "fidelity": ["fidelity --served base-fp8 --tuned tuned --adapter adapter --threads 2 --out OUT"],
    "sanitize": ["sanitize adapter --for vllm --max-rank 2 --out OUT"],
    "calibrate": ["calibrate --model base --tokens 256 --sequence 64 --k 64 --threads 2 --out OUT"],
    "assemble": [f"+{DEQUANTIZE} --part 1/2 --out OUT", f"+{DEQUANTIZE} --part 2/2 --out OUT", "assemble OUT"],
    "autopsy": ["autopsy base-fp8 --threads 2 --out OUT"],
    "report": ["report adapter --out OUT.html"],
    "convert-adapter, gguf": ["convert-adapter adapter --format gguf --base base --out OUT"],
    "convert-adapter, mlx": ["convert-adapter adapter --format mlx --out OUT"],
}
# These have no --quiet.
LOUD = ["report", "convert-adapter"]


def contents(home: Path) -> dict[str, bytes]:
    """The files of a run's output but for its log."""
    found = {}
    for path in sorted(home.glob("out*")):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and file.name != "extraction.log":
                found[str(file.relative_to(home))] = file.read_bytes()
    return found


class Trial:
    """A folder of its own for one disturbed run."""

    def __init__(self, program: str, world: Path, lines: list[str]):
        self.program, self.world, self.lines = program, world, lines

    def command(self, line: str, home: Path) -> list[str]:
        words = line.lstrip("+").replace("OUT", str(home / "out")).split()
        return [self.program, *words, *([] if words[0] in LOUD else ["--quiet"])]

    def run(self, command: list[str], inject: str | None = None, log: str = "/dev/null") -> tuple[int, str]:
        if inject is not None:
            traced = f"trace={','.join(CALLS)}" if inject == "" else f"inject={inject}"
            # Only what is counted or disturbed is stopped at.
            command = ["strace", "-f", "-qq", "--seccomp-bpf", "-o", log, "-e", traced, *command]
        ran = subprocess.run(command, cwd=self.world, capture_output=True, timeout=600, env=os.environ | {"HF_HOME": "/nonexistent"})
        return ran.returncode, ran.stderr.decode(errors="replace")

    def prepared(self, home: Path) -> str:
        """Runs what only has to be there, and gives the rest's first command."""
        for line in self.lines:
            if line.startswith("+"):
                code, said = self.run(self.command(line, home))
                assert code == 0, (line, said)
        return next(line for line in self.lines if not line.startswith("+"))

    def whole(self, home: Path) -> tuple[bool, str]:
        """Gives every command again, to the end."""
        for line in self.lines:
            # A part of a run that is assembled already has nothing to do.
            code, said = self.run(self.command(line, home))
            if code != 0:
                return False, f"{line}: exit {code}: {said.strip()[-300:]}"
        return True, ""


def count(trial: Trial, scratch: Path) -> tuple[collections.Counter, dict[str, bytes]]:
    """How often each call occurs on the thread with the most of it, and the bytes of an undisturbed run."""
    with tempfile.TemporaryDirectory(dir=scratch) as home:
        home = Path(home)
        first = trial.prepared(home)
        code, said = trial.run(trial.command(first, home), "", str(home / "log"))
        assert code == 0, said
        threads = collections.Counter()
        for line in (home / "log").read_text(errors="replace").splitlines():
            if called := re.match(r"(\d+)\s+(\w+)\(", line):
                threads[(called[2], called[1])] += 1
        counts = collections.Counter()
        for (call, _), times in threads.items():
            counts[call] = max(counts[call], times)
        good, why = trial.whole(home)
        assert good, why
        return counts, contents(home)


def disturbed(trial: Trial, scratch: Path, reference: dict[str, bytes], inject: str) -> tuple[str, list[str]]:
    """How the disturbed run ended, and what is wrong with it or with the one after it."""
    kill = "signal" in inject
    with tempfile.TemporaryDirectory(dir=scratch) as home:
        home = Path(home)
        first = trial.prepared(home)
        code, said = trial.run(trial.command(first, home), inject)
        found = []
        if kill and code not in (-9, 137, 0):
            found.append(f"exit {code} when killed")
        if not kill and code not in (0, 1):
            found.append(f"exit {code}: {said.strip()[-300:]}")
        if not kill and code == 1 and "error: " not in said:
            found.append(f"nothing was said: {said.strip()[-300:]}")
        if "panicked" in said:
            found.append("panic")
        left = [path for path in home.rglob(".tmp-*") if path.name != ".tmp-heartbeat"]
        if not kill and left:
            found.append(f"left {left[0].name}")
        for name, data in contents(home).items():
            if name.endswith(".html") and data != reference[name]:
                found.append(f"{name} is there, but not whole")
        good, why = trial.whole(home)
        now = contents(home)
        if not good:
            found.append(f"does not go on: {why}")
        elif now != reference:
            other = [name for name in now.keys() | reference.keys() if now.get(name) != reference.get(name)]
            found.append(f"other bytes: {', '.join(sorted(other)[:3])}")
        return "killed" if kill and code != 0 else "refused" if code else "ended", found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=list(COMMANDS))
    parser.add_argument("--scratch", default="/dev/shm" if os.path.isdir("/dev/shm") else None)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.scratch) as scratch, concurrent.futures.ThreadPoolExecutor(asked.jobs) as pool:
        scratch = Path(scratch)
        world = scratch / "world"
        shutil.copytree(DATA, world)
        program = str(Path(asked.program).resolve())
        Trial(program, world, []).run([program, *f"{EXTRACT} --quiet --out adapter".split()])
        trials = {name: Trial(program, world, COMMANDS[name]) for name in asked.only}
        counted = {name: count(trial, scratch) for name, trial in trials.items()}
        calls = [(name, call, at) for name, (counts, _) in counted.items() for call in counts for at in range(1, counts[call] + 1)]
        step = max(len(calls) / max(asked.kills, 1), 1)
        kills = [calls[int(at * step)] for at in range(min(asked.kills, len(calls)))]
        tasks = [(name, f"{call}:signal=KILL:when={at}") for name, call, at in kills]
        tasks += [(name, f"{call}:error=ENOSPC:when={at}") for name, call, at in calls[:: asked.stride] if call in FULL]
        run = lambda task: (task, disturbed(trials[task[0]], scratch, counted[task[0]][1], task[1]))
        table, findings = collections.defaultdict(collections.Counter), []
        for at, ((name, inject), (how, found)) in enumerate(pool.map(run, tasks)):
            if at % 100 == 0:
                print(f"{at} of {len(tasks)} done", file=sys.stderr, flush=True)
            table[name]["kills" if "signal" in inject else "full", how] += 1
            findings += [(name, inject, what) for what in found]
        print("| command | calls | kills | of them before its end | full disks | of them refused | findings |")
        print("|---|---:|---:|---:|---:|---:|---:|")
        for name in asked.only:
            row = table[name]
            sums = [sum(n for (kind, _), n in row.items() if kind == which) for which in ("kills", "full")]
            own = sum(1 for other, _, _ in findings if other == name)
            cells = [sum(counted[name][0].values()), sums[0], row["kills", "killed"], sums[1], row["full", "refused"], own]
            print(f"| {name} | {' | '.join(map(str, cells))} |")
        for finding in findings[:50]:
            print("finding:", *finding)
        sys.exit(bool(findings))


if __name__ == "__main__":
    main()
