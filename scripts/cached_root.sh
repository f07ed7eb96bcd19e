# For the scripts that make a root for the tests, which is kept under POCKETFORMER_CACHE.
# cached_root NAME STAMP prints its path. Unless it has this stamp, it is made anew: make_root fills $work/root.
cached_root() {
  local root=${POCKETFORMER_CACHE:-$HOME/.cache/pocketformer}/$1
  if [ "$(cat "$root/stamp" 2>/dev/null)" != "$2" ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    mkdir "$work/root"
    make_root >&2
    echo "$2" > "$work/root/stamp"
    mkdir -p "$(dirname "$root")"
    rm -rf "$root"
    mv "$work/root" "$root"
  fi
  echo "$root"
}
