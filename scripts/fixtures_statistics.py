#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.3.5", "scipy==1.17.1", "torch==2.13.0", "safetensors==0.8.0"]
# ///
"""Makes tests/fixtures/statistics: small tensors, and what numpy and scipy say of their values.

    python scripts/fixtures_statistics.py

torch only stores them, as numpy has no bfloat16.
"""
import json
from pathlib import Path

import numpy as np
import scipy.stats
import torch
from safetensors.torch import save_file

OUT = Path(__file__).parent.parent / "tests/fixtures/statistics"
SHARES = [0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999]


def tensors():
    rng = np.random.default_rng(20)
    normal = rng.normal(0, 0.03, (96, 44))
    yield "normal_bf16", normal, torch.bfloat16
    yield "normal_f16", normal[:, :31], torch.float16
    heavy = rng.standard_t(3, (70, 33)) * 0.02
    heavy[rng.random(heavy.shape) < 0.2] = 0
    yield "heavy_f32", heavy, torch.float32
    yield "heavy_bf16", heavy, torch.bfloat16
    yield "far_f32", 1e3 + rng.normal(0, 0.1, (41, 57)), torch.float32
    yield "wide_f64", 10.0 ** rng.uniform(-12, 12, (20, 30)) * rng.choice([-1, 1], (20, 30)), torch.float64
    broken = rng.normal(0, 0.03, (24, 50))
    broken.flat[[3, 77, 500]] = np.nan
    broken.flat[[9, 1100]] = [np.inf, -np.inf]
    yield "broken_f32", broken, torch.float32
    yield "broken_bf16", broken, torch.bfloat16
    yield "broken_f16", broken, torch.float16
    yield "broken_f64", broken, torch.float64
    yield "constant_f32", np.full((8, 9), 0.1), torch.float32
    yield "zero_bf16", np.zeros((8, 9)), torch.bfloat16


def expected(stored):
    values = stored.double().numpy().ravel()
    finite = values[np.isfinite(values)]
    same = finite.min() == finite.max()
    return {
        "count": values.size,
        "nan": int(np.isnan(values).sum()),
        "infinite": int(np.isinf(values).sum()),
        "zeros": int((values == 0).sum()),
        "mean": finite.mean(),
        "std": finite.std(),
        "min": finite.min(),
        "max": finite.max(),
        "kurtosis": None if same else scipy.stats.kurtosis(finite, fisher=False),
        "magnitudes": len(np.unique(np.abs(finite[finite != 0]))),
        "quantiles": [np.quantile(np.abs(finite), share, method="inverted_cdf") for share in SHARES],
    }


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    made = {name: torch.from_numpy(values.copy()).to(dtype) for name, values, dtype in tensors()}
    save_file({f"{name}.weight": value for name, value in made.items()}, OUT / "model.safetensors")
    told = {name: expected(value) for name, value in made.items()}
    (OUT / "expected.json").write_text(json.dumps(told, indent=1) + "\n")


main()
