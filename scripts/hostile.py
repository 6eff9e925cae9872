"""Gives the same hostile inputs and bad luck to several builds of the program, and prints what each did: one row a kind.

    python scripts/hostile.py PROGRAM [PROGRAM ...] [--only 4 9 ...] [--seconds 60]

The kinds are numbered as in the issue that collected them. A row says the exit code or signal, and what gives it away: a peak of memory,
a file outside that was touched, the words of the error. Every program gets at most --seconds and 3 GiB of address space a run; what takes
more is written so. Needs strace (runs are slowed down by delaying their fsyncs) and gcc (a clock that is set wrong); rows whose means are
not there (control groups, mounts, root) say so.
"""

import argparse
import tempfile
from pathlib import Path

import hostile_others  # noqa: F401 (it adds to KINDS)
import hostile_severe  # noqa: F401
from hostile_lab import KINDS, Lab


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("programs", nargs="+")
    parser.add_argument("--only", nargs="*", help="numbers of kinds")
    parser.add_argument("--seconds", type=float, default=60)
    asked = parser.parse_args()
    print(f"| | kind | {' | '.join(asked.programs)} | test (tests/runs, tests/formats) |\n|---|---|{'---|' * len(asked.programs)}---|")
    for number, what, test, function in sorted(KINDS, key=lambda kind: int(kind[0])):
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
