#!/usr/bin/env bash
# setup.sh [VENV=.venv]: create the virtual environment and install the project into it, editable, with everything.
# Uses uv when it is on PATH, else venv and pip. PYTHON=… picks the interpreter; package sources are set by the
# installers' own variables (PIP_FIND_LINKS counts for both). No compiler is needed.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}

fail() { echo "setup: $*" >&2; exit 1; }

# Runs it, rather than look it up: a version manager's shim may be on PATH and fail.
fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' >/dev/null 2>&1; }

find_python() {
  local candidate candidates=(python3 python3.12 python3.11 python)
  [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    if fits "$candidate"; then echo "$candidate"; return; fi
  done
  fail "need Python 3.11 or 3.12, found none as ${candidates[*]}; install one or set PYTHON=/path/to/python"
}

if [[ -e $venv ]]; then
  fits "$venv/bin/python" || fail "$venv has no working Python 3.11 or 3.12; remove it (rm -rf $venv) and try again"
  python=
else
  python=$(find_python)
fi

export DS_BUILD_OPS=0 # DeepSpeed comes as source; its C++ operators are built when first used, not here
if uv --version >/dev/null 2>&1; then
  # uv separates places by commas, pip by spaces.
  export UV_FIND_LINKS=${UV_FIND_LINKS-$(tr -s ' ' ',' <<<"${PIP_FIND_LINKS:-}")}
  [[ -z $python ]] || uv venv --quiet --python "$("$python" -c 'import sys; print(sys.executable)')" "$venv"
  uv pip install --python "$venv/bin/python" -c constraints.txt -e '.[dev]'
else
  [[ -z $python ]] || "$python" -m venv "$venv" || fail "'$python -m venv' failed; on Debian and Ubuntu install python3-venv"
  "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip --quiet
  "$venv/bin/python" -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
fi
