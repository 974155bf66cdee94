// Stub, to be replaced.
static void RmsNorm(const NormArgs&) { __builtin_trap(); }
static void RopeTable(const RopeTableArgs&) { __builtin_trap(); }
static void Rope(const RopeArgs&) { __builtin_trap(); }
static void Glu(const GluArgs&) { __builtin_trap(); }
static void LogSumExp(const LogSumExpArgs&) { __builtin_trap(); }
