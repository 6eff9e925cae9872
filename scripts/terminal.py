"""Draws the README's picture of a run: a real one, in a real terminal (tmux), once in the middle and once at its end.

    pip install rich==15.0.0; apt-get install tmux
    python scripts/terminal.py scripts/terminal.svg SECONDS COMMAND...

SECONDS is when to look for the first time. The command is run by a shell in the current folder.
"""

import subprocess
import sys
import time

from rich.console import Console
from rich.text import Text

WIDTH, HEIGHT, SESSION = 110, 40, "trephine-picture"


def tmux(*words):
    return subprocess.run(["tmux", *words], check=True, capture_output=True, text=True).stdout


def screen():
    return tmux("capture-pane", "-p", "-e", "-t", SESSION).rstrip().splitlines()


def main(picture, seconds, *command):
    line = " ".join(command)
    tmux("new-session", "-d", "-s", SESSION, "-x", str(WIDTH), "-y", str(HEIGHT), "env", "PS1=$ ", "bash", "--norc")
    try:
        tmux("send-keys", "-t", SESSION, "clear; " + line + "; tmux wait-for -S done", "Enter")
        time.sleep(float(seconds))
        middle = [row for row in screen() if " modules [" in row]
        tmux("wait-for", "done")
        time.sleep(0.5)
        end = screen()
    finally:
        tmux("kill-session", "-t", SESSION)
    while end and end[-1].strip() in ("", "$"):
        end.pop()
    console = Console(record=True, width=WIDTH, file=open("/dev/null", "w"))
    for row in [f"$ {line}", *middle[-1:], "", *end]:
        console.print(Text.from_ansi(row))
    console.save_svg(picture, title="trephine extract")


if __name__ == "__main__":
    main(*sys.argv[1:])
