#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["compressed-tensors==0.17.0", "torch==2.13.0", "safetensors==0.8.0", "numpy==2.3.5"]
# ///
"""Makes tests/fixtures/compressed: weights that compressed-tensors packs, and what it dequantizes them to.

    python scripts/fixtures_compressed.py tests/fixtures/compressed [WORD]

WORD makes only the cases whose names contain it. Those of 2, 3, 5, 6 and 7 bits (`stream`) were made with compressed-tensors 0.20.0.

One file a case. Each holds the stored tensors under `w.`, as the library's own `compress` of the format writes them from random
weights, scales and zero points, and
    expected_f32   what its `decompress` gives (in the dtype of the scale), widened
    bridge_bf16    the same rounded to bf16
The file's metadata holds the case's `quantization_config`. `decompress` guesses a block's size from the shapes; ragged blocks are
therefore given to the library's `dequantize` with the scheme's own arguments.
"""
import json
import sys
from pathlib import Path

import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize
from safetensors.torch import save_file

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
FP8 = {"num_bits": 8, "type": "float"}
FP4 = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}


def ints(bits, strategy, group_size=None, symmetric=True, **more):
    return {"num_bits": bits, "type": "int", "strategy": strategy, "group_size": group_size, "symmetric": symmetric, **more}


# name, format, rows, columns, weights, dtype of the scale, targets
CASES = [
    ("fp8_tensor_f32_33x70", "float-quantized", 33, 70, {**FP8, "strategy": "tensor"}, F32, ["Linear"]),
    ("fp8_tensor_bf16_3x257", "naive-quantized", 3, 257, {**FP8, "strategy": "tensor"}, BF16, ["re:^w$"]),
    ("fp8_channel_f32_130x61", "float-quantized", 130, 61, {**FP8, "strategy": "channel"}, F32, ["Linear"]),
    ("fp8_channel_bf16_65x128", "float-quantized", 65, 128, {**FP8, "strategy": "channel"}, BF16, ["w"]),
    ("fp8_channel_f16_7x33", "float-quantized", 7, 33, {**FP8, "strategy": "channel"}, F16, ["Linear"]),
    ("fp8_block_bf16_192x320", "float-quantized", 192, 320, {**FP8, "strategy": "block", "block_structure": [128, 128]}, BF16, ["Linear"]),
    ("fp8_block_f32_130x140", "float-quantized", 130, 140, {**FP8, "strategy": "block", "block_structure": [128, 128]}, F32, ["Linear"]),
    ("int8_channel_bf16_129x50", "int-quantized", 129, 50, ints(8, "channel"), BF16, ["Linear"]),
    ("int8_channel_asym_f32_40x31", "int-quantized", 40, 31, ints(8, "channel", symmetric=False), F32, ["Linear"]),
    ("int8_tensor_asym_f16_9x20", "int-quantized", 9, 20, ints(8, "tensor", symmetric=False), F16, ["Linear"]),
    ("int8_group64_f32_33x128", "int-quantized", 33, 128, ints(8, "group", 64), F32, ["Linear"]),
    ("w4_group128_bf16_130x256", "pack-quantized", 130, 256, ints(4, "group", 128), BF16, ["Linear"]),
    ("w4_group32_asym_bf16_67x96", "pack-quantized", 67, 96, ints(4, "group", 32, False), BF16, ["Linear"]),
    ("w4_group32_asym_f16_gidx_35x128", "pack-quantized", 35, 128, ints(4, "group", 32, False, actorder="group"), F16, ["Linear"]),
    ("w4_group64_f32_gidx_128x192", "pack-quantized", 128, 192, ints(4, "group", 64, actorder="group"), F32, ["Linear"]),
    ("w4_group32_bf16_gidx_unset_4x64", "pack-quantized", 4, 64, ints(4, "group", 32, actorder="group"), BF16, ["Linear"]),
    ("w4_channel_asym_f32_19x45", "pack-quantized", 19, 45, ints(4, "channel", symmetric=False), F32, ["Linear"]),
    ("w4_channel_bf16_33x7", "pack-quantized", 33, 7, ints(4, "channel"), BF16, ["Linear"]),
    ("w8_channel_bf16_41x30", "pack-quantized", 41, 30, ints(8, "channel"), BF16, ["Linear"]),
    ("nvfp4_bf16_130x96", "nvfp4-pack-quantized", 130, 96, FP4, BF16, ["Linear"]),
    ("nvfp4_f32_3x32", "nvfp4-pack-quantized", 3, 32, FP4, F32, ["Linear"]),
    ("nvfp4_f32_67x144", "nvfp4-pack-quantized", 67, 144, FP4, F32, ["Linear"]),
    ("mxfp4_bf16_129x96", "mxfp4-pack-quantized", 129, 96, {**FP4, "strategy": "group", "group_size": 32}, BF16, ["Linear"]),
    ("mxfp4_bf16_34x64", "mxfp4-pack-quantized", 34, 64, {**FP4, "strategy": "group", "group_size": 32}, BF16, ["Linear"]),
    ("mxfp8_bf16_65x160", "mxfp8-quantized", 65, 160, {**FP8, "strategy": "group", "group_size": 32}, BF16, ["Linear"]),
    ("w8_group32_asym_f16_37x96", "pack-quantized", 37, 96, ints(8, "group", 32, False), F16, ["Linear"]),
    *((f"stream_w{bits}_bf16_35x96", "pack-quantized", 35, 96, ints(bits, "group", 32), BF16, ["Linear"]) for bits in (2, 3, 5, 6, 7)),
    *((f"stream_w{bits}_asym_f32_67x64", "pack-quantized", 67, 64, ints(bits, "group", 32, False), F32, ["Linear"]) for bits in (2, 3, 5, 6, 7)),
    ("stream_w3_channel_f16_9x52", "pack-quantized", 9, 52, ints(3, "channel", symmetric=False), F16, ["Linear"]),
    ("stream_w6_channel_bf16_33x72", "pack-quantized", 33, 72, ints(6, "channel"), BF16, ["Linear"]),
    ("stream_int4_w4a8_bf16_34x64", "int-quantized", 34, 64, ints(4, "group", 32), BF16, ["Linear"]),
]


def cell(weights, rows, columns):
    return {
        "tensor": (rows, columns),
        "channel": (1, columns),
        "tensor_group": (1, weights.get("group_size")),
        "group": (1, weights.get("group_size")),
        "block": weights.get("block_structure"),
    }[weights["strategy"]]


def make(out, name, form, rows, columns, raw, dtype, targets, seed):
    generator = torch.Generator().manual_seed(seed)
    args = QuantizationArgs(**raw)
    scheme = QuantizationScheme(targets=targets, weights=args, format=form)
    height, width = cell(raw, rows, columns)
    grid = (1,) if raw["strategy"] == "tensor" else (-(-rows // height), -(-columns // width))
    state = {"weight": torch.randn(rows, columns, generator=generator)}
    steps = {4: 6, 8: 448}[raw["num_bits"]] if raw["type"] == "float" else 2 ** (raw["num_bits"] - 1)
    state["weight_scale"] = (torch.exp(torch.randn(grid, generator=generator) * 0.3) * 2 / steps).to(dtype)
    if not args.symmetric:
        top = 2 ** (raw["num_bits"] - 1)
        state["weight_zero_point"] = torch.randint(-top, top, grid, generator=generator).to(torch.int8)
    if raw.get("actorder"):
        groups = torch.arange(columns, dtype=torch.int32) // raw["group_size"]
        state["weight_g_idx"] = groups[torch.randperm(columns, generator=generator)]
        if "unset" in name:
            state["weight_g_idx"].fill_(-1)
    if form.startswith("nvfp4"):  # the scales of groups fill FP8 to its top
        state["weight_global_scale"] = torch.tensor([448 / state["weight_scale"].float().max()])
        state["weight_scale"] = (state["weight_scale"].float() * state["weight_global_scale"]).to(dtype)
    compressor = BaseCompressor.get_value_from_registry(form)
    wide = {key: value.float() if key == "weight_scale" else value for key, value in state.items()}
    packed = compressor.compress(wide, scheme)
    if not form.startswith(("nv", "mx")):  # those have scales of their own dtype
        packed["weight_scale"] = state["weight_scale"]
    source = f"compressed-tensors {compressor.__name__}.decompress"
    if raw["strategy"] == "block" and (rows % height or columns % width):
        values = dequantize(packed["weight"], packed["weight_scale"], args=args)
        source = "compressed-tensors dequantize"
    else:
        values = compressor.decompress(packed, scheme)["weight"]
    values = values.contiguous()
    assert values.dtype == (BF16 if form.startswith(("nv", "mx")) else dtype) and values.shape == (rows, columns), name
    config = {"quant_method": "compressed-tensors", "format": form, "ignore": ["lm_head"],
              "config_groups": {"group_0": {"targets": targets, "weights": raw, "input_activations": None}}}
    tensors = {f"w.{key}": value.contiguous() for key, value in packed.items()}
    tensors |= {"expected_f32": values.float(), "bridge_bf16": values.to(BF16)}
    save_file(tensors, out / f"{name}.safetensors",
              metadata={"quantization_config": json.dumps(config), "reference": source})
    print(f"{name}: {source}; {', '.join(f'{k} {v.dtype} {list(v.shape)}' for k, v in packed.items())}")


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for seed, case in enumerate(CASES):
        if sys.argv[2:] and sys.argv[2] not in case[0]:
            continue
        make(out, *case, seed)


main()
