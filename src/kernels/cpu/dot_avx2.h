// Stub: integer dot products on avx2, to be replaced.
