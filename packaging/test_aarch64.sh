#!/usr/bin/env bash
# The aarch64 wheel in Debian's aarch64 Python under qemu-user: the tests of the CPU operations and of the extension's
# stub, then the example films from DICOM and JPEG to detection.
#
# The machine's own packages stay as they are: apt and pip unpack into build/aarch64. The processor imitated is a
# Cortex-A57, ARMv8.0-A and nothing more: an instruction that the wheel's baseline does not promise would end the run.
set -euo pipefail
cd "$(dirname "$0")/.."

export PYTHONSAFEPATH=1 # the installed package, not the sources in the working folder
export QEMU_CPU=${QEMU_CPU:-cortex-a57}
tests=("$@")
((${#tests[@]})) || tests=(tests/ops tests/test_core_stub.py tests/test_geometry.py)

PYTHON=${PYTHON:-python3}
python=$("$PYTHON" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
shopt -s nullglob
wheels=(dist/ptxsdk-*-cp3"${python#python3.}"-manylinux_*_aarch64.whl)
[[ ${#wheels[@]} == 1 ]] || { echo "dist/ has no aarch64 wheel for $python: make wheel" >&2; exit 1; }
for tool in qemu-aarch64-static:qemu-user-static apt-get:apt dpkg-deb:dpkg; do
  command -v "${tool%:*}" >/dev/null || { echo "${tool%:*} is missing: apt-get install ${tool#*:}" >&2; exit 1; }
done
world=$PWD/build/aarch64
system=$world/system
environment=$world/environment

# Debian's packages of the interpreter for arm64, resolved against an empty system.
if [[ ! -x $system/usr/bin/$python ]]; then
  rm -rf "$world"
  mkdir -p "$world"/apt/{lists,cache/archives}/partial "$system"
  : >"$world/apt/status"
  apt=(apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Install-Recommends=false
    -o Dir::State::Lists="$world/apt/lists" -o Dir::State::status="$world/apt/status" -o Dir::Cache="$world/apt/cache"
    -o APT::Sandbox::User=root -o Debug::NoLocking=1)
  "${apt[@]}" update
  "${apt[@]}" install --yes --download-only "$python-minimal" "lib$python-stdlib" libstdc++6
  for package in "$world"/apt/cache/archives/*.deb; do dpkg-deb --extract "$package" "$system"; done
fi

# A virtual environment whose interpreter is qemu's: started under the wrapper's name, Python finds pyvenv.cfg.
rm -rf "$environment"
mkdir -p "$environment/bin" "$environment/lib/$python/site-packages"
echo "home = $system/usr/bin" >"$environment/pyvenv.cfg"
cat >"$environment/bin/python" <<EOF
#!/bin/sh
exec qemu-aarch64-static -L "$system" -0 "\$0" "$system/usr/bin/$python" "\$@"
EOF
chmod +x "$environment/bin/python"

# What a machine with Debian 12's glibc, 2.36, accepts.
platforms=(--platform manylinux2014_aarch64)
for minor in {17..36}; do platforms+=(--platform "manylinux_2_${minor}_aarch64"); done
"$PYTHON" -m pip install --quiet --target "$environment/lib/$python/site-packages" --only-binary=:all: \
  --implementation cp --python-version "${python#python}" "${platforms[@]}" "${wheels[0]}" pytest pytest-timeout scipy

"$environment/bin/python" -c 'import platform, sys; print(sys.version, platform.machine(), "under qemu")'
"$environment/bin/python" -m pytest -p no:cacheprovider "${tests[@]}"
"$environment/bin/python" -m ptxsdk predict examples --out "$world/out"
