// Stub: 16-lane vectors on avx2, to be replaced.
