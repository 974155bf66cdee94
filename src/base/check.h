// Floor 0. CHECK is for our own mistakes, on in every build. What a caller can cause is a Status.
#pragma once
#include <cstdio>
#include <cstdlib>
#define NIBBLE_CHECK(cond, msg)                                                              \
  do {                                                                                       \
    if (!(cond)) {                                                                           \
      std::fprintf(stderr, "%s:%d: CHECK(%s) failed: %s\n", __FILE__, __LINE__, #cond, msg); \
      std::abort();                                                                          \
    }                                                                                        \
  } while (0)
