#!/usr/bin/env python3
# /// script
# dependencies = ["moto[server]==5.2.5", "boto3==1.43.60"]
# ///
"""Reads a pair from moto's S3 server, which is nobody's of ours: the adapter is that from disk, byte for byte; a wrong
key and a changed object are refused.

    python scripts/remote_s3.py TREPHINE
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

KEY, SECRET = "AKIAEXAMPLEEXAMPLE", "a/secret+of=moto"


def main() -> None:
    trephine = sys.argv[1]
    data = Path(__file__).resolve().parent.parent / "tests/data"
    import boto3
    import moto
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    store = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id=KEY, aws_secret_access_key=SECRET
    )
    store.create_bucket(Bucket="models")
    store.put_bucket_versioning(Bucket="models", VersioningConfiguration={"Status": "Enabled"})
    for name in ["base", "base-fp8", "tuned"]:
        for path in (data / name).iterdir():
            store.upload_file(str(path), "models", f"zoo/{name}/{path.name}")
    env = os.environ | {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
    }
    with tempfile.TemporaryDirectory() as home:
        for base in ["base", "base-fp8"]:
            outs = []
            for place in ["s3://models/zoo/{}", str(data / "{}")]:
                out = Path(home) / f"{base}{len(outs)}"
                command = [trephine, "extract", "-q", "--base", place.format(base), "--tuned", place.format("tuned")]
                ended = subprocess.run([*command, "--rank", "8", "--out", out], env=env, check=True, text=True,
                                       stderr=subprocess.PIPE)
                for path in out.rglob("*"):
                    if path.is_file():
                        assert SECRET.encode() not in path.read_bytes() and KEY.encode() not in path.read_bytes(), path
                assert SECRET not in ended.stderr and "Signature" not in ended.stderr, ended.stderr
                outs.append((out / "adapter_model.safetensors").read_bytes())
            assert outs[0] == outs[1]
            print(f"moto {moto.__version__}: {base}, the adapter from the bucket is that from disk")
            print(ended.stderr, end="")
    server.stop()


if __name__ == "__main__":
    main()
