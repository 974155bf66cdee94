// Stub, to be replaced.
static void Attention(const AttentionArgs&) { __builtin_trap(); }
static const char* AttentionName(kv::CodecId, kv::CodecId) { __builtin_trap(); }
