// Stub: 16-lane vectors on avx512, to be replaced.
