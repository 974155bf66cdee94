// Stub, to be replaced.
static void Embed(const EmbedArgs&) { __builtin_trap(); }
