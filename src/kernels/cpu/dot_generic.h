// Stub: integer dot products on generic, to be replaced.
