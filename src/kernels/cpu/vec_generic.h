// Stub: 16-lane vectors on generic, to be replaced.
