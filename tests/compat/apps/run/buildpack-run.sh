#!/usr/bin/env bash
# As build scripts do: by the path that they are in.
set -euo pipefail
ln -sfn "$PWD/greeting.txt" current
