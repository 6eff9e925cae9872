#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["mergekit==0.1.5", "transformers==5.19.0", "torch==2.13.0", "safetensors==0.8.0"]
# ///
"""Makes tests/fixtures/mergekit: adapters that mergekit-extract-lora writes for tests/data/base and tests/data/tuned.

    python scripts/fixtures_mergekit.py tests/fixtures/mergekit

`rank4` has every linear layer at rank 4 and all norms whole, in modules_to_save. `epsilon` is the first layer with singular
values up to 0.1 dropped, so that its modules are of ranks 4 to 0, told in rank_pattern and alpha_pattern. The embedding and the
head, which mergekit would save whole, are left out for their size alone. Run it in the repository's root.
"""
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ADAPTERS = {"rank4": [], "epsilon": ["--sv-epsilon", "0.1", "--include-regex", r"layers\.0\."]}


def main(out):
    program = Path(sysconfig.get_path("scripts")) / "mergekit-extract-lora"
    for name, options in ADAPTERS.items():
        folder = out / name
        shutil.rmtree(folder, ignore_errors=True)
        command = [program, "--base-model", "tests/data/base", "--model", "tests/data/tuned", "--out-path", folder]
        command += ["--max-rank", "4", "--exclude-regex", "embed_tokens", "--exclude-regex", "lm_head", *options]
        subprocess.run(command, check=True)
        # Its card names the command, with paths of the machine.
        (folder / "README.md").unlink()
        (folder / "adapter_model.safetensors").chmod(0o644)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
