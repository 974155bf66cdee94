// Stub, to be replaced.
static void LinearDense(const LinearArgs&) { __builtin_trap(); }
static const char* LinearDenseName(weight::Layout, MatmulArith) { __builtin_trap(); }
