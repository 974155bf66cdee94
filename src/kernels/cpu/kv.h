// Stub, to be replaced.
static void KvWrite(const KvWriteArgs&) { __builtin_trap(); }
static void KvSeal(const KvSealArgs&) { __builtin_trap(); }
