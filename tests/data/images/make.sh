#!/usr/bin/env bash
# Makes the signatures and keys beside it anew, with gpg, skopeo and openssl. The private keys are thrown away.
# What a file is: NAME.signature is one signature as it is stored with an image, NAME.gpg and NAME.pem are public keys.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")"
GNUPGHOME=$(mktemp -d)
export GNUPGHOME
trap 'gpgconf --kill all; rm -rf "$GNUPGHOME"' EXIT
rm -f -- *.signature *.gpg *.pem
NAME=registry.local:5000/k8s/pause:3.9
PAST=20200101T000000

gpg() { command gpg --batch --quiet --no-tty --yes --pinentry-mode loopback --passphrase '' "$@"; }
key() { gpg --quick-generate-key "$1@registry.local" "${@:2}"; }
edit() { command gpg --quiet --no-greeting --no-tty --pinentry-mode loopback --passphrase "" --command-fd 0 --edit-key "=$1@registry.local" > /dev/null; }
# The = names the whole user id.
export_key() { gpg --export "=$1@registry.local" > "$1.gpg"; }

printf '%s' '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","size":2,"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"},"layers":[]}' > manifest.json
DIGEST=sha256:$(sha256sum < manifest.json | cut -d' ' -f1)
DIGEST512=sha512:$(sha512sum < manifest.json | cut -d' ' -f1)
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":%d,"digest":"%s","platform":{"os":"linux","architecture":"amd64"}}]}' \
    "$(stat -c%s manifest.json)" "$DIGEST" > index.json

# Simple signing. payload NAME DIGEST [MORE MEMBERS OF critical] [optional]
payload() {
    printf '{"critical":{"type":"atomic container signature","image":{"docker-manifest-digest":"%s"},"identity":{"docker-reference":"%s"}%s},"optional":%s}' \
        "$2" "$1" "${3-}" "${4-{\}}"
}
sign() { gpg "${@:2}" --sign > "$1.signature"; }

key maker rsa2048 sign never
key other ed25519 sign never
key subkey ed25519 cert never
fingerprint() { gpg --list-keys --with-colons "=$1@registry.local" | awk -F: '$1 == "fpr" { print $10; exit }'; }
gpg --quick-add-key "$(fingerprint subkey)" ed25519 sign never
key subkey-revoked ed25519 cert never
gpg --quick-add-key "$(fingerprint subkey-revoked)" ed25519 sign never
key revoked ed25519 sign never
key no-more-signing ed25519 cert,sign never
gpg --faked-system-time $PAST --quick-generate-key expired@registry.local ed25519 sign 1y
gpg --faked-system-time $PAST --quick-generate-key old@registry.local ed25519 sign never

skopeo standalone-sign manifest.json "$NAME" "$(fingerprint maker)" --output good.signature
skopeo standalone-sign manifest.json "$NAME" "$(fingerprint other)" --output other-key.signature
skopeo standalone-sign manifest.json "$NAME" "$(fingerprint subkey)" --output subkey.signature
skopeo standalone-sign manifest.json "$NAME" "$(fingerprint subkey-revoked)" --output subkey-revoked.signature
skopeo standalone-sign manifest.json "$NAME" "$(fingerprint revoked)" --output revoked.signature
skopeo standalone-sign manifest.json "$NAME" "$(fingerprint no-more-signing)" --output no-more-signing.signature
skopeo standalone-sign manifest.json registry.local:5000/k8s/other:3.9 "$(fingerprint maker)" --output other-identity.signature
skopeo standalone-sign manifest.json registry.local:5000/k8s/pause:3.8 "$(fingerprint maker)" --output other-tag.signature
skopeo standalone-sign index.json "$NAME" "$(fingerprint maker)" --output other-digest.signature
payload "$NAME" "$DIGEST" | sign expired -u =expired@registry.local --faked-system-time 20200601T000000
# By a key that never expires.
payload "$NAME" "$DIGEST" | sign expired-signature -u =old@registry.local --faked-system-time 20200601T000000 --default-sig-expire 1d
payload "$NAME" "$DIGEST" | sign plain -u =maker@registry.local --compress-algo none
payload "$NAME" "$DIGEST" | sign zlib -u =maker@registry.local --compress-algo zlib
payload "$NAME" "$DIGEST" | sign text -u =maker@registry.local --textmode
payload "$NAME" "$DIGEST" | sign sha1 -u =maker@registry.local --digest-algo sha1
payload "$NAME" "$DIGEST" | sign md5 -u =maker@registry.local --digest-algo md5 --allow-weak-digest-algos
payload "$NAME" "$DIGEST512" | sign sha512 -u =maker@registry.local
payload "$NAME" "$DIGEST" ',"more":true' | sign extra-member -u =maker@registry.local
payload "$NAME" "$DIGEST" '' null | sign optional-null -u =maker@registry.local
payload "$NAME" "$DIGEST" '' '{"creator":"me","timestamp":1700000000,"x":{"y":[]}}' | sign optional-more -u =maker@registry.local
payload "$NAME" "$DIGEST" '' '{"timestamp":1.5}' | sign optional-fraction -u =maker@registry.local
payload "$NAME" "$DIGEST" | sign two-in-one -u =maker@registry.local -u =other@registry.local
payload "$NAME" "$DIGEST" | gpg -u =maker@registry.local --clear-sign > clear.signature
payload "$NAME" "$DIGEST" | gpg -u =maker@registry.local --detach-sign > detached.signature
payload "$NAME" "$DIGEST" | gpg --store > unsigned.signature
printf 'no JSON' | sign no-json -u =maker@registry.local
sed 's/atomic container/atomic_container/' plain.signature > tampered.signature

# What became of the keys afterwards.
edit subkey-revoked <<< $'key 1\nrevkey\ny\n0\n\ny\nsave\n'
sed 's/^:---/---/' "$GNUPGHOME/openpgp-revocs.d/$(fingerprint revoked).rev" | gpg --import
edit no-more-signing <<< $'change-usage\nS\nQ\nsave\n'
for name in maker other subkey subkey-revoked revoked no-more-signing expired old; do export_key $name; done
gpg --armor --export =maker@registry.local > maker.asc

# sigstore. store NAME PAYLOAD SIGNATURE-IN-BASE64 [MORE ANNOTATIONS]
store() {
    printf '\0sigstore-json\n{"mimeType":"application/vnd.dev.cosign.simplesigning.v1+json","payload":"%s","annotations":{"dev.cosignproject.cosign/signature":"%s"%s}}' \
        "$(base64 -w0 <<< "$2" | tr -d '\n')" "$3" "${4-}" > "$1.signature"
}
cosign_payload() { printf '{"critical":{"identity":{"docker-reference":"%s"},"image":{"docker-manifest-digest":"%s"},"type":"cosign container image signature"%s},"optional":%s}' "$1" "$2" "${3-}" "${4-null}"; }
# With the line break that <<< appends to the payload in the store.
cosign() { # NAME KEY PAYLOAD
    printf '%s\n' "$3" > "$GNUPGHOME/payload"
    if [ "$2" = ed25519 ]; then
        openssl pkeyutl -sign -rawin -inkey "$GNUPGHOME/$2.key" -in "$GNUPGHOME/payload" -out "$GNUPGHOME/signature"
    else
        openssl dgst -sha256 -sign "$GNUPGHOME/$2.key" -out "$GNUPGHOME/signature" "$GNUPGHOME/payload"
    fi
    store "$1" "$3" "$(base64 -w0 "$GNUPGHOME/signature")" "${4-}"
}
openssl ecparam -name prime256v1 -genkey -noout -out "$GNUPGHOME/p256.key"
openssl ecparam -name prime256v1 -genkey -noout -out "$GNUPGHOME/p256-other.key"
openssl ecparam -name secp384r1 -genkey -noout -out "$GNUPGHOME/p384.key"
openssl ecparam -name secp521r1 -genkey -noout -out "$GNUPGHOME/p521.key"
openssl genpkey -quiet -algorithm ed25519 -out "$GNUPGHOME/ed25519.key" 2> /dev/null || openssl genpkey -algorithm ed25519 -out "$GNUPGHOME/ed25519.key"
openssl genrsa -out "$GNUPGHOME/rsa.key" 2048 2> /dev/null
for name in p256 p256-other p384 p521 ed25519 rsa; do openssl pkey -in "$GNUPGHOME/$name.key" -pubout -out $name.pem; done
REPOSITORY=${NAME%:*}
for name in p256 p384 p521 ed25519 rsa; do cosign sigstore-$name $name "$(cosign_payload "$REPOSITORY" "$DIGEST")"; done
cosign sigstore-tag p256 "$(cosign_payload "$NAME" "$DIGEST" '' '{"creator":"me","timestamp":1700000000}')"
cosign sigstore-other-key p256-other "$(cosign_payload "$REPOSITORY" "$DIGEST")"
cosign sigstore-other-identity p256 "$(cosign_payload registry.local:5000/k8s/other "$DIGEST")"
cosign sigstore-other-digest p256 "$(cosign_payload "$REPOSITORY" "sha256:$(sha256sum < index.json | cut -d' ' -f1)")"
cosign sigstore-extra-member p256 "$(cosign_payload "$REPOSITORY" "$DIGEST" ',"more":true')"
sed "s/\"payload\":\"[^\"]*\"/\"payload\":\"$(cosign_payload "$REPOSITORY" "$DIGEST" '' '{}' | base64 -w0)\"/" sigstore-p256.signature > sigstore-tampered.signature
sed 's,simplesigning.v1,attestation.v1,' sigstore-p256.signature > sigstore-other-type.signature
