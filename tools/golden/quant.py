#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Weight formats and KV pages, simulated in numpy from docs/formats/{weights,kv_pages}.md alone.

Writes tests/golden/quant.json: small inputs and the bytes that C++ must produce from them.
    python3 tools/golden/quant.py            # write
    python3 tools/golden/quant.py --check    # compare with what is checked in
"""
import json
import pathlib
import sys

import numpy as np

f32, f16 = np.float32, np.float16
OUT = pathlib.Path(__file__).parents[2] / "tests" / "golden" / "quant.json"


def bits16(x):
    return np.asarray(x, f16).view(np.uint16)


def fit_scale(spread, levels):
    """f16(spread / levels); next up where a subnormal result, rounded down, misses the top by half a step."""
    scale = f16(f32(spread) / f32(levels))
    if f32(spread) > f32(levels + 0.5) * f32(scale):
        scale = (bits16(scale) + np.uint16(1)).astype(np.uint16).view(f16)
    return scale


def nibbles(u):
    u = u.astype(np.uint8)
    return u[..., 0::2] | u[..., 1::2] << 4


def symmetric(row, limit):
    amax = np.abs(row).max()
    scale = fit_scale(amax, limit)
    if amax == 0:
        return scale, np.zeros(row.shape, np.int32)
    return scale, np.clip(np.rint(row / f32(scale)), -limit, limit).astype(np.int32)


def w4a8_group(w):
    codes, scales, group_scales, zeros = [], [], [], []
    for row in w:
        scale, q8 = symmetric(row, 119)
        scales.append(scale)
        for g in q8.reshape(-1, 128):
            lo, hi = min(g.min(), 0), max(g.max(), 0)
            s2 = max(int(np.rint((hi - lo) / 15)), 1)
            z = int(np.clip(np.rint(-lo / s2), 0, 15))
            codes.append(nibbles(np.clip(np.rint(g / s2) + z, 0, 15)))
            group_scales.append(s2)
            zeros.append(z)
    return dict(codes=np.concatenate(codes), scale=bits16(scales), group_scale=np.array(group_scales, np.uint8),
                zero=np.array(zeros, np.uint8))


def w4a8_channel(w):
    codes, scales, zeros = [], [], []
    for row in w:
        lo, hi = min(row.min(), f32(0)), max(row.max(), f32(0))
        scale = fit_scale(f32(hi - lo), 15)
        s = f32(scale) if scale else f32(1)
        z = int(np.clip(np.rint(f32(-lo) / s), 0, 15))
        codes.append(nibbles(np.clip(np.rint(row / s) + z, 0, 15)))
        scales.append(scale)
        zeros.append(z)
    return dict(codes=np.concatenate(codes), scale=bits16(scales), zero=np.array(zeros, np.uint8))


def w8a8(w):
    scales, codes = zip(*[symmetric(row, 127) for row in w])
    return dict(codes=np.concatenate(codes).astype(np.int8).view(np.uint8), scale=bits16(scales))


def token_page(x, levels):
    """One row of x [tokens, head_dim] at a time: codes, then scales, then minima."""
    codes, scales, minima = [], [], []
    for row in x:
        if not np.all(np.abs(row) <= f32(65504)):  # false for NaN
            codes.append(np.zeros(row.shape, np.uint8))
            scales.append(1)
            minima.append(0x7E00)
            continue
        low = f16(row.min() + f32(0))
        scale = fit_scale(row.max() - f32(low), levels)
        if scale == 0:
            scale = np.uint16(1).view(f16)
        t = (row - f32(low)) * (f32(1) / f32(scale))
        codes.append(np.rint(np.clip(t, f32(0), f32(levels))).astype(np.uint8))
        scales.append(int(bits16(scale)))
        minima.append(int(bits16(low)))
    codes = np.stack(codes)
    body = nibbles(codes) if levels == 15 else codes
    return b"".join([body.tobytes(), np.array(scales, "<u2").tobytes(), np.array(minima, "<u2").tobytes()])


def weights(random):
    w = (random.standard_normal((9, 256)) * 0.02).astype(f32)
    w[1] = 0
    w[2] *= f32(1e-6)                 # subnormal f16 scale
    w[3] *= f32(1e-12)                # below any f16 scale
    w[4, 37] = 3.5                    # one outlier
    w[5] = np.abs(w[5])               # one sign
    w[6] = f32(-0.75)                 # constant
    w[7, :128] = 0                    # a zero group
    return w


def rows(random, head_dim):
    x = random.standard_normal((16, head_dim)).astype(f16).astype(f32)
    x[1] = 0
    x[2] = f32(f16(3.14))             # constant
    x[3] = (100 + 0.2 * x[3]).astype(f16)
    x[4] = (-2000 + x[4]).astype(f16)  # fewer than 16 distinct values
    x[5] = (x[5] * f32(3e-6)).astype(f16)  # subnormal scale
    x[6, 5] = 60000
    x[7, 0], x[7, 1] = 65504, -65504
    x[8, 3] = np.nan
    x[9, 4] = np.inf
    x[10] = -np.abs(x[10])
    x[11] = np.where(x[11] > 0, f32(0), f32(-0.0))
    return x


def hexed(a):
    return a.hex() if isinstance(a, bytes) else np.ascontiguousarray(a).tobytes().hex()


def main():
    random = np.random.default_rng(20)
    w = weights(random)
    out = {"about": "tools/golden/quant.py; little-endian bytes in hex",
           "weights": {"n": w.shape[0], "k": w.shape[1], "f32": hexed(w), "formats": {}}, "pages": []}
    for name, make in [("w4a8-g128", w4a8_group), ("w4a8-chn", w4a8_channel), ("w8a8", w8a8)]:
        out["weights"]["formats"][name] = {part: hexed(a) for part, a in make(w).items()}
    for head_dim in (8, 40):
        x = rows(random, head_dim)
        page = {"tokens": x.shape[0], "head_dim": head_dim, "rows": hexed(x)}
        page["codecs"] = {"int8-token": hexed(token_page(x, 255)), "int4-token": hexed(token_page(x, 15))}
        out["pages"].append(page)
    text = json.dumps(out, indent=1) + "\n"
    if "--check" in sys.argv:
        sys.exit(0 if OUT.read_text() == text else f"{OUT} differs from what this script makes")
    OUT.write_text(text)


if __name__ == "__main__":
    main()
