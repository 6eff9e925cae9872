"""The kinds of the first four numbers, for hostile.py."""

import json
import multiprocessing
import os
import re
import shutil
import struct
import subprocess
import time
from pathlib import Path

from hostile_lab import alive, chain, checkpoint, DATA, kind, NAME, pair, QWEN, with_header


@kind("1", "a tampered journal names files outside, then `--overwrite`", "hostile_folder::names_in_an_attempt_that_lead_out_of_the_folder_are_no_files_of_the_run, a_unit_that_is_not_planned_moves_no_file")
def tampered(lab):
    lab.begun()
    victim = lab.path("victim")
    victim.mkdir()
    (victim / "x").write_text("mine")
    names = ["../victim/x", str(victim / "x")]

    def change(value):
        for key, inner in value.items() if isinstance(value, dict) else []:
            if key in ("files", "outputs") and isinstance(inner, list):
                inner.extend(names)
            change(inner)

    state = lab.path("out/.trephine")
    for path in sorted(state.rglob("*")):
        if path.name == "journal":
            chain(path, change)
        elif path.name == "attempt.json":
            value = json.loads(path.read_bytes())
            value.setdefault("outputs", []).extend(names)
            path.write_text(json.dumps(value))
    ran = lab.run(*lab.dequantize("out", "--overwrite"))
    return f"{ran.how()}, {'the file outside is untouched' if (victim / 'x').exists() else '**deleted a file outside**'}"


LINKS = [(".trephine/lock", "file"), (".trephine/journal", "file"), (".trephine/.tmp-heartbeat", "file"), ("extraction.log", "file"), (".trephine", "folder"), (".trephine/shards", "folder")]


@kind("1", "links in the output folder: lock, journal, heartbeat, log, `.trephine`, shards", "hostile_folder::links_where_a_run_keeps_its_state_are_refused_and_lead_nowhere, a_log_that_is_a_link_is_not_appended_to")
def links(lab):
    harmed, codes = [], []
    for at, (link, to) in enumerate(LINKS):
        for more in [[], ["--overwrite"]]:
            home = lab.path(f"{at}-{len(more)}")
            victim, out = home / "victim", home / "out"
            (victim / "folder/shards").mkdir(parents=True)
            for name in ["file", "folder/journal", "folder/lock", "folder/shards/a.shard", "folder/heartbeat.json"]:
                (victim / name).write_text("mine")
            before = {str(p.relative_to(victim)): p.read_bytes() for p in victim.rglob("*") if p.is_file()}
            (out / link).parent.mkdir(parents=True)
            (out / link).symlink_to(victim / to)
            codes.append(lab.run(*lab.extract(DATA / "data/base", DATA / "data/tuned", out, *more)).code)
            now = {str(p.relative_to(victim)): p.read_bytes() for p in victim.rglob("*") if p.is_file()}
            harmed += [link + (" --overwrite" if more else "")] if now != before else []
    return f"exits {', '.join(map(str, sorted(set(codes))))}; " + (f"**harmed through {', '.join(harmed)}**" if harmed else "nothing outside was touched")


@kind("1", "a side file is a link to a private key", "hostile_folder::side_files_that_lead_out_of_the_checkpoint_are_not_copied")
def key(lab):
    base = lab.data("base-fp8")
    lab.path("id_ed25519").write_text("PRIVATE")
    (base / "tokenizer_config.json").unlink()
    (base / "tokenizer_config.json").symlink_to(lab.path("id_ed25519"))
    ran = lab.run("dequantize", base, "--out", lab.path("out"))
    copied = lab.path("out/tokenizer_config.json").exists() and "PRIVATE" in lab.path("out/tokenizer_config.json").read_text()
    return f"{ran.how()}, {'**the key is in the output**' if copied else 'not copied'}"


def changed(lab, command, file: Path):
    """Writes to a file once something of the run is durable."""
    child = lab.slowed(*command)
    journals = lambda: [path for path in lab.path("out").rglob("journal") if path.stat().st_size > 2000]
    results = lambda: [*lab.path("out").rglob("*.shard*"), *lab.path("out").rglob("*.safetensors*"), *journals()]
    while not results() and alive(child):
        time.sleep(0.01)
    data = bytearray(file.read_bytes())
    for at in range(len(data) // 2, len(data) - 1, 2):
        data[at] ^= 1
    with open(file, "r+b") as target:
        target.write(data)
    ran = lab.end(child)
    return ran.full() + ("" if ran.code else " **(made of two states)**")


@kind("2", "`extract`: the tuned file is written to during the run", "changed_inputs::an_extraction_of_two_states_is_none")
def changed_extract(lab):
    tuned = lab.data("tuned")
    return changed(lab, [*lab.extract(DATA / "data/base", tuned), "--threads", "1"], tuned / "model.safetensors")


@kind("2", "`dequantize`: likewise", "changed_inputs::a_conversion_of_two_states_is_none")
def changed_dequantize(lab):
    base = lab.data("base-fp8")
    return changed(lab, ["dequantize", base, "--quiet", "--max-shard-size", "300kB", "--threads", "1", "--out", lab.path("out")], base / "model.safetensors")


@kind("2", "`merge`: likewise", "changed_inputs::a_merge_of_two_states_is_none")
def changed_merge(lab):
    base = lab.data("base")
    lab.run(*lab.extract(base, DATA / "data/tuned", "adapter"))
    return changed(lab, ["merge", "--base", base, "--adapter", lab.path("adapter"), "--quiet", "--max-shard-size", "300kB", "--threads", "1", "--out", lab.path("out")], base / "model.safetensors")


@kind("2", "`analyze`: likewise", "changed_inputs::an_analysis_of_two_states_is_none")
def changed_analyze(lab):
    tuned = lab.data("tuned")
    quartet = ["--base", DATA / "data/base", "--base-quantized", DATA / "data/base-fp8", "--tuned", tuned]
    command = ["analyze", *quartet, "--rank", "4", "--quiet", "--threads", "1", "--out", lab.path("out")]
    return changed(lab, command, tuned / "model.safetensors")


def header_bomb(number, what, make):
    @kind(number, what, "hostile_inputs::headers_that_stand_for_gigabytes")
    def bomb(lab):
        # In a process of its own: the peak of a run counts what its parent held.
        maker = multiprocessing.get_context("fork").Process(target=make, args=(lab,))
        maker.start()
        maker.join()
        folder = lab.path("in")
        return lab.run("probe" if (folder / "model.gguf").exists() else "dequantize", folder, *([] if (folder / "model.gguf").exists() else ["--out", lab.path("out")])).full()


def gguf_bomb(lab):
    folder = lab.path("in")
    folder.mkdir()
    entry = b"".join([struct.pack("<Q", 6), b"%06d", struct.pack("<IQIQ", 1, 0, 0, 0)])
    out = b"GGUF" + struct.pack("<IQQ", 3, 2_600_000, 0)
    at = entry.index(b"%06d")
    parts = [entry[:at] + f"{i:06x}".encode() + entry[at + 4 :] for i in range(2_600_000)]
    (folder / "model.gguf").write_bytes(out + b"".join(parts) + bytes(64))
    return folder


header_bomb("4", "84 MB header of empty objects", lambda lab: with_header(lab.path("in"), '{"a":{' + "".join(f'"{i:06x}":{{}},' for i in range(7_000_000)) + '"z":1}}'))
header_bomb("4", "shape of 49 million numbers", lambda lab: with_header(lab.path("in"), '{"a":{"dtype":"U8","shape":[' + "1," * 49_000_000 + '1],"data_offsets":[0,1]}}', b"x"))
header_bomb("4", "1.7 million empty tensors", lambda lab: with_header(lab.path("in"), "{" + ",".join(f'"{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(1_700_000)) + "}"))
header_bomb("4", "99 MB GGUF of 2.6 million tensors", gguf_bomb)

PATTERNS = [f"(x{{99}}){{99}}{i}" for i in range(2000)]


@kind("4", "`adapter_config.json` of 2,000 patterns", "hostile_inputs::patterns_that_stand_for_gigabytes")
def adapter_patterns(lab):
    lab.run(*lab.extract(*pair(lab.home)))
    path = lab.path("out/adapter_config.json")
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"rank_pattern": {pattern: 4 for pattern in PATTERNS}}))
    return lab.run("probe", lab.path("out")).full()


@kind("4", "`quantization_config.ignore` of 2,000 patterns", "hostile_inputs::patterns_that_stand_for_gigabytes")
def ignore_patterns(lab):
    quantization = {"quant_method": "compressed-tensors", "format": "dense", "ignore": [f"re:{pattern}" for pattern in PATTERNS]}
    folder = checkpoint(lab.path("in"), {NAME: ("F32", [8, 8], bytes(256))}, QWEN | {"quantization_config": quantization})
    return lab.run("dequantize", folder, "--out", lab.path("out")).full()


@kind("4", "36 KB of spectra that unpack to gigabytes, in `report`", "hostile_inputs::spectra_that_stand_for_gigabytes")
def spectra(lab):
    lab.run(*lab.extract(*pair(lab.home)))
    # In a process of its own: the peak of a run counts what its parent held.
    make = "(printf '{\"module\":\"'; head -c 1073741824 /dev/zero | tr '\\0' x) | zstd -q -c > \"$1\""
    if subprocess.run(["bash", "-o", "pipefail", "-c", make, "bash", lab.path("out/spectra.jsonl.zst")]).returncode:
        return "not run: no zstd here"
    return lab.run("report", lab.path("out"), "--out", lab.path("r.html")).full()


@kind("4", "config.json is a link to /dev/zero", "hostile_inputs::pipes_and_devices_in_place_of_files")
def zero(lab):
    base = lab.data("base-fp8")
    (base / "config.json").unlink()
    (base / "config.json").symlink_to("/dev/zero")
    return lab.run("dequantize", base, "--out", lab.path("out")).full()


@kind("4", "a pipe in place of config, weights, index, adapter config, sums", "hostile_inputs::pipes_and_devices_in_place_of_files")
def pipes(lab):
    lab.seconds = min(lab.seconds, 10)
    ends = []
    for name in ["config.json", "model.safetensors", "model.safetensors.index.json"]:
        base = shutil.copytree(DATA / "data/base-fp8", lab.path(name))
        (base / name).unlink(missing_ok=True)
        os.mkfifo(base / name)
        ends.append(lab.run("dequantize", base, "--out", lab.path("out")).how())
    lab.run(*lab.extract(*pair(lab.home), "adapter"))
    for name, command in [("adapter_config.json", "probe"), ("B3SUMS", "verify")]:
        folder = shutil.copytree(lab.path("adapter"), lab.path("a-" + name))
        (folder / name).unlink()
        os.mkfifo(folder / name)
        ends.append(lab.run(command, folder).how())
    return "; ".join(ends)
