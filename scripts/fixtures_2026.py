#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "mlx==0.32.4", "mlx-cpu==0.32.4", "optimum-quanto==0.2.7", "nvidia-modelopt==0.47.0", "torch==2.13.0", "safetensors==0.8.0",
#   "numpy==2.3.5",
# ]
# ///
"""Makes tests/fixtures/mlx, quanto and modelopt_more: random weights as each library stores them, and what it makes of them.

    python scripts/fixtures_2026.py tests/fixtures [mlx|quanto|modelopt ...]

One file a case, as in fixtures_compressed.py. MLX quantizes and dequantizes with `mlx.core` on a CPU; quanto with its own tensors;
modelopt packs four-bit integers with its exporter's `pack_int4_in_uint8`, and MX formats with its quantized tensors. modelopt has no
function that undoes its integer exports: their values are the product that its exporter divided by.
"""
import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
DTYPES = {"bf16": BF16, "f16": F16, "f32": F32}
generator = torch.Generator().manual_seed(26)


def save(folder, name, tensors, values, config):
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"w.{key}": value.contiguous() for key, value in tensors.items()}
    tensors |= {"expected_f32": values.float().contiguous(), "bridge_bf16": values.float().to(BF16).contiguous()}
    save_file(tensors, folder / f"{name}.safetensors", metadata={"quantization_config": json.dumps(config)})
    print(folder.name, name, list(values.shape))


def mlx(out):
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    kinds = {"bf16": mx.bfloat16, "f16": mx.float16, "f32": mx.float32}

    def torch_of(array):
        if array.dtype == mx.bfloat16:
            return torch.from_numpy(np.array(array.view(mx.uint16)).view(np.int16)).view(BF16)
        if array.dtype == mx.uint32:
            return torch.from_numpy(np.array(array)).view(torch.uint32)
        return torch.from_numpy(np.array(array))

    def case(mode, bits, group, rows, columns, dtype):
        weight = mx.array(torch.randn((rows, columns), generator=generator).numpy()).astype(kinds[dtype])
        words, scales, *biases = mx.quantize(weight, group_size=group, bits=bits, mode=mode)
        values = mx.dequantize(words, scales, *biases, group_size=group, bits=bits, mode=mode)
        tensors = {"weight": torch_of(words), "scales": torch_of(scales)} | {"biases": torch_of(b) for b in biases}
        config = {"group_size": group, "bits": bits} | ({} if mode == "affine" else {"mode": mode})
        if rows == 67:  # settings of its own
            config = {"group_size": 64, "bits": 8 if bits == 4 else 4, "w": {**config, "mode": mode}}
        save(out, f"{mode}_{bits}bits_{dtype}_{rows}x{columns}", tensors, torch_of(values), config)

    for bits, rows, columns in [(2, 33, 128), (3, 34, 96), (4, 67, 128), (5, 35, 64), (6, 130, 64), (8, 9, 192)]:
        for dtype in ("bf16", "f16") if bits in (3, 4) else ("bf16",):
            case("affine", bits, 32 if columns == 96 else 64, rows, columns, dtype)
    case("affine", 4, 32, 7, 96, "f32")
    case("mxfp4", 4, 32, 33, 96, "bf16")
    case("mxfp8", 8, 32, 34, 64, "bf16")
    case("nvfp4", 4, 16, 35, 80 // 16 * 32, "bf16")


def quanto(out):
    from optimum.quanto import AbsmaxOptimizer, qfloat8_e4m3fn, qfloat8_e5m2, qint8, quantize_weight

    for qtype, dtype, rows, columns in [(qint8, "bf16", 33, 50), (qint8, "f32", 130, 31), (qfloat8_e4m3fn, "bf16", 65, 40), (qfloat8_e5m2, "f16", 7, 64)]:
        weight = torch.randn((rows, columns), generator=generator).to(DTYPES[dtype])
        scale = AbsmaxOptimizer()(weight, qtype, 0)
        q = quantize_weight(weight, qtype, 0, scale)
        tensors = {"weight._data": q._data, "weight._scale": q._scale}
        save(out, f"{qtype.name}_{dtype}_{rows}x{columns}", tensors, q.dequantize(), {"quant_method": "quanto"})


def modelopt(out):
    from modelopt.torch.export.quant_utils import pack_int4_in_uint8
    from modelopt.torch.quantization.qtensor import MXFP4QTensor

    def config(algorithm, **more):
        return {"quant_method": "modelopt", "quant_algo": algorithm, **more}

    for algorithm, rows, columns, group, scaled in [("W4A16_AWQ", 34, 256, 128, False), ("W4A16_AWQ", 66, 64, 32, True)]:
        scale = torch.rand((rows, columns // group), generator=generator) * 0.02 + 0.001
        codes = torch.randint(-8, 8, (rows, columns), generator=generator).float()
        values = codes * scale.repeat_interleave(group, 1)
        packed = pack_int4_in_uint8(values, scale, group)
        tensors = {"weight": packed, "weight_scale": scale}
        if scaled:
            tensors["pre_quant_scale"] = torch.rand(columns, generator=generator).to(BF16) + 0.5
            values = values * tensors["pre_quant_scale"].float()
        raw = config(algorithm, group_size=group) if scaled else config("MIXED_PRECISION", quantized_layers={"w": {"quant_algo": algorithm, "group_size": group}})
        save(out, f"{algorithm.lower()}_{rows}x{columns}", tensors, values, raw)
    codes = torch.randint(-127, 128, (33, 48), generator=generator).to(torch.int8)
    scale = torch.rand(33, generator=generator)
    save(out, "w8a16_33x48", {"weight": codes, "weight_scale": scale}, codes.float() * scale[:, None], config("W8A16"))
    columns = torch.rand(48, generator=generator).to(BF16) + 0.5
    tensors = {"weight": codes, "weight_scale": scale, "pre_quant_scale": columns}
    save(out, "w8a8_sq_33x48", tensors, codes.float() * scale[:, None] * columns.float(), config("W8A8_SQ_PER_CHANNEL"))
    weight = torch.randn((35, 96), generator=generator).to(BF16)
    q, exponents = MXFP4QTensor.quantize(weight, 32)
    values = q.dequantize(BF16, scale=exponents, block_sizes={-1: 32})
    exponents = exponents.reshape(35, 3).to(torch.uint8)
    save(out, "mxfp4_35x96", {"weight": q._quantized_data.reshape(35, 48), "weight_scale": exponents}, values, config("mxfp4"))
    codes = torch.randn((34, 64), generator=generator).mul(40).to(torch.float8_e4m3fn)
    exponents = torch.randint(110, 130, (34, 2), generator=generator, dtype=torch.uint8)
    values = codes.float() * torch.exp2(exponents.float() - 127).repeat_interleave(32, 1)
    save(out, "mxfp8_34x64", {"weight": codes, "weight_scale": exponents}, values, config("MXFP8"))


def main():
    out = Path(sys.argv[1])
    for name, make in {"mlx": mlx, "quanto": quanto, "modelopt": modelopt}.items():
        if not sys.argv[2:] or name in sys.argv[2:]:
            make(out / ("modelopt_more" if name == "modelopt" else name))


main()
