#!/bin/sh
# Prints a Python 3.11: `find-python.sh python3.11` that one, where it is one. Else, with --bring, one that uv brings;
# where uv is not installed, pip puts it into a throw-away environment of whatever python3 is there (build/uv). Nothing else is changed.
set -u
wanted=$1
is_311() { command -v "$1" >/dev/null 2>&1 && "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; }

if is_311 "$wanted"; then
  command -v "$wanted"
  exit
fi
if [ "${2:-}" = --bring ]; then
  uv=$(command -v uv) || {
    python3 -m venv build/uv && build/uv/bin/pip install --quiet --disable-pip-version-check uv==0.13.9 && uv=build/uv/bin/uv
  } >/dev/null 2>&1
  if [ -n "$uv" ]; then
    echo "No Python 3.11 here ('$wanted' is not one): uv brings one, for this user only" >&2
    # uv's own words go to the screen: they say best why a download fails.
    if "$uv" python install 3.11 >&2 && found=$("$uv" python find --no-project 3.11) && is_311 "$found"; then
      echo "$found"
      exit
    fi
  fi
fi
cat >&2 <<MESSAGE
qlab needs Python 3.11 (auto-gptq has wheels for 3.8 to 3.11 only), and '$wanted' is not one.
Install it: 'apt install python3.11 python3.11-venv', 'brew install python@3.11', 'uv python install 3.11' or
'conda env create -f environment.yml'. Then 'make run', or 'make run PYTHON=/path/to/python3.11'.
MESSAGE
exit 1
