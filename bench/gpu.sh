#!/usr/bin/env bash
# On a machine with a GPU: `checks` runs the tests that need one, `grid` measures matrix.yaml.
#
#   bench/gpu.sh checks [PYTEST WORDS]   tests/gpu or what of it is named, capped at 24 GiB
#   bench/gpu.sh grid MINUTES            python -m bench run matrix --resume, then its report
#
# What was measured is written to $OUT as it comes, for `grid` to bench/ where OUT is not set: it
# goes on where it stopped once $OUT/results is back in bench/results.  Packages that the machine
# lacks are taken from wheels in .whl/, without a network.  FASTSFT_TINY=1 tries `checks` without a
# GPU.
set -euo pipefail
cd "$(dirname "$0")/.."

verb=${1:?checks or grid}
shift
site=${TMPDIR:-/tmp}/fastsft-site
if compgen -G '.whl/*.whl' >/dev/null && [ ! -d "$site" ]; then
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
        --target "$site" .whl/*.whl
fi
export PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}"
python=python3
[ -x .venv/bin/python ] && python=.venv/bin/python

# Which of what a training process imports is missing: seconds now, not minutes later.
$python - <<'PYTHON'
from importlib.util import find_spec

names = "torch transformers trl peft bitsandbytes datasets unsloth unsloth_zoo xformers pydantic"
names += " ruamel.yaml jinja2 matplotlib psutil pynvml rich typer tokenizers safetensors pyarrow"
names += " tiktoken gguf huggingface_hub pytest"
missing = [name for name in names.split() if find_spec(name.split(".")[0]) is None]
if missing:
    raise SystemExit(f"missing: {' '.join(missing)}; put their wheels into .whl/")
PYTHON

case $verb in
checks)
    [ $# -gt 0 ] || set -- tests/gpu
    $python -m pytest -q -p no:cacheprovider -m gpu -s "$@"
    ;;
grid)
    minutes=${1:?minutes}
    out=${OUT:-$PWD/bench}
    mkdir -p "$out/results"
    if [ -n "${OUT:-}" ] && [ -d bench/results ]; then
        cp -rn bench/results/. "$out/results/"
    fi
    $python -m bench run matrix --resume --minutes "$minutes" --out "$out"
    $python -m bench report --out "$out"
    ;;
*)
    echo "checks or grid" >&2
    exit 2
    ;;
esac
