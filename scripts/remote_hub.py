#!/usr/bin/env python3
# /// script
# dependencies = ["huggingface_hub==1.23.0"]
# ///
"""Lets the hub's own client judge the stand-in of tests/remote/stores.rs: huggingface_hub downloads a model from it,
over redirects to signed links, and gets the same bytes; then trephine reads it from the same server.

    cargo test --test remote --no-run
    python scripts/remote_hub.py TEST_BINARY TREPHINE
"""

import filecmp
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TOKEN = "hf_very_secret_token"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def main() -> None:
    binary, trephine = sys.argv[1:3]
    data = Path(__file__).resolve().parent.parent / "tests/data"
    command = [binary, "--ignored", "--exact", "serving::hub_stand_in", "--nocapture"]
    server = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"TREPHINE_SERVE": str(data)}
    )
    address = next(line.split("serving at ")[1].strip() for line in server.stdout if "serving at " in line)
    os.environ |= {"HF_ENDPOINT": address.rstrip("/"), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    import huggingface_hub

    with tempfile.TemporaryDirectory() as home:
        for name in ["base-fp8", "tuned"]:
            found = Path(huggingface_hub.snapshot_download(f"test/{name}", revision="main", cache_dir=f"{home}/cache"))
            assert found.name == COMMIT, found
            same, differ, errors = filecmp.cmpfiles(
                found, data / name, [path.name for path in (data / name).iterdir()], shallow=False
            )
            assert not differ and not errors, (differ, errors)
            print(f"huggingface_hub {huggingface_hub.__version__}: {name}, {len(same)} files, byte-equal")
        outs = []
        for place in ["hf://test/{}", str(data / "{}")]:
            out = Path(home) / f"out{len(outs)}"
            base, tuned = place.format("base-fp8"), place.format("tuned")
            subprocess.run(
                [trephine, "extract", "-q", "--base", base, "--tuned", tuned, "--rank", "8", "--out", out], check=True
            )
            outs.append((out / "adapter_model.safetensors").read_bytes())
        assert outs[0] == outs[1]
        print("trephine: the adapter from the hub is that from disk")
    server.stdin.close()


if __name__ == "__main__":
    main()
