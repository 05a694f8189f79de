#!/bin/bash
# Makes the certificate and the key of the tests' TLS server. Nobody verifies them: that they expire is of no interest.
set -euo pipefail
cd "$(dirname "$0")"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=test \
    -keyout key.pem -out certificate.pem
openssl x509 -in certificate.pem -outform DER -out certificate.der
openssl pkcs8 -topk8 -nocrypt -in key.pem -outform DER -out key.der
rm key.pem certificate.pem
