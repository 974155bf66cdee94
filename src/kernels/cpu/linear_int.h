// Stub, to be replaced.
static void LinearInt(const LinearArgs&) { __builtin_trap(); }
static void QuantizeRows(const QuantizeRowsArgs&) { __builtin_trap(); }
static const char* LinearIntName(weight::Layout) { __builtin_trap(); }
