// SPDX-License-Identifier: Apache-2.0
// Floor 8. What attention read from the KV cache, as a user understands it: for one new token.
#pragma once
#include "kernels/args.h"
#include "model/config.h"

namespace nibble {

// One decode row (a sequence's new token) on average, all layers and KV heads together. Prefill is not
// counted.
struct RowReads {
  int64_t rows = 0;            // that the averages are over; 0: all below is 0
  double tokens = 0;           // K and V rows, each layer and KV head counted
  double scalars = 0;          // SparQ's transfer model
  double bytes = 0;            // as stored: codes, metadata, raw rows, side records
  int64_t sas_rows = 0;        // rows of scores that SAS weighed, each layer and query head; 0: not used
  double sas_mass = 0;         // share of the weight that its threshold dropped, a row on average
  double sas_weights = 0;      // tokens dropped, a row on average
  int64_t tail_values = 0;     // values written to INT8 open pages, prefill included; 0: not used
  double tail_clamped = 0;     // share of them that was beyond the open page's scale
  double dense_fallbacks = 0;  // share of layers and KV heads that a selection gave up for dense attention
};

inline RowReads PerRow(const AttentionCounters& c, const ModelConfig& config) {
  RowReads reads;
  const int64_t heads = int64_t{config.layers} * config.kv_heads;
  const auto each = [](int64_t total, int64_t rows) { return rows > 0 ? double(total) / double(rows) : 0; };
  reads.rows = c.rows / heads;
  reads.tokens = each(c.tokens_read, reads.rows);
  reads.scalars = each(c.scalars_read, reads.rows);
  reads.bytes = each(c.bytes_read, reads.rows);
  reads.dense_fallbacks = each(c.dense_fallbacks, c.rows);
  reads.tail_values = c.tail_values;
  reads.tail_clamped = each(c.tail_clamped, c.tail_values);
  reads.sas_rows = c.sas_rows;
  reads.sas_mass = each(c.sas_dropped_mass, c.sas_rows) / 4294967296.0;
  reads.sas_weights = each(c.sas_dropped, c.sas_rows);
  return reads;
}

}  // namespace nibble
