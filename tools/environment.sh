#!/usr/bin/env bash
# Prints the interpreter of this checkout's environment, creating what is missing. All else goes to stderr.
#
# Two layers: the dependencies (11 GB) live once per setup.py and Python version; each checkout gets a thin
# environment over them, so two checkouts never see each other's code.
set -euo pipefail
cd "$(dirname "$0")/.."
exec 3>&1 1>&2

python=${PYTHON:-python3}
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case $version in
  3.11|3.12) ;;
  *) echo "Python 3.11 or 3.12 is needed, '$python' is $version. Name another one: make PYTHON=python3.11 ..."; exit 1 ;;
esac
cache=${SGLANG_DYNASOR_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sglang-dynasor}
key=$(sha256sum setup.py | cut -c1-12)-py$version
base=$cache/env-$key
overlay=$cache/checkout-$(pwd -P | sha256sum | cut -c1-12)-$key
mkdir -p "$cache"
exec 9>"$base.lock"
flock 9

if [ ! -e "$base/.complete" ]; then
  echo "== First use: installing SGLang and its dependencies into $base"
  echo "== About 11 GB and 9 minutes; needed once, later runs take seconds."
  rm -rf "$base"
  "$python" -m venv "$base"
  "$base/bin/python" -m pip install --upgrade pip setuptools wheel
  "$base/bin/python" -m pip install ".[dev]"
  "$base/bin/python" -m pip uninstall -q -y sglang-dynasor  # dependencies only: the code comes from the checkout
  touch "$base/.complete"
fi
if [ ! -e "$overlay/.complete" ]; then
  rm -rf "$overlay"
  "$python" -m venv --without-pip "$overlay"
  site=$("$overlay/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  echo "import site; site.addsitedir('$("$base/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" > "$site/base.pth"
  "$overlay/bin/python" -m pip install -q --no-deps --no-build-isolation -e .
  touch "$overlay/.complete"
fi
echo "$overlay/bin/python" >&3
