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
#    of them is in a file of the project. A host's own certificate names the addresses it has now; workers need the
#    authority's key for that only.
tls=$HOME/nap-runtime/scripts/ray-tls.sh
mkdir -p "$secrets"
if [ "${1:-}" = head ]; then
    [ -s "$secrets/auth_token" ] ||
        "$env/bin/python" -c 'import secrets; print(secrets.token_hex(32), end="")' > "$secrets/auth_token"
    [ -s "$secrets/ca.crt" ] || bash "$tls" ca "$secrets"
fi
bash "$tls" node "$secrets" "$secrets"
[ "${1:-}" = head ] || rm -f "$secrets/ca.key"

# 3. Shells: login or not, interactive or not.
cat > "$env/shell.sh" << END
export PATH=$env/bin:\$PATH
export RAY_AUTH_MODE=token
$(bash "$tls" env "$secrets")
END
for file in "$HOME/.profile" "$HOME/.bashrc"; do
    touch "$file"
    # At the top: what comes later is often left out where there is no terminal.
    grep -q nap-env/shell.sh "$file" || { echo ". $env/shell.sh"; cat "$file"; } > "$file.new"
    [ ! -s "$file.new" ] || mv "$file.new" "$file"
done
