"""The kinds of files that mutate.py changes: each is given a world, a random generator and a folder, and gives a run and findings."""

import contextlib
import json
import random
import shutil
import signal
import struct
import subprocess
from pathlib import Path

from mutate_world import DATA, read_safetensors, refused_by_safetensors, write_safetensors
from mutations import NASTY, gentle_adapter, gentle_header, gentle_sums, gguf_file, mutate_bytes, mutate_json, mutate_text


def header(world, rng, home):
    folder = shutil.copytree(world.small, home / "in")
    (folder / "model.safetensors.index.json").unlink()
    path = folder / "model.safetensors"
    text, data = read_safetensors(path)
    way = rng.random()
    if way < 0.6:
        write_safetensors(path, *gentle_header(rng, json.loads(text), data))
    elif way < 0.8:
        write_safetensors(path, mutate_text(rng, text), data)
    else:
        path.write_bytes(mutate_bytes(rng, path.read_bytes(), range(8 + len(text))))
    ran = world.run("probe", folder, "--json")
    why = refused_by_safetensors(path)
    if why is None and ran.code != 0 and has_a_name_twice(path):
        # The judge takes the last of them, whatever the others say.
        ran.judged, ran.purpose = "on purpose", "one of two entries of a name"
        return ran, []
    return ran, ran.held_against("header", why is None, why)


def has_a_name_twice(path: Path) -> bool:
    names = lambda pairs: [name for name, _ in pairs]
    try:
        found = json.loads(read_safetensors(path)[0], object_pairs_hook=names)
    except ValueError:
        return False
    return len(found) > len(set(found))


def tensors(world, rng, home):
    folder = shutil.copytree(world.small, home / "in")
    path = folder / "model.safetensors"
    text, data = read_safetensors(path)
    body = bytearray(data)
    for _ in range(rng.choice([1, 3, 30])):
        at = rng.randrange(len(body) // 4) * 4
        body[at : at + 4] = rng.choice([b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\x7f\x7f", b"\x01\x00\x00\x00", bytes(4)])
    write_safetensors(path, text, bytes(body))
    zero = rng.choice([[], ["--non-finite", "zero"]])
    dtype = rng.choice(["bf16", "f16", "f32"])
    ran = world.run("extract", "--base", world.small, "--tuned", folder, "--rank", "2", "--dtype", dtype, "--json", "--out", home / "out", *zero)
    found = []
    if ran.code == 0:
        total = json.loads(ran.stdout)["total"]
        if not -0.01 <= total["captured_energy"] <= 1.000001:
            found.append(f"captured {total['captured_energy']}")
        if b"NaN" in (home / "out/README.md").read_bytes():
            found.append("NaN in the card")
    return ran, found


def taken_though_no_json(ran, path: Path) -> list[str]:
    """A file that Python's parser refuses, and Trephine takes."""
    try:
        json.loads(path.read_bytes())
    except ValueError as error:
        return [f"takes {path.name}, which is not JSON: {error}"] if ran.code == 0 else []
    return []


def index(world, rng, home):
    folder = shutil.copytree(world.small, home / "in")
    path = folder / "model.safetensors.index.json"
    path.write_bytes(mutate_text(rng, path.read_bytes()))
    ran = world.run("probe", folder, "--json")
    return ran, taken_though_no_json(ran, path)


@contextlib.contextmanager
def patience(seconds: float):
    """Lets a judge work for so long: gguf-py goes through a list of 2^60 items one by one, whether they are there or not."""

    def ended(*_):
        raise TimeoutError(f"no answer in {seconds} s")

    signal.signal(signal.SIGVTALRM, ended)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def gguf(world, rng, home):
    from gguf import GGML_QUANT_SIZES, GGUFReader

    folder = home / "in"
    folder.mkdir()
    path = folder / "model.gguf"
    if rng.random() < 0.6:
        path.write_bytes(gguf_file(rng, {kind.value: size for kind, size in GGML_QUANT_SIZES.items()}))
    else:
        data = rng.choice(world.fixtures).read_bytes()
        path.write_bytes(mutate_bytes(rng, data, range(min(len(data), 1500))))
    ran = world.run("probe", path, "--json")
    try:
        with patience(5):
            for tensor in GGUFReader(path).tensors:
                _ = tensor.data
        why = None
    except Exception as error:  # whatever it says: it does not take the file
        why = f"{type(error).__name__}: {error}"[:200]
    return ran, ran.held_against("gguf", why is None, why)


def config(world, rng, home):
    folder = shutil.copytree(world.fp8, home / "in")
    path = folder / "config.json"
    path.write_bytes(mutate_text(rng, path.read_bytes()))
    ran = world.run(*rng.choice([("probe", folder, "--json"), ("dequantize", folder, "--out", home / "out")]))
    return ran, taken_though_no_json(ran, path)


MODULES = [f"model.layers.{i}.self_attn.{kind}_proj" for i in range(2) for kind in "qkv"]


def adapter(world, rng, home):
    import numpy
    from safetensors.numpy import save_file

    folder = shutil.copytree(world.adapter, home / "in")
    path = folder / "adapter_config.json"
    value, gentle = json.loads(path.read_bytes()), rng.random() < 0.75
    if gentle:
        value = gentle_adapter(rng, value)
        path.write_text(json.dumps(value))
    else:
        path.write_bytes(mutate_text(rng, path.read_bytes()))
    expected = None
    try:
        expected = peft_scales(json.loads(path.read_bytes()))
        ranks = {name: rank for name, (rank, _) in expected.items()}
        if max(ranks.values()) < 100:
            # Factors of the ranks that PEFT would give its modules.
            shapes = [(name, rank, side) for name, rank in ranks.items() for side in "AB"]
            key = "base_model.model.{}.lora_{}.weight".format
            ones = lambda rank, side: numpy.ones((rank, 8) if side == "A" else (8, rank), "float32")
            save_file({key(name, side): ones(rank, side) for name, rank, side in shapes}, folder / "adapter_model.safetensors")
    except Exception:  # PEFT makes nothing of it
        expected = None
    ran = world.run("probe", folder, "--json")
    if expected is None or max(ranks.values()) >= 100:
        ran.judged = "both refuse" if ran.code == 3 else None
        return ran, taken_though_no_json(ran, path)
    if ran.code not in (0, 4) or not ran.stdout:
        return ran, [f"PEFT has scales for it, we say: {ran.stderr[:300]}"] if gentle else []
    scales, theirs = json.loads(ran.stdout)["scales"], [scale for _, scale in expected.values()]
    ran.judged = "both take"
    if not scales or any(abs(a - b) > 1e-9 * abs(b) for a, b in zip(scales, [min(theirs), max(theirs)])):
        return ran, [f"PEFT's scales are {min(theirs)} to {max(theirs)}, not {scales}"]
    return ran, []


def peft_scales(value: dict) -> dict[str, tuple[int, float]]:
    """Each module's rank and scale, as `LoraModel._create_and_replace` and `LoraLayer.update_layer` have them."""
    from peft.utils.other import get_pattern_key

    alphas, ranks = value.get("alpha_pattern") or {}, value.get("rank_pattern") or {}
    found = {}
    for name in MODULES:
        rank = ranks.get(get_pattern_key(ranks.keys(), name), value["r"])
        alpha = alphas.get(get_pattern_key(alphas.keys(), name), value["lora_alpha"])
        found[name] = (rank, alpha / (rank**0.5 if value.get("use_rslora") else rank))
    return found


def sums(world, rng, home):
    folder = shutil.copytree(world.adapter, home / "in")
    path = folder / "B3SUMS"
    if rng.random() < 0.75:
        path.write_bytes(gentle_sums(rng, path.read_text()))
        (folder / rng.choice(["extra.txt", "sub\\n", "README.md.bak"])).write_text("not listed")
    else:
        name = rng.choice(sorted(path.name for path in folder.iterdir() if path.is_file() and path.suffix != ".log"))
        (folder / name).write_bytes(mutate_bytes(rng, (folder / name).read_bytes()))
    ran = world.run("verify", folder)
    judge = subprocess.run(["b3sum", "--check", "B3SUMS"], cwd=folder, capture_output=True)
    found = ran.held_against("sums", judge.returncode == 0, judge.stderr.decode(errors="replace")[:200])
    if ran.code == 0 and b"adapter_model.safetensors" not in path.read_bytes():
        found.append("the weights are not in the sums")
    return ran, found


def state(world, rng, home):
    name = rng.choice(list(world.resumed))
    out = shutil.copytree(world.begun / name, home / "out")
    victim = home / "victim"
    victim.mkdir()
    (victim / "x").write_text("mine")
    files = [path for path in (out / ".trephine").rglob("*") if path.is_file()]
    path = rng.choice(files)
    way = rng.randrange(5)
    match way:
        case 0 if path.suffix == ".json":
            path.write_bytes(mutate_text(rng, path.read_bytes()))
        case 1:
            info = next((out / ".trephine/parts").glob("*/attempt.json"))
            value = json.loads(info.read_bytes())
            value["outputs"] = value.get("outputs", []) + ["../victim/x", str(victim / "x"), "..", "."]
            info.write_text(json.dumps(value))
        case 2:
            path.unlink()
            path.symlink_to(victim / "x")
        case 3:
            chained(path, rng, victim)
        case _:
            path.write_bytes(mutate_bytes(rng, path.read_bytes()))
    more = rng.choice([[], ["--overwrite"]])
    ran = world.run(*world.resumed[name], "--out", out, *more)
    found = []
    if {p.name: p.read_bytes() for p in victim.iterdir()} != {"x": b"mine"}:
        found.append("a file outside was touched")
    # Whoever writes the chain of a journal anew may record what he likes: his word goes to the records, never to the weights.
    forged = way == 3
    if ran.code == 0:
        for good in (world.whole / name).rglob("*"):
            if not good.is_file() or good.suffix == ".log" or (forged and good.suffix != ".safetensors"):
                continue
            if (out / good.relative_to(world.whole / name)).read_bytes() != good.read_bytes():
                found.append(f"{good.name} has other bytes")
    return ran, found


def chained(path: Path, rng: random.Random, victim: Path):
    """A journal with changed records whose chain of checksums is right: it has no key."""
    from blake3 import blake3

    journals = [path] if path.name == "journal" else list(path.parents[0].rglob("journal"))
    if not journals:
        return
    before, out = b"trephine.journal", b""
    for line in journals[0].read_bytes().splitlines():
        record = json.loads(line[17:])
        if rng.random() < 0.5:
            record = mutate_json(rng, record)
        if rng.random() < 0.3 and isinstance(record, dict) and "file" in record and isinstance(record["file"], dict):
            record["file"]["name"] = rng.choice(["../victim/x", str(victim / "x"), "../../victim/x", ""])
        text = json.dumps(record, separators=(",", ":")).encode()
        digits = blake3(before + text).hexdigest()[:16].encode()
        out, before = out + digits + b" " + text + b"\n", digits
    journals[0].write_bytes(out)


def report(world, rng, home):
    way = rng.random()
    if way < 0.5:
        folder = shutil.copytree(world.adapter, home / "in")
        path = folder / "extraction.json"
    elif way < 0.7:
        folder = shutil.copytree(world.adapter, home / "in")
        path = folder / "spectra.jsonl.zst"
    else:
        folder = shutil.copytree(world.measured / rng.choice(["analysis", "autopsy"]), home / "in")
        path = rng.choice(sorted(folder.glob("*.json")))
    path.write_bytes(mutate_bytes(rng, path.read_bytes()) if path.suffix == ".zst" else mutate_text(rng, path.read_bytes()))
    ran = world.run("report", folder, "--out", home / "report.html")
    found = taken_though_no_json(ran, path) if path.suffix == ".json" else []
    page = home / "report.html"
    if page.exists() and any(c in page.read_text() for c in "\x1b\u009b\u202e"):
        found.append("control characters in the page")
    return ran, found


def names(world, rng, home):
    folder = shutil.copytree(world.small, home / "in")
    (folder / "model.safetensors.index.json").unlink()
    nasty = [name for name in NASTY if name and len(name) < 200 and "/" not in name and name != ".."]
    path = folder / "model.safetensors"
    text, data = read_safetensors(path)
    value = {key.replace("q_proj", rng.choice(nasty) + "q_proj") if rng.random() < 0.5 else key: entry for key, entry in json.loads(text).items()}
    write_safetensors(path, json.dumps(value).encode(), data)
    if rng.random() < 0.5:
        (folder / (rng.choice(nasty) + rng.choice([".txt", "", ".json"]))).write_text("side")
    renamed = home / ("in" + rng.choice(nasty))
    folder.rename(renamed)
    command = rng.choice(["probe", "extract", "dequantize", "autopsy"])
    out = home / ("out" + rng.choice(nasty))
    match command:
        case "probe":
            ran = world.run("probe", renamed)
        case "extract":
            ran = world.run("extract", "--base", renamed, "--tuned", world.home / "tuned", "--allow-missing", "--rank", "2", "--out", out)
        case "autopsy":
            ran = world.run("autopsy", renamed)
        case _:
            ran = world.run("dequantize", renamed, "--out", out)
    found = []
    if command in ("extract", "dequantize") and ran.code == 0:
        verified = world.run("verify", out)
        if verified.code != 0:
            found.append(f"verify of its output exits {verified.code}")
        found += verified.findings()
    return ran, found


def calibration(world, rng, home):
    """A calibration's index, one of its files, or an importance matrix."""
    folder = shutil.copytree(world.calibration, home / "in")
    path = rng.choice(sorted(path for path in folder.iterdir() if path.name != "B3SUMS"))
    if path.suffix == ".json":
        path.write_bytes(mutate_text(rng, path.read_bytes()))
    elif rng.random() < 0.5:
        text, data = read_safetensors(path)
        write_safetensors(path, mutate_text(rng, text), data)
    else:
        path.write_bytes(mutate_bytes(rng, path.read_bytes()))
    given = folder if rng.random() < 0.8 or path.suffix == ".json" else path
    pair = ["--base", world.fp8, "--tuned", DATA / "data/tuned", "--rank", "2", "--include", "re:layers\\.0\\.self_attn"]
    ran = world.run("extract", *pair, "--calibration", given, "--out", home / "out")
    return ran, ["NaN in the card"] if ran.code == 0 and b"NaN" in (home / "out/README.md").read_bytes() else []


TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m.content | trim }}{{ eos_token }}{% endfor %}"


def text(world, rng, home):
    """What a model is run on: its tokenizer, its chat template, and conversations."""
    folder = home / "tokenizer"
    folder.mkdir()
    for name in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(world.base / name, folder / name)
    config = json.loads((folder / "tokenizer_config.json").read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TEMPLATE}))
    talk = [{"role": "user", "content": "How are you today?"}, {"role": "assistant", "content": "Well, and you?"}]
    lines = [{"messages": talk}, {"text": "Some words that follow one another."}, {"messages": talk}]
    file = home / "text.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    match rng.randrange(4):
        case 0:
            path = folder / "tokenizer.json"
            path.write_bytes(mutate_text(rng, path.read_bytes()))
        case 1:
            path = folder / "tokenizer_config.json"
            path.write_bytes(mutate_text(rng, path.read_bytes()))
        case 2:
            file.write_bytes(b"\n".join(mutate_text(rng, line) if rng.random() < 0.5 else line for line in file.read_bytes().splitlines()))
        case _:
            template = mutate_bytes(rng, rng.choice([TEMPLATE, *TEMPLATES]).encode())
            (folder / "chat_template.jinja").write_bytes(template)
    options = ["--model", world.base, "--tokenizer", folder, "--text", file, "--tokens", "32", "--sequence", "16"]
    command = rng.choice([["evaluate", *options], ["calibrate", *options, "--k", "4", "--out", home / "out"]])
    return world.run(*command), []


TEMPLATES = [
    "{% for i in range(100000) %}{% for j in range(100000) %}{{ i }}{% endfor %}{% endfor %}",
    "{{ 'x' * 10000000000 }}",
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "{{ messages[0].content.center(10000000000) }}{{ messages | tojson(indent=1000000000) }}",
]


def convert(world, rng, home):
    """An adapter's config or factors on the way to another program, whose reader has to take what is written."""
    folder = shutil.copytree(world.adapter, home / "in")
    if rng.random() < 0.5:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(gentle_adapter(rng, json.loads(path.read_bytes())))) if rng.random() < 0.5 else path.write_bytes(mutate_text(rng, path.read_bytes()))
    else:
        path = folder / "adapter_model.safetensors"
        text, data = read_safetensors(path)
        write_safetensors(path, *(gentle_header(rng, json.loads(text), data) if rng.random() < 0.5 else (mutate_text(rng, text), data)))
    form = rng.choice(["gguf", "mlx"])
    ran = world.run("convert-adapter", folder, "--format", form, "--base", world.base, "--out", home / "out")
    found = []
    if ran.code == 0 and form == "gguf":
        from gguf import GGUFReader

        try:
            assert all(len(tensor.data) for tensor in GGUFReader(home / "out/adapter.gguf").tensors)
        except Exception as error:  # whatever it says
            found.append(f"gguf-py refuses what was written: {error}")
    if ran.code == 0 and form == "mlx":
        why = refused_by_safetensors(home / "out/adapters.safetensors")
        found += [f"safetensors refuses what was written: {why}"] if why else []
    return ran, found


KINDS = [header, tensors, index, gguf, config, adapter, sums, state, report, names, calibration, text, convert]
KINDS = {kind.__name__: kind for kind in KINDS}
# What takes milliseconds, and has a judge, comes oftener.
OFTEN = {"header": 4, "gguf": 4, "sums": 3, "adapter": 3, "index": 2, "config": 2, "report": 2, "convert": 2}
