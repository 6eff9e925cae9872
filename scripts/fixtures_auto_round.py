#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["auto-round==0.16.1", "torch==2.13.0", "safetensors==0.8.0"]
# ///
"""Makes tests/fixtures/auto_round: random codes in auto-round's layouts, and the weights of its own layers.

    python scripts/fixtures_auto_round.py tests/fixtures/auto_round

One file a case, as in fixtures_compressed.py: the stored tensors under `w.`, `expected_f32` (the weight that the layer multiplies by,
widened) and `bridge_bf16`, and the `quantization_config`. Integers come from the layers of auto_round_extension (a product with the
identity, in f16), the others from auto_round.experimental.qmodules.
"""
import json
import sys
from pathlib import Path

import torch
from auto_round.experimental.qmodules.mx import MXFP4QuantLinear, MXFP8QuantLinear, MXINT4QuantLinear
from auto_round.experimental.qmodules.nvfp4 import NVFP4QuantLinear
from auto_round.experimental.qmodules.nvfp4_e5m3 import NVFP4E5M3QuantLinear
from auto_round_extension.torch import qlinear_torch, qlinear_torch_zp
from safetensors.torch import save_file

I32 = torch.int32
generator = torch.Generator().manual_seed(17)


def words(*shape):
    return torch.randint(-(2**31), 2**31, shape, generator=generator).to(I32)


def save(out, name, tensors, values, config):
    tensors = {f"w.{key}": value.contiguous() for key, value in tensors.items()}
    values = values.detach().contiguous()
    tensors |= {"expected_f32": values.float(), "bridge_bf16": values.float().to(torch.bfloat16)}
    config = {"quant_method": "auto-round", "autoround_version": "0.16.1", **config}
    save_file(tensors, out / f"{name}.safetensors", metadata={"quantization_config": json.dumps(config)})
    print(name, list(values.shape), values.dtype, float(values.float().abs().max()))


def integers(out, packing, layer, bits, rows, columns, group, extra=None, declared=None):
    linear = layer.QuantLinear(bits, group, columns, rows, bias=False)
    groups = -(-columns // group)
    linear.qweight, linear.qzeros = words(columns * bits // 32, rows), words(groups, rows * bits // 32)
    linear.scales = (torch.rand((groups, rows), generator=generator) * 0.02 + 0.001).half()
    if bits == 8:  # the layer adds one in I16 and masks nothing; zero points stay below the top
        linear.qzeros &= 0x7F7F7F7F
    values = linear(torch.eye(columns, dtype=torch.float16)).t()
    tensors = {"qweight": linear.qweight, "qzeros": linear.qzeros, "scales": linear.scales}
    config = {"bits": declared or bits, "group_size": group, "sym": False, "data_type": "int", "packing_format": packing}
    config |= {"extra_config": extra} if extra else {}
    save(out, f"{packing.replace('auto_round:', '').replace('auto_round', 'plain')}_{bits}bits_{rows}x{columns}", tensors, values, config)


def floats(out, name, layer, tensors, rows, columns, config, attributes):
    built = layer.__new__(layer)
    torch.nn.Module.__init__(built)
    built.in_features, built.out_features, built.dtype = columns, rows, torch.float32
    built.pre_dequantized = False
    for key, value in attributes.items():
        setattr(built, key, value)
    for key, value in tensors.items():
        setattr(built, key, value)
    save(out, name, tensors, built.dequant_weight_online(), config)


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for bits in (2, 3, 4, 5, 6, 7, 8):
        integers(out, "auto_round:auto_gptq", qlinear_torch_zp, bits, 96 if bits == 4 else 64, 224 if bits == 7 else 160, 32)
    for bits in (3, 4, 6):
        integers(out, "auto_round:gptqmodel", qlinear_torch, bits, 32, 192, 64)
    integers(out, "auto_round", qlinear_torch, 4, 64, 64, 32)
    extra = {"w": {"bits": 8, "group_size": 64}, ".*down_proj.*": {"bits": 16, "data_type": "float"}}
    integers(out, "auto_round:auto_gptq", qlinear_torch_zp, 8, 32, 320, 64, extra, 4)
    codes = lambda rows, columns: torch.randint(0, 256, (rows, columns // 2), generator=generator, dtype=torch.uint8)
    exponents = lambda rows, columns: torch.randint(100, 140, (rows, columns // 32), generator=generator, dtype=torch.uint8)
    mx = {"bits": 4, "group_size": 32, "data_type": "mx_fp", "packing_format": "auto_round:llm_compressor"}
    group = {"group_size": 32}
    floats(out, "mxfp4_67x96", MXFP4QuantLinear, {"weight_packed": codes(67, 96), "weight_scale": exponents(67, 96)}, 67, 96, mx, group)
    eight = torch.randn((33, 64), generator=generator).mul(50).to(torch.float8_e4m3fn)
    floats(out, "mxfp8_33x64", MXFP8QuantLinear, {"weight": eight, "weight_scale": exponents(33, 64)}, 33, 64, mx | {"bits": 8}, group)
    integer = mx | {"data_type": "mx_int"}
    del integer["packing_format"]
    tensors = {"weight_packed": codes(35, 64), "weight_scale": exponents(35, 64)}
    floats(out, "mxint4_35x64", MXINT4QuantLinear, tensors, 35, 64, integer, group)
    tensors = {"weight_packed": codes(34, 48), "weight_scale": torch.randint(0, 255, (34, 3), generator=generator, dtype=torch.uint8)}
    five = {"bits": 4, "group_size": 16, "data_type": "nvfp4_v2", "packing_format": "auto_round:llm_compressor_nvfp4_e5m3"}
    floats(out, "nvfp4_e5m3_34x48", NVFP4E5M3QuantLinear, tensors, 34, 48, five, {"group_size": 16})
    scale = (torch.rand((66, 6), generator=generator) * 400).to(torch.float8_e4m3fn)
    tensors = {"weight_packed": codes(66, 96), "weight_scale": scale, "weight_global_scale": torch.tensor([2048.0])}
    nv = {"bits": 4, "group_size": 16, "data_type": "nv_fp", "packing_format": "auto_round:llm_compressor"}
    floats(out, "nvfp4_66x96", NVFP4QuantLinear, tensors, 66, 96, nv, {"group_size": 16})


main()
