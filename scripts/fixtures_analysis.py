#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["compressed-tensors==0.17.0", "torch==2.13.0", "safetensors==0.8.0", "numpy==2.3.5", "scipy==1.17.1", "optht==0.2.0"]
# ///
"""Makes tests/fixtures/analysis/expected.json: what scipy and numpy find in the modules of layer 1 of the pair in tests/data.

    python scripts/fixtures_analysis.py tests/data tests/fixtures/analysis/expected.json

The keys are those of analysis.json, for a rank of 16. All is in f64 and by dense decompositions. The tuned checkpoint is quantized by
compressed-tensors, in f32, in blocks of 128 x 128.
"""
import json
import sys
from pathlib import Path

import numpy as np
import scipy.linalg
import scipy.stats
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import quantize
from compressed_tensors.quantization.utils import calculate_qparams
from optht.optht import _optimal_SVHT_coef_sigma_known
from safetensors.torch import load_file

RANK, LAYER, BLOCK = 16, "model.layers.1.", (128, 128)
ARGS = QuantizationArgs(num_bits=8, type="float", symmetric=True, strategy="block", block_structure=list(BLOCK))


def dequantize(codes, scale):
    rows, columns = codes.shape
    grid = scale.repeat_interleave(BLOCK[0], 0).repeat_interleave(BLOCK[1], 1)[:rows, :columns]
    return codes.float() * grid.float()


def round_to_nearest(w):
    bands = [[(b.min(), b.max()) for b in band.split(BLOCK[1], 1)] for band in w.split(BLOCK[0], 0)]
    low, high = ([[pair[i] for pair in band] for band in bands] for i in range(2))
    scale, _ = calculate_qparams(torch.tensor(low), torch.tensor(high), ARGS)
    return dequantize(quantize(w, scale, None, ARGS, dtype=torch.float8_e4m3fn), scale)


def cosine(a, b):
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    error = np.sqrt(np.sum(a * a * b * b)) / norms
    value = np.vdot(a, b) / norms
    return {"value": value, "standard_error": error, "z": value / error, "p_value": 2 * scipy.stats.norm.sf(abs(value / error))}


def gap(s, k):
    return 1 - s[k] / s[k - 1] if k < len(s) else None


def share(x, basis):
    """Of x's energy in the span of the columns of basis (a space of columns of x)."""
    return np.linalg.norm(basis.T @ x) ** 2 / np.linalg.norm(x) ** 2


def angles(k, change, noise, d, n):
    """Of the first k columns of change and noise; d and n have columns in that space."""
    cosines = np.cos(scipy.linalg.subspace_angles(change[:, :k], noise[:, :k]))[::-1]
    return {"dimension": change.shape[0], "largest_cosines": list(cosines[:8]), "mean_squared_cosine": np.mean(cosines**2),
            "expected": k / change.shape[0], "change_in_noise": share(d, noise[:, :k]), "noise_in_change": share(n, change[:, :k])}


def module(name, b, q, t):
    p = round_to_nearest(t.float())
    b, q, t, p = (x.double().numpy() for x in (b, q, t, p))
    d, n, nt, c = t - b, q - b, p - t, t - q
    (ud, sd, vd), (un, sn, vn), (uc, sc, vc) = (scipy.linalg.svd(x, full_matrices=False) for x in (d, n, c))
    norm, energy = np.linalg.norm, lambda s, k: np.sum(s[:k] ** 2) / np.sum(s**2)
    subspaces = [{"k": k, "left": angles(k, ud, un, d, n), "right": angles(k, vd.T, vn.T, d.T, n.T),
                  "change_gap": gap(sd, k), "noise_gap": gap(sn, k),
                  "change_in_change": energy(sd, k), "noise_in_noise": energy(sn, k)} for k in sorted({min(k, len(sd)) for k in (8, RANK, 64)})]
    u, v = uc[:, :RANK], vc[:RANK].T
    change, noise = norm(u.T @ d) ** 2, norm(u.T @ n) ** 2
    along = [np.abs(np.diag(u.T @ x @ v)) for x in (n, d)]
    low_rank = lambda u, s, v: (u[:, :RANK] * s[:RANK]) @ v[:RANK]
    sigma = norm(n) / np.sqrt(n.size)
    beta = min(n.shape) / max(n.shape)
    # optht itself multiplies by the root of the shorter side; the paper (and the authors' code) by that of the longer one.
    threshold = _optimal_SVHT_coef_sigma_known(beta) * np.sqrt(max(n.shape)) * sigma
    edge = sigma * (np.sqrt(n.shape[0]) + np.sqrt(n.shape[1]))
    kind = name.rsplit(".", 1)[1]
    return (d, n, nt, c, b), {
        "name": name, "kind": kind, "layer": 1, "shape": list(b.shape), "quantized": True,
        "norms": norms(b, d, n, nt, c), "unchanged": np.mean(d == 0),
        "change_and_noise": cosine(d, n), "noise_and_noise": cosine(n, nt),
        "magnitude_correlation": scipy.stats.pearsonr(np.abs(n).ravel(), np.abs(nt).ravel()).statistic,
        "subspaces": subspaces,
        "method_b": {"k": RANK, "change_left": share(d, u), "change_right": share(d.T, v), "change_by_method_a": energy(sd, RANK),
                     "noise_left": share(n, u), "noise_right": share(n.T, v), "spent_on_noise": noise / (noise + change),
                     "noise_directions": int(np.sum(along[0] > along[1]))},
        "remaining": {"method_a": norm(c - low_rank(ud, sd, vd)) / norm(c), "method_b": norm(c - low_rank(uc, sc, vc)) / norm(c),
                      "noise": norm(n) / norm(c)},
        "spectrum": {"sigma": sigma, "edge": edge, "threshold": threshold,
                     "noise_largest": sn[0], "above_edge": int(np.sum(sc > edge)), "above_noise_largest": int(np.sum(sc > sn[0])),
                     "suggested_rank": int(np.sum(sc > threshold)), "suggested_is_at_least": False,
                     "leading": list(sc[:16]), "change_leading": list(sd[:16]), "noise_leading": list(sn[:16])},
    }


def norms(b, d, n, nt, c):
    norm = np.linalg.norm
    return {"base": norm(b), "change": norm(d), "base_noise": norm(n), "tuned_noise": norm(nt), "corrective": norm(c),
            "signal_to_noise": norm(d) / norm(n)}


def main():
    data, out = map(Path, sys.argv[1:])
    base, quantized, tuned = (load_file(data / name / "model.safetensors") for name in ("base", "base-fp8", "tuned"))
    names = sorted(k.removesuffix(".weight") for k in base if k.startswith(LAYER) and k.endswith("_proj.weight"))
    arrays, modules = zip(*(module(n, base[n + ".weight"], dequantize(quantized[n + ".weight"], quantized[n + ".weight_scale_inv"]),
                                   tuned[n + ".weight"]) for n in names))
    for key in ("change_and_noise", "noise_and_noise"):
        adjusted = scipy.stats.false_discovery_control([m[key]["p_value"] for m in modules])
        for one, p in zip(modules, adjusted):
            one[key]["significant"] = bool(p <= 0.05)
    d, n, nt, c, b = (np.concatenate([a[i].ravel() for a in arrays]) for i in range(5))
    total = {"modules": len(modules), "elements": int(d.size), "norms": norms(b, d, n, nt, c),
             "change_and_noise": cosine(d, n), "noise_and_noise": cosine(n, nt)}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"modules": modules, "total": total}, indent=0, default=float) + "\n")
    print(len(modules), "modules", out.stat().st_size, "bytes;", modules[0]["noise_and_noise"])


main()
