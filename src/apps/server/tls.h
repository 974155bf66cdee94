// SPDX-License-Identifier: Apache-2.0
// Floor 9. What the server shows to clients that speak TLS: a certificate and its key.
#pragma once
#include <memory>
#include <string>

#include "base/result.h"

namespace nibble::server {

struct TlsContext;  // http_stream.cc

// Both in PEM form, the certificate followed by those that vouch for it, the key without a password.
// `key_file`
// "": the key stands in the first file. Errors name the file.
Result<std::shared_ptr<TlsContext>> LoadTls(const std::string& certificate_file, const std::string& key_file);

}  // namespace nibble::server
