// SPDX-License-Identifier: Apache-2.0
// Floor 2. The one list of KV codecs. A new codec is one file, one number in codec.h and one line here.
#pragma once
#include "base/typelist.h"
#include "quant/kv/flashq.h"
#include "quant/kv/float.h"
#include "quant/kv/fp8.h"
#include "quant/kv/gear.h"
#include "quant/kv/int4_token.h"
#include "quant/kv/int8_token.h"
#include "quant/kv/kivi.h"
#include "quant/kv/mxfp4.h"
#include "quant/kv/nvfp4.h"
#include "quant/kv/qaq.h"
#include "quant/kv/turboquant.h"

namespace nibble::kv {
using Codecs =
    TypeList<F32, F16, BF16, Int8Token, Int4Token, FlashQ4, FlashQ2, Int4Channel, Int2Channel, Int4Group,
             Int2Group, FlashQ4Search, FlashQ2Search, FlashQ2Literal, FlashQ2Outlier, TurboQuant4,
             TurboQuant3, TurboQuant2, Fp8, Gear4Channel, Gear4Group, Gear2Channel, Gear2Group, GearL4Channel,
             GearL4Group, GearL2Channel, GearL2Group, FlashQ3, Qaq, FlashQMixed, Mxfp4, Nvfp4>;
}  // namespace nibble::kv
