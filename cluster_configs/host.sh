#!/bin/sh
# What every host of a cluster gets: Python packages, certificates, the environment of its shells. `ray up` runs it
# on the head with the argument `head`, and then on the workers; running it again changes nothing that is in order.
set -eu
umask 077
env=$HOME/nap-env secrets=$HOME/.ray

# 1. Packages, with the versions that are tested together. Needs python3 of version 3.11 or 3.12 and an index of
#    packages; PIP_INDEX_URL and the like are heeded.
[ -x "$env/bin/python" ] || python3 -m venv "$env"
"$env/bin/pip" install --quiet --disable-pip-version-check \
    --constraint "$HOME/nap-runtime/constraints.txt" "$HOME/nap-runtime[cluster,serve,train]"

# 2. Secrets. The head makes a token and a certificate authority; `ray up` brings them to the workers over ssh. None
#    of them is in a file of the project. A host's own certificate names the addresses it has now.
mkdir -p "$secrets"
cd "$secrets"
if [ "${1:-}" = head ] && [ ! -s auth_token ]; then
    "$env/bin/python" -c 'import secrets; print(secrets.token_hex(32), end="")' > auth_token
fi
if [ "${1:-}" = head ] && [ ! -s ca.crt ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 \
        -subj "/CN=nap cluster" -keyout ca.key -out ca.crt 2> /dev/null
fi
names="DNS:localhost,DNS:$(hostname),IP:127.0.0.1"
for address in $(hostname -I); do names="$names,IP:$address"; done
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 825 -subj "/CN=$(hostname)" \
    -addext "subjectAltName=$names" -addext basicConstraints=critical,CA:FALSE \
    -CA ca.crt -CAkey ca.key -keyout host.key -out host.crt 2> /dev/null

# 3. Shells: login or not, interactive or not.
cat > "$env/shell.sh" << END
export PATH=$env/bin:\$PATH
export RAY_AUTH_MODE=token RAY_USE_TLS=1
export RAY_TLS_SERVER_CERT=$secrets/host.crt RAY_TLS_SERVER_KEY=$secrets/host.key RAY_TLS_CA_CERT=$secrets/ca.crt
END
for file in "$HOME/.profile" "$HOME/.bashrc"; do
    touch "$file"
    # At the top: what comes later is often left out where there is no terminal.
    grep -q nap-env/shell.sh "$file" || { echo ". $env/shell.sh"; cat "$file"; } > "$file.new"
    [ ! -s "$file.new" ] || mv "$file.new" "$file"
done
