#!/usr/bin/env bash
# Certificates for Ray's TLS (RAY_USE_TLS=1): one authority a cluster, one certificate a node, for the node's addresses.
#
#   ray-tls.sh ca DIR                       ca.crt and ca.key; keep ca.key off the nodes that do not sign
#   ray-tls.sh node CA_DIR DIR [NAME …]     tls.crt and tls.key for this host's addresses, and any others given
#   ray-tls.sh env DIR                      what to export before `ray start` and before every client
#
# Ray checks that a certificate holds the address that it connects to, so each node needs its own.
# Needs OpenSSL 3. NAP_TLS_DAYS: how long a node's certificate is valid (default: 365).
set -euo pipefail
umask 077

fail() { echo "ray-tls: $*" >&2; exit 1; }

make_ca() {
  local dir=$1
  [[ ! -e $dir/ca.key ]] || fail "$dir/ca.key exists; remove it to make another authority"
  mkdir -p "$dir"
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=ray-cluster-ca" \
    -addext basicConstraints=critical,CA:TRUE,pathlen:0 -addext keyUsage=critical,keyCertSign,cRLSign \
    -keyout "$dir/ca.key" -out "$dir/ca.crt" 2>/dev/null || fail "openssl failed; is it version 3?"
  chmod 644 "$dir/ca.crt"
}

# `IP:10.0.0.1,DNS:name,…` of this host and of the arguments.
alternatives() {
  local word
  { echo 127.0.0.1; echo localhost; hostname; hostname -I 2>/dev/null | tr ' ' '\n' || true; printf '%s\n' "$@"; } |
    sort -u | while read -r word; do
      [[ -n $word ]] || continue
      if [[ $word =~ ^[0-9.]+$ || $word == *:* ]]; then echo "IP:$word"; else echo "DNS:$word"; fi
    done | paste -sd,
}

make_node() {
  local ca=$1 dir=$2
  shift 2
  [[ -r $ca/ca.key && -r $ca/ca.crt ]] || fail "$ca holds no ca.crt and ca.key; make them with: $0 ca $ca"
  mkdir -p "$dir"
  openssl req -x509 -CA "$ca/ca.crt" -CAkey "$ca/ca.key" -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
    -days "${NAP_TLS_DAYS:-365}" -subj "/CN=ray-node" -addext "subjectAltName=$(alternatives "$@")" \
    -addext basicConstraints=critical,CA:FALSE -addext extendedKeyUsage=serverAuth,clientAuth \
    -keyout "$dir/tls.key" -out "$dir/tls.crt" 2>/dev/null || fail "openssl failed; is it version 3?"
  [[ $ca/ca.crt -ef $dir/ca.crt ]] || cp "$ca/ca.crt" "$dir/ca.crt"
  chmod 644 "$dir/tls.crt" "$dir/ca.crt"
}

print_env() {
  local dir
  dir=$(cd "$1" && pwd) || fail "$1: no such folder"
  echo "export RAY_USE_TLS=1 RAY_TLS_CA_CERT=$dir/ca.crt RAY_TLS_SERVER_CERT=$dir/tls.crt RAY_TLS_SERVER_KEY=$dir/tls.key"
}

case ${1:-} in
  ca) [[ $# == 2 ]] || fail "usage: $0 ca DIR"; make_ca "$2" ;;
  node) [[ $# -ge 3 ]] || fail "usage: $0 node CA_DIR DIR [NAME …]"; shift; make_node "$@" ;;
  env) [[ $# == 2 ]] || fail "usage: $0 env DIR"; print_env "$2" ;;
  *) fail "usage: $0 ca DIR | node CA_DIR DIR [NAME …] | env DIR" ;;
esac
