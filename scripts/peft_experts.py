#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "transformers==5.19.0", "peft==0.21.2", "safetensors==0.8.0", "numpy==2.3.5"]
# ///
"""Shows that PEFT makes the tuned model out of a mixture of experts and the adapter that Trephine extracts for it.

    python scripts/peft_experts.py target/release/trephine [FOLDER]

Tiny random models of each kind are made, and changed in attention and experts; one expert of each is left as it is. The adapter has
full rank and factors in f32, so that what PEFT merges has to be the tuned model, up to rounding: a wrong key, a wrong order of rows
or columns, or a gate taken for an up cannot pass. A second run with rank 2 is held against W + B·A, computed from the adapter's file
by the layout that PEFT's documentation gives. Base and tuned are stored in different ways where the model knows several. Exit code 1
where something is further away than f32 rounding explains.
"""
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, GptOssConfig, MixtralConfig, Qwen2MoeConfig,
                          Qwen3MoeConfig, Qwen3VLMoeConfig)

SMALL = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
             max_position_embeddings=128, tie_word_embeddings=False)
VISION = dict(depth=1, hidden_size=16, num_heads=2, intermediate_size=16, out_hidden_size=32, deepstack_visual_indexes=[0],
              num_position_embeddings=16)


def configs():
    moe = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, decoder_sparse_step=1)
    yield "qwen3_moe", Qwen3MoeConfig(**SMALL, **moe, intermediate_size=48, mlp_only_layers=[])
    yield "mixtral", MixtralConfig(**SMALL, num_local_experts=4, intermediate_size=24)
    yield "gpt_oss", GptOssConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2, intermediate_size=32)
    text = dict(SMALL, **moe, intermediate_size=48, mlp_only_layers=[])
    yield "qwen3_vl_moe", Qwen3VLMoeConfig(text_config=text, vision_config=VISION, tie_word_embeddings=False)


def load(folder):
    config = AutoConfig.from_pretrained(folder)
    kind = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    return kind.from_pretrained(folder, dtype=torch.float32)


def change(model, seed):
    """Random changes of full rank in attention and experts; expert 1 stays."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "visual" in name or not any(part in name for part in ("self_attn.q_proj.weight", "experts.gate_up_proj", "experts.down_proj")):
                continue
            if name.endswith("bias"):
                continue
            delta = torch.randn(weight.shape, generator=generator) * 0.02
            if weight.dim() == 3:
                delta[1] = 0
            weight += delta


def restack(folder, transpose=False, fuse=False):
    """Stores a checkpoint's experts in another way: stacks transposed, or single experts as stacks."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in [n for n in tensors if transpose and n.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        tensors[name] = tensors[name].transpose(1, 2).contiguous()
    singles = [n for n in tensors if fuse and ".experts.0." in n and n.endswith(("gate_proj.weight", "w1.weight"))]
    for first in singles:
        path_of, last = first.split(".experts.0.")
        names = ("w1", "w3", "w2") if last.startswith("w1") else ("gate_proj", "up_proj", "down_proj")
        count = sum(n.startswith(f"{path_of}.experts.") and n.endswith(f".{names[0]}.weight") for n in tensors)
        gate, up, down = (torch.stack([tensors.pop(f"{path_of}.experts.{e}.{n}.weight") for e in range(count)]) for n in names)
        stem = path_of.replace("block_sparse_moe", "mlp")
        tensors[f"{stem}.experts.gate_up_proj"] = torch.cat([gate, up], dim=1)
        tensors[f"{stem}.experts.down_proj"] = down
    save_file(tensors, path, metadata={"format": "pt"})


def extract(trephine, base, tuned, out, rank):
    command = [trephine, "extract", "--quiet", "--base", base, "--tuned", tuned, "--out", out, "--dtype", "f32", "--rank", str(rank)]
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    verify = [trephine, "verify", out, "--base", base, "--tuned", tuned]
    subprocess.run([str(part) for part in verify], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def merged(base, adapter):
    return PeftModel.from_pretrained(load(base), adapter).merge_and_unload().state_dict()


def distance(got, want):
    worst, where = 0.0, ""
    for name, weight in want.items():
        off = float((got[name] - weight).abs().max() / weight.abs().max().clamp_min(1e-9))
        worst, where = max((worst, where), (off, name))
    return worst, where


def by_the_book(base, adapter):
    """W + B·A by the documented layout, without PEFT."""
    rank = json.loads((adapter / "adapter_config.json").read_text())["r"]
    state = {name: weight.clone() for name, weight in load(base).state_dict().items()}
    factors = {n.removeprefix("base_model.model."): v for n, v in load_file(adapter / "adapter_model.safetensors").items()}
    for key, a in factors.items():
        if not key.endswith(".lora_A.weight"):
            continue
        module, b = key.removesuffix(".lora_A.weight"), factors[key.replace("lora_A", "lora_B")]
        if module.endswith((".experts.base_layer", ".experts")):
            name = f"{module.removesuffix('.base_layer')}.{'gate_up_proj' if module.endswith('base_layer') else 'down_proj'}"
            weight = state[name]
            for e in range(weight.shape[0]):
                delta = b[:, e :: weight.shape[0]] @ a[e * rank : (e + 1) * rank]
                weight[e] += delta.T if transposed(base) else delta
        elif ".experts." in module:
            path, index, last = module.replace("block_sparse_moe", "mlp").rsplit(".", 2)
            if last in ("down_proj", "w2"):
                state[f"{path}.down_proj"][int(index)] += b @ a
            else:
                part = state[f"{path}.gate_up_proj"][int(index)]
                half = part.shape[0] // 2
                part[slice(0, half) if last in ("gate_proj", "w1") else slice(half, None)] += b @ a
        else:
            state[f"{module}.weight"] += b @ a
    return state


def transposed(base):
    return AutoConfig.from_pretrained(base).model_type == "gpt_oss"


def check(trephine, home, name, config):
    base, tuned = home / f"{name}-base", home / f"{name}-tuned"
    torch.manual_seed(7)
    vision = hasattr(config, "vision_config")
    model = (AutoModelForImageTextToText if vision else AutoModelForCausalLM).from_config(config).to(torch.float32)
    model.save_pretrained(base)
    change(model, 1)
    model.save_pretrained(tuned)
    want = {k: v.clone() for k, v in model.state_dict().items()}
    layouts = {"qwen3_vl_moe": dict(transpose=True), "qwen3_moe": dict(fuse=True), "mixtral": dict(fuse=True)}.get(name)
    ok = True
    for stored in ["as saved"] + ([f"tuned {layouts}", f"base {layouts}"] if layouts else []):
        pair = {"base": base, "tuned": tuned}
        if (side := stored.split()[0]) in pair:
            pair[side] = home / f"{name}-{side}-restacked"
            shutil.copytree(base if side == "base" else tuned, pair[side])
            restack(pair[side], **layouts)
        full, low = home / f"{name}-{side}-full", home / f"{name}-{side}-low"
        extract(trephine, pair["base"], pair["tuned"], full, 32)
        extract(trephine, pair["base"], pair["tuned"], low, 2)
        to_tuned, where = distance(merged(base, full), want)
        to_book, _ = distance(merged(base, low), by_the_book(base, low))
        far, _ = distance(merged(base, low), want)
        good = to_tuned < 2e-5 and to_book < 2e-5 and far > 1e-3
        ok &= good
        print(f"{name}, {stored}: full rank to tuned {to_tuned:.1e} ({where}), rank 2 to W + BA {to_book:.1e}, to tuned {far:.1e}"
              f"{'' if good else '  WRONG'}")
    return ok


def main():
    trephine = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(temporary)
        home.mkdir(parents=True, exist_ok=True)
        results = [check(trephine, home, name, config) for name, config in configs()]
    sys.exit(0 if all(results) else 1)


main()
