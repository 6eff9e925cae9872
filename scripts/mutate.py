"""Mutates every kind of file that Trephine reads, and holds what the program says against judges that are not ours.

    python scripts/mutate.py PROGRAM [--count 2000] [--seed 1] [--jobs 2] [--kind header ...] [--only KIND SEED]

Judges: the `safetensors` and `gguf` packages, `b3sum --check`, PEFT's own rule for the scale of a module, and the bytes of a run that
nobody disturbed. They are held to in both directions: what Trephine takes, they take too, and what they take, Trephine takes, unless it
says one of the reasons in ON_PURPOSE (mutate_world.py). So a good share of these inputs are mutated gently (see mutations.py): most of
them are still what they should be, written in another way.

For every input: an exit code among 0, 2, 3 and 4, no signal, no panic, at most --seconds and 1 GiB of address space (4 where a model is
run), no control character on the terminal, and nothing changed outside the output folder. Prints a table of kinds, exit codes, findings
and reasons of refusals on purpose; a finding's input is kept in ./mutate-findings.

Needs safetensors 0.8.0, gguf, blake3, torch and peft 0.21.2, and the program b3sum.
"""

import argparse
import collections
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from mutate_kinds import KINDS, OFTEN
from mutate_world import World

WORLD = None


def begin(home):
    global WORLD
    WORLD = home


def one(task):
    world, kind, seed = WORLD, task[0], task[1]
    world.kind = kind
    rng = random.Random(f"{kind} {seed}")
    with tempfile.TemporaryDirectory(dir=world.home) as home:
        home, world.started = Path(home), False
        try:
            ran, found = KINDS[kind](world, rng, home)
        except (UnicodeEncodeError, ValueError, TypeError, KeyError, OSError) as error:
            # A mutation that no file can hold; or something that the program wrote and that cannot be read.
            wrong = world.started or isinstance(error, OSError)
            return kind, seed, "no input", None, None, [f"script: {error!r}"] if wrong else []
        found = ran.findings() + found
        if found:
            kept = Path("mutate-findings") / f"{kind}-{seed}"
            shutil.copytree(home, kept, symlinks=True, dirs_exist_ok=True)
            (kept / "command").write_text(f"{ran.command}\n{found}\n{ran.stderr.decode(errors='replace')[:2000]}")
        return kind, seed, str(ran.code), ran.judged, ran.purpose, found


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
        codes, findings, purposes = collections.defaultdict(collections.Counter), [], collections.Counter()
        with multiprocessing.get_context("fork").Pool(asked.jobs, begin, (world,)) as pool:
            for at, (kind, seed, code, judged, purpose, found) in enumerate(pool.imap_unordered(one, tasks, 8)):
                if at % 1000 == 0:
                    print(f"{at} of {len(tasks)}, {len(findings)} findings", file=sys.stderr, flush=True)
                codes[kind].update([code, judged])
                purposes.update([(kind, purpose)] if purpose else [])
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
        for (kind, purpose), count in sorted(purposes.items()):
            print(f"on purpose: {kind}: {count} x {purpose}")
        for kind, seed, what in findings[:100]:
            print(f"finding: {kind} {seed}: {what}")


if __name__ == "__main__":
    main()
