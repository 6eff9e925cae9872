"""Holds what PEFT makes of a base with a sanitized adapter against what it makes of it with the adapter as it was.

    python -m venv venv && venv/bin/pip install torch==2.13.0 transformers==5.19.0 peft==0.21.2 safetensors==0.8.0
    venv/bin/python scripts/peft_same.py tests/data/base ADAPTER SANITIZED [SANITIZED ...]

Of each sanitized adapter, `sanitized.json` says which whole weights were left out: there the merged weights are to be the base's own,
elsewhere those of the adapter as it was, up to the errors that the record states. An adapter that PEFT itself refuses is
multiplied out here, in f64. Exit code 1 where a weight is further away.
"""

import json
import re
import sys

import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM

PREFIX = "base_model.model."


def load(base):
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def by_peft(base, adapter):
    model = PeftModel.from_pretrained(load(base), adapter)
    return {name: value.double() for name, value in model.merge_and_unload().state_dict().items()}


def by_hand(base, adapter):
    """`W + alpha / r · B·A`, and whole weights in their place, without PEFT."""
    weights = {name: value.double() for name, value in load(base).state_dict().items()}
    config = json.load(open(adapter + "/adapter_config.json"))
    with safe_open(adapter + "/adapter_model.safetensors", "pt") as file:
        tensors = {name.removeprefix(PREFIX): file.get_tensor(name).double() for name in file.keys()}
    for name, value in tensors.items():
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            match = (alpha for key, alpha in config["alpha_pattern"].items() if re.match(rf"(.*\.)?({key})$", module))
            scale = next(match, config["lora_alpha"]) / max(value.shape[0], 1)
            weights[module + ".weight"] += scale * tensors[module + ".lora_B.weight"] @ value
        elif ".lora_" not in name:
            weights[name] = value
    return weights


def main(base, adapter, sanitized):
    plain = {name: value.double() for name, value in load(base).state_dict().items()}
    try:
        before, how = by_peft(base, adapter), "PEFT"
    except Exception as error:
        print(f"PEFT refuses {adapter}: {str(error)[:120]}")
        before, how = by_hand(base, adapter), "hand"
    good = True
    for folder in sanitized:
        record = json.load(open(folder + "/sanitized.json"))
        pruned = {entry["name"].removeprefix(PREFIX) for entry in record["pruned"]}
        allowed = 1e-6 + 1.01 * (record["truncation_error"] + record["rounding_error"])
        after, changed, worst = by_peft(base, folder), 0, 0.0
        error2 = norm2 = torch.zeros((), dtype=torch.float64)
        for name, weight in after.items():
            expected = plain[name] if name in pruned else before[name]
            difference = weight - expected
            if name.removesuffix(".weight") in {module["name"] for module in record["modules"]}:
                error2, norm2 = error2 + difference.norm() ** 2, norm2 + (before[name] - plain[name]).norm() ** 2
            else:
                worst = max(worst, float(difference.abs().max()))
            changed += bool((weight != plain[name]).any())
        relative = float((error2 / norm2).sqrt())
        good &= relative <= allowed and worst == 0 and changed > 0
        print(
            f"{folder}: {changed} weights changed, {len(pruned)} left out; products off by {relative:.2e} of their norm"
            f" ({allowed:.2e} allowed), other weights by {worst:.1e} (before: by {how})"
        )
    return good


if __name__ == "__main__":
    sys.exit(0 if main(sys.argv[1], sys.argv[2], sys.argv[3:]) else 1)
