#!/usr/bin/env bash
# Repeat the steps of the Binder image in an empty environment, then run the notebook as Binder would: on one core,
# with 2 GB of memory, without a network.
#
#   binder/check.sh [--wheels DIR] [--python PYTHON]
#
# --wheels DIR   keep the portable llama-cpp-python wheel there, and use it when it is there already
#                (the build takes ten minutes or more)
set -euo pipefail

usage() { sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit "${1:-0}"; }
wheels="" python="python3"
while (($#)); do
    case "$1" in
        --wheels) wheels="$(mkdir -p "$2" && cd "$2" && pwd)"; shift 2 ;;
        --python) python="$2"; shift 2 ;;
        -h | --help) usage ;;
        *) usage 2 >&2 ;;
    esac
done

repository="$(cd "$(dirname "$0")/.." && pwd)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
step() { printf '\n== %s\n' "$*"; }

# Nothing of the user's: not pip's cache either, where a portable wheel would take the place of the fast one.
export HOME="$work/home" PIP_CACHE_DIR="$work/pip-cache" PIP_DISABLE_PIP_VERSION_CHECK=1
export XDG_CACHE_HOME="$HOME/.cache" XDG_CONFIG_HOME="$HOME/.config" XDG_DATA_HOME="$HOME/.local/share"
export JUPYTER_CONFIG_DIR="$HOME/jupyter" JUPYTER_DATA_DIR="$HOME/jupyter-data" JUPYTER_RUNTIME_DIR="$work/runtime"
export IPYTHONDIR="$HOME/ipython" HF_HOME="$HOME/hf"
unset CMAKE_ARGS VIRTUAL_ENV PYTHONPATH PYTHONHOME
mkdir -p "$HOME"
wheels="${wheels:-$work/wheels}"

step "a copy of the repository"
mkdir "$work/repository"
git -C "$repository" ls-files -co --exclude-standard -z \
    | (cd "$repository" && while IFS= read -r -d '' name; do if [[ -f $name ]]; then printf '%s\0' "$name"; fi; done \
        | tar --null -T - -cf -) \
    | tar -xf - -C "$work/repository"
cd "$work/repository"
"$python" -m venv "$work/environment"
export PATH="$work/environment/bin:$PATH"
python --version

step "binder/requirements.txt"
if ! compgen -G "$wheels/llama_cpp_python-*.whl" >/dev/null; then
    grep '^llama-cpp-python' binder/requirements.txt >"$work/native.txt"
    python -m pip wheel -v --no-deps -w "$wheels" -r "$work/native.txt" >"$work/build.log" 2>&1 \
        || { tail -n 50 "$work/build.log"; exit 1; }
    # ggml says which instructions it compiles for
    grep 'Adding CPU backend variant' "$work/build.log"
    if grep -q 'Adding CPU backend variant.*native' "$work/build.log"; then echo "not portable"; exit 1; fi
fi
ls "$wheels"
# The wheel that was just built stands for the line that builds it.
printf '%s\n' "$wheels"/llama_cpp_python-*.whl >"$work/requirements.txt"
grep -v '^llama-cpp-python' binder/requirements.txt >>"$work/requirements.txt"
python -m pip install -q -r "$work/requirements.txt"

step "binder/postBuild"
binder/postBuild

step "portable code"
python - <<'PYTHON'
import sys

import llama_cpp

features = llama_cpp.llama_print_system_info().decode()
print(features)
# what only newer processors have: there only where the building machine's own instructions were used
found = [name for name in ("AVX512", "AVX_VNNI", "AMX_", "SVE", "SME") if name in features]
sys.exit(f"built for this machine only: {', '.join(found)}" if found else 0)
PYTHON
library="$(python -c 'import importlib.util as u, pathlib as p; print(p.Path(u.find_spec("llama_cpp").origin).parent)')"
if command -v objdump >/dev/null; then
    for file in "$library"/lib/libggml-cpu*.so; do
        count="$(objdump -d "$file" | grep -c '%zmm' || true)"
        echo "$(basename "$file"): $count AVX-512 instructions"
        [[ "$count" == 0 ]] || exit 1
    done
fi

step "the notebook, on one core and 2 GB"
export HF_HUB_OFFLINE=1
python binder/limits.py notebooks/01_first_prompt.ipynb
