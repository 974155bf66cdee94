#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""peers_prefill.py FILE.json: prefill attention of PyTorch (cuDNN and flash, bf16) on the shapes of prefill_case.h."""
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import timing

HEADS, TOKENS = 32, 16384
BACKENDS = (("cuDNN", SDPBackend.CUDNN_ATTENTION), ("flash", SDPBackend.FLASH_ATTENTION))


def main():
    rows = []
    for dim in (128, 64):
        for causal in (False, True):
            for length in (1024, 2048, 4096, 8192, 16384):
                batch = TOKENS // length
                q, k, v = (torch.randn(batch, HEADS, length, dim, device="cuda", dtype=torch.bfloat16) for _ in range(3))
                shape = f"{batch}x{length} 32/32 heads d{dim} {'causal' if causal else 'full'}"
                operations = 4.0 * TOKENS * length * HEADS * dim / (2 if causal else 1)
                for name, backend in BACKENDS:
                    with sdpa_kernel(backend):
                        t = timing.seconds(lambda _: scaled_dot_product_attention(q, k, v, is_causal=causal), 3)
                    print(f"{name:28} {shape:34} {t * 1e6:9.2f} us  {operations / t * 1e-12:6.0f} TOP/s", flush=True)
                    rows.append({"op": name, "shape": shape, "seconds": t, "operations": operations})
    timing.write(sys.argv[1], rows)


main()
