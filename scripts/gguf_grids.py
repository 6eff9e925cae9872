#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["gguf==0.19.0", "numpy==2.3.5"]
# ///
"""Writes src/quant/format/gguf/grids.bin, the tables of GGUF's IQ types, from gguf-py's.

    python scripts/gguf_grids.py src/quant/format/gguf/grids.bin

One table after the other, each as places in its list of numbers: two bits each for IQ2_XXS, IQ2_XS, IQ2_S and IQ1_S, four bits for
IQ3_XXS and IQ3_S, the lowest first.
"""
import hashlib
import sys

import numpy as np
from gguf import quants

packed = b""
for kind, bits in [
    (quants.IQ2_XXS, 2), (quants.IQ2_XS, 2), (quants.IQ2_S, 2), (quants.IQ3_XXS, 4), (quants.IQ3_S, 4), (quants.IQ1_S, 2),
]:
    kind.init_grid()
    grid = kind.grid.reshape(kind.grid_shape)
    places = np.searchsorted(kind.grid_map, grid.reshape(-1)).astype(np.uint8).reshape(-1, 8 // bits)
    packed += (places << (np.arange(8 // bits, dtype=np.uint8) * bits)).sum(axis=1).astype(np.uint8).tobytes()
    print(kind.__name__, grid.shape, hashlib.sha256(grid.astype(np.int8).tobytes()).hexdigest()[:16])
open(sys.argv[1], "wb").write(packed)
print(len(packed), "bytes")
