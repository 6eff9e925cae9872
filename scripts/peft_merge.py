"""Shows that PEFT, given an adapter that Trephine wrote, turns every weight W into W + B·A, and leaves all others alone.

    python -m venv venv && venv/bin/pip install torch==2.13.0 transformers==5.19.0 peft==0.21.2 safetensors==0.8.0
    venv/bin/python scripts/peft_merge.py tests/data/base ADAPTER

The product is computed here from the adapter's file, in f64, without PEFT; PEFT merges in f32. Exit code 1 where a weight is
further away than f32 rounding explains, or where the adapter has a module that PEFT did not take.
"""

import sys

import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM

PREFIX, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
EMBEDDING_A, EMBEDDING_B = ".lora_embedding_A", ".lora_embedding_B"


def products(path):
    """The adapter's B·A by module, in f64."""
    with safe_open(path + "/adapter_model.safetensors", "pt") as file:
        factors = {name: file.get_tensor(name).double() for name in file.keys()}
    found = {}
    for name, value in factors.items():
        if name.endswith(A):
            found[name[len(PREFIX) : -len(A)]] = factors[name[: -len(A)] + B] @ value
        elif name.endswith(EMBEDDING_A):
            product = factors[name[: -len(EMBEDDING_A)] + EMBEDDING_B] @ value
            found[name[len(PREFIX) : -len(EMBEDDING_A)]] = product.T
    return found


def main(base, adapter):
    def load():
        return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)

    before = {name: value.detach().clone() for name, value in load().state_dict().items()}
    merged = PeftModel.from_pretrained(load(), adapter).merge_and_unload().state_dict()
    deltas = products(adapter)
    worst, touched = 0.0, 0
    for name, weight in merged.items():
        delta = deltas.pop(name.removesuffix(".weight"), None)
        expected = before[name].double() if delta is None else before[name].double() + delta
        touched += delta is not None and bool(delta.any())
        # PEFT multiplies and adds in f32: a few units in the last place of the largest terms.
        scale = expected.abs().max().clamp_min(1e-30)
        worst = max(worst, float((weight.double() - expected).abs().max() / scale))
    print(f"{touched} weights changed by the adapter, {len(deltas)} modules not taken, largest deviation {worst:.2e}")
    return not deltas and touched > 0 and worst < 1e-5


if __name__ == "__main__":
    sys.exit(0 if main(*sys.argv[1:3]) else 1)
