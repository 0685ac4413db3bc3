# shellcheck shell=bash
# Sourced by bin/compile, with BUILD_DIR, CACHE_DIR and ENV_DIR set.

step() { echo "-----> $*"; }
indent() { sed -u 's/^/       /'; }
fail() {
  echo " !     $*" >&2
  exit 1
}

requirements() {
  local file
  for file in requirements.txt pyproject.toml setup.py; do
    if [[ -f "$BUILD_DIR/$file" ]]; then
      echo "$BUILD_DIR/$file"
      return
    fi
  done
}

# Config vars are files in ENV_DIR and not in the environment: a buildpack decides what may see them, and keeps
# out what would break its own tools. The list is heroku/buildpack-stdlib's, as vendored by
# heroku/heroku-buildpack-python, tag archive/v200, vendor/buildpack-stdlib_v8.sh: sub_env.
with_config_vars() (
  shopt -s nullglob
  for file in "$ENV_DIR"/*; do
    name=${file##*/}
    if [[ "$name" =~ ^[A-Za-z_][A-Za-z0-9_]*$ && ! "$name" =~ ^(PATH|GIT_DIR|CPATH|CPPATH|LD_PRELOAD|LIBRARY_PATH)$ ]]; then
      export "$name=$(cat "$file")"
    fi
  done
  "$@"
)

run_hook() {
  if [[ -f "bin/$1" ]]; then
    step "Running bin/$1 hook"
    chmod +x "bin/$1"
    with_config_vars "bin/$1" 2>&1 | indent
  fi
}

# Hard links where the platform has put the cache and the build on one mount, as upstream does today
# (heroku/heroku-buildpack-python, tag v351, lib/cache.sh); bind mounts of one filesystem do not count.
save_to_cache() {
  cp -a --link "$1" "$CACHE_DIR/.heroku/" 2>/dev/null && return
  rm -rf "${CACHE_DIR:?}/$1"
  cp -a "$1" "$CACHE_DIR/.heroku/"
}
