// Stub: integer dot products on avx512, to be replaced.
