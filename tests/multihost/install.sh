#!/usr/bin/env bash
# What `make hosts` needs beside Python: says what is missing and installs it where apt-get and root are there.
set -euo pipefail
python=$1
cd "$(dirname "$0")"
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

[ "$(id -u)" = 0 ] || { echo "make hosts: needs root, for network namespaces, a bridge and sshd" >&2; exit 1; }
declare -A packages=([sshd]=openssh-server [ssh]=openssh-client [rsync]=rsync [pdsh]=pdsh [ip]=iproute2 [ps]=procps
                     [openssl]=openssl [unshare]=util-linux)
wanted=()
for command in "${!packages[@]}"; do
    command -v "$command" > /dev/null || wanted+=("${packages[$command]}")
done
if [ ${#wanted[@]} -gt 0 ]; then
    command -v apt-get > /dev/null || { echo "make hosts: install ${wanted[*]} first" >&2; exit 1; }
    echo "make hosts: installing ${wanted[*]} with apt-get (no service is started)"
    # Debian starts an ssh server with its package; this policy, for this one call, forbids it.
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
        chmod +x /usr/sbin/policy-rc.d
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${wanted[@]}" > /dev/null
fi
"$python" -c 'import sys; from hosts import missing; sys.exit(missing())'
