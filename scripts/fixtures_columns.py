#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "transformers==5.19.0", "safetensors==0.8.0", "numpy==2.3.5"]
# ///
"""Makes tests/fixtures/gptq and tests/fixtures/awq: weights in AutoGPTQ's and AutoAWQ's layouts, and what those libraries make of them.

    pip download --no-deps auto-gptq==0.7.1 autoawq==0.2.9    # into a folder REF, and unpack both there
    python scripts/fixtures_columns.py REF tests/fixtures

Both libraries are abandoned and do not install beside a recent torch, so their own modules are loaded by file: AutoGPTQ's
`qlinear_cuda.py`, whose torch branch multiplies the identity, and AutoAWQ's `packing_utils.py:dequantize_gemm`. As in
fixtures_fp8.py, a file has the stored tensors, `expected_f32` and `bridge_bf16`, and the config in its metadata.

GPTQ v2 stores each zero point as it is, v1 one less: a case of v2 is a case of v1 whose codes of zero points were raised by one
(GPTQModel `convert_gptq_v1_to_v2_format`); the values are AutoGPTQ's of v1.
"""
import importlib.util
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

# name, bits, in, out, group, act-order, v2, whether g_idx is stored
GPTQ = [
    ("b4_g128_256x160", 4, 256, 160, 128, False, False, True),
    ("b4_g32_act_96x64", 4, 96, 64, 32, True, False, True),
    ("b4_g64_v2_128x192", 4, 128, 192, 64, False, True, True),
    ("b4_g32_v2_act_160x32", 4, 160, 32, 32, True, True, True),
    ("b4_whole_64x320", 4, 64, 320, -1, False, False, True),
    ("b4_g64_ragged_96x32", 4, 96, 32, 64, False, False, False),
    ("b8_g32_act_64x96", 8, 64, 96, 32, True, False, True),
    ("b8_g128_v2_256x32", 8, 256, 32, 128, False, True, True),
    ("b2_g32_64x128", 2, 64, 128, 32, False, False, True),
    ("b3_g32_act_96x64", 3, 96, 64, 32, True, False, True),
    ("b3_g64_640x32", 3, 640, 32, 64, False, False, False),
]
# name, in, out, group
AWQ = [
    ("g128_256x136", 256, 136, 128),
    ("g32_96x200", 96, 200, 32),
    ("g64_64x8", 64, 8, 64),
    ("whole_48x72", 48, 72, -1),
    ("g16_400x24", 400, 24, 16),
]


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def words(shape, generator):
    return torch.randint(-(2**31), 2**31, shape, generator=generator, dtype=torch.int64).to(torch.int32)


def raised(packed, bits):
    """Each code of a packed tensor plus one; none of them is the highest."""
    step = sum(1 << shift for shift in range(0, 32, bits))
    return (packed.to(torch.int64) + step).to(torch.int32)


def save(out, name, tensors, values, config):
    tensors |= {"expected_f32": values.float().contiguous(), "bridge_bf16": values.to(torch.bfloat16).contiguous()}
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / f"{name}.safetensors", metadata={"quantization_config": json.dumps(config)})
    print(out.name, name, list(values.shape))


def gptq(out, linear, name, bits, inputs, outputs, group, act, v2, index, generator):
    layer = linear(bits, group, inputs, outputs, bias=False, kernel_switch_threshold=0)
    layer.qweight = words(layer.qweight.shape, generator)
    layer.qzeros = words(layer.qzeros.shape, generator)
    if v2:  # clear a bit of each code, so that one more is a code too
        layer.qzeros &= ~torch.tensor(sum(1 << shift for shift in range(0, 32, bits)), dtype=torch.int64).to(torch.int32)
    layer.scales = (torch.exp(torch.randn(layer.scales.shape, generator=generator)) * 0.01).half()
    if act:
        layer.g_idx = layer.g_idx[torch.randperm(inputs, generator=generator)].contiguous()
    values = layer(torch.eye(inputs, dtype=torch.float16)).t()
    qzeros = raised(layer.qzeros, bits) if v2 else layer.qzeros
    tensors = {"w.qweight": layer.qweight, "w.qzeros": qzeros, "w.scales": layer.scales}
    if index:
        tensors["w.g_idx"] = layer.g_idx
    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": act, "sym": False}
    if v2:
        config["checkpoint_format"] = "gptq_v2"
    save(out, name, tensors, values, config)


def awq(out, dequantize_gemm, name, inputs, outputs, group, generator):
    size = inputs if group == -1 else group
    qweight, qzeros = words((inputs, outputs // 8), generator), words((inputs // size, outputs // 8), generator)
    scales = (torch.exp(torch.randn((inputs // size, outputs), generator=generator)) * 0.01).half()
    values = dequantize_gemm(qweight, qzeros, scales, 4, size).t()
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}
    save(out, name, {"w.qweight": qweight, "w.qzeros": qzeros, "w.scales": scales}, values, config)


def main():
    reference, out = Path(sys.argv[1]), Path(sys.argv[2])
    linear = load(reference / "auto_gptq/nn_modules/qlinear/qlinear_cuda.py").QuantLinear
    generator = torch.Generator().manual_seed(4)
    for case in GPTQ:
        gptq(out / "gptq", linear, *case, generator)
    dequantize_gemm = load(reference / "autoawq-0.2.9/awq/utils/packing_utils.py").dequantize_gemm
    for case in AWQ:
        awq(out / "awq", dequantize_gemm, *case, generator)


main()
