#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["transformers==5.19.0", "torch==2.13.0", "safetensors==0.8.0", "blake3==1.0.8"]
# ///
"""Writes a calibration as `trephine calibrate` does, by transformers' forward hooks: for architectures that trephine does not run itself.

    python scripts/calibrate.py --model MODEL --text FILE... --out DIR [--tokens 16384] [--sequence 512] [--k 2048] [--seed 0]

The model has to fit in memory (or on a GPU, by --device). Every `nn.Linear` inside the decoder's layers, and the output head, is hooked;
modules that are given the very same tensor share an input. Stacks of experts that transformers fuses are seen by a hook on the stack,
which is given the tokens and where each is routed to. Sequences are cut from the files as trephine cuts them, so that the text's digest
is the same; where there are more rows than k, the sketch is Gaussian instead of sparse, which readers need not know.
"""
import argparse
import json
import re
import struct
from pathlib import Path

import torch
from blake3 import blake3
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

LAYER = re.compile(r"(^|\.)layers\.(\d+)\.")


def documents(path):
    text = Path(path).read_text(encoding="utf-8")
    if not path.endswith(".jsonl"):
        return [text]
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def pieces(tokenizer, document, length):
    if isinstance(document, dict) and "messages" in document:
        document = tokenizer.apply_chat_template(document["messages"], tokenize=False)
    elif isinstance(document, dict):
        document = document["text"]
    plain, special = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a")
    start = next((i for i in range(len(special)) if special[i : i + len(plain)] == plain), 0)
    beginning = special[:start]
    ids = tokenizer.encode(document, add_special_tokens=False)
    if beginning and ids[: len(beginning)] == beginning:
        ids = ids[len(beginning) :]
    room = max(length - len(beginning), 1)
    return [beginning + ids[i : i + room] for i in range(0, len(ids), room)]


def sequences(tokenizer, files, length, wanted):
    """Pieces of the files in turn, until there are as many tokens as are wanted."""
    cut = [[piece for document in documents(path) for piece in pieces(tokenizer, document, length)] for path in files]
    taken, tokens = [], 0
    for turn in range(max(map(len, cut))):
        for file in cut:
            if turn < len(file) and (piece := file[turn][: wanted - tokens]):
                taken.append(piece)
                tokens += len(piece)
    return [ids for ids in taken if len(ids) > 1]


class Input:
    """Second moments of one input: sums of squares in f64, and either all rows or a Gaussian sketch."""

    def __init__(self, name, width, k, seed):
        self.modules, self.count, self.k = [name], 0, k
        self.squares = torch.zeros(width, dtype=torch.float64)
        self.samples, self.sketch = [], None
        self.generator = torch.Generator().manual_seed(int.from_bytes(blake3(f"{seed}\0{name}".encode()).digest()[:8], "little") >> 1)

    def add(self, rows):
        rows = rows.detach().reshape(-1, rows.shape[-1]).float().cpu()
        self.count += len(rows)
        self.squares += rows.double().square().sum(0)
        if self.sketch is None:
            self.samples.append(rows)
            if self.count <= self.k:
                return
            rows, self.samples = torch.cat(self.samples), []
            self.sketch = torch.zeros(self.k, rows.shape[1])
        for part in rows.split(1024):
            self.sketch += torch.randn(self.k, len(part), generator=self.generator) @ part / self.k**0.5

    def tensors(self, name):
        empty = torch.zeros(0, len(self.squares))
        sketch = self.sketch if self.sketch is not None else torch.cat(self.samples) if self.samples else empty
        return {
            f"{name}.sketch": sketch.bfloat16().contiguous(),
            f"{name}.diagonal": self.squares.float(),
            f"{name}.count": torch.tensor([self.count], dtype=torch.int64),
        }


class Hooks:
    """The inputs of all linear layers of a model, under the names of the first module that each feeds."""

    def __init__(self, model, k, seed):
        self.inputs, self.k, self.seed = {}, k, seed
        self.shared = {}  # which input a module has: decided in the first forward pass, by the tensor that it is given
        self.last = None
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_pre_hook(lambda _, given, name=name: self.linear(name, given[0]))
            elif name.endswith(".experts") and hasattr(module, "gate_up_proj"):
                module.register_forward_pre_hook(lambda module, given, name=name: self.experts(name, module, *given))

    def input(self, name, width):
        return self.inputs.setdefault(name, Input(name, width, self.k, self.seed))

    def linear(self, name, rows):
        first = self.shared.get(name)
        if first is None:
            same = self.last is not None and self.last[1] is rows
            first = self.shared[name] = self.last[0] if same else name
            if same:
                self.inputs[first].modules.append(name)
        self.last = (first, rows)
        if first == name:
            self.input(name, rows.shape[-1]).add(rows)

    def experts(self, name, module, hidden, index, _weights):
        mixtral = "Mixtral" in type(module).__name__
        path = name.replace("mlp.experts", "block_sparse_moe.experts") if mixtral else name
        gate, up, down = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
        for expert in range(module.gate_up_proj.shape[0]):
            rows = hidden[(index == expert).any(-1)]
            halves = torch.nn.functional.linear(rows, module.gate_up_proj[expert]).chunk(2, dim=-1)
            first = self.input(f"{path}.{expert}.{gate}", rows.shape[-1])
            first.modules = [f"{path}.{expert}.{gate}", f"{path}.{expert}.{up}"]
            first.add(rows)
            inner = module.act_fn(halves[0]) * halves[1]
            self.input(f"{path}.{expert}.{down}", inner.shape[-1]).add(inner)


def write(out, model, hooks, ids, arguments, loss):
    out.mkdir(parents=True, exist_ok=True)
    flat = b"".join(struct.pack(f"<{len(s) + 1}I", *s, 2**32 - 1) for s in ids)
    about = dict(
        format="trephine-calibration", version=1, model=Path(model).name if Path(model).exists() else model,
        text_digest=blake3(flat).hexdigest(), tokens=sum(map(len, ids)), k=arguments.k, seed=arguments.seed,
        sketch="samples" if all(i.count <= arguments.k for i in hooks.inputs.values()) else "gaussian",
    )
    files = {}
    for name in hooks.inputs:
        layer = LAYER.search(name)
        files.setdefault(f"calibration-{int(layer[2]):05}.safetensors" if layer else "calibration-other.safetensors", []).append(name)
    index = {}
    for file, names in files.items():
        tensors = {}
        for name in names:
            found = hooks.inputs[name].tensors(name)
            tensors |= found
            rows, width = found[f"{name}.sketch"].shape
            index[name] = dict(file=file, width=width, rows=rows, count=hooks.inputs[name].count, modules=hooks.inputs[name].modules)
        shares = json.dumps({name: hooks.inputs[name].modules for name in sorted(names)})
        save_file(tensors, out / file, metadata={k: str(v) for k, v in about.items()} | {"inputs": shares, "producer": "scripts/calibrate.py"})
    text = json.dumps(about | {"loss": loss, "inputs": index}, indent=2, sort_keys=True) + "\n"
    (out / "calibration.json").write_text(text)
    sums = [f"{blake3((out / name).read_bytes()).hexdigest()}  {name}\n" for name in sorted([*files, "calibration.json"])]
    (out / "B3SUMS").write_text("".join(sums))


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True, nargs="+")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--sequence", type=int, default=512)
    parser.add_argument("--k", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    ids = sequences(tokenizer, arguments.text, arguments.sequence, arguments.tokens)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=getattr(torch, arguments.dtype)).to(arguments.device).eval()
    hooks = Hooks(model, arguments.k, arguments.seed)
    total = predicted = 0
    for done, sequence in enumerate(ids):
        tokens = torch.tensor([sequence], device=arguments.device)
        logits = model(input_ids=tokens).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum"))
        predicted += len(sequence) - 1
        print(f"{done + 1}/{len(ids)} sequences, loss {total / predicted:.4f}", flush=True)
    write(arguments.out, arguments.model, hooks, ids, arguments, total / predicted)


main()
