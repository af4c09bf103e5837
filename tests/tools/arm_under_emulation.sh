#!/usr/bin/env bash
# Runs Anser as a program for 64-bit ARM on an x86-64 Debian, as root and with the network: installs it
# with pip in a Debian of its own (about 2 GB in FOLDER, which is kept for the next time), runs the
# kernels' tests there, compares what they compute with this machine's bits, and chats with a server.
# By hand only: it takes hours of an old processor, an hour of a free one. Arguments after the folder go
# to pytest, in place of all tests of products, operations and passes.
#
#     apt-get install qemu-user-static debootstrap g++-aarch64-linux-gnu
#     tests/tools/arm_under_emulation.sh FOLDER [tests/core/test_kernels_matmul.py -k dotprod]
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$(realpath -m "${1:?the folder for the emulated system is missing}")
shift
source=$PWD
register=/proc/sys/fs/binfmt_misc

mounted=()
server=""
finish() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    wait
    for place in "${mounted[@]}"; do umount "$place"; done
}
trap finish EXIT
mount_at() {  # PLACE ARGUMENTS OF MOUNT…
    mountpoint -q "$1" && return
    mkdir -p "$1"
    mount "${@:2}" "$1"
    mounted=("$1" "${mounted[@]}")
}
inside() {
    chroot "$root" /usr/bin/env -i PATH=/venv/bin:/usr/bin:/bin HOME=/root LANG=C.UTF-8 \
        PIP_CERT=/etc/ssl/certs/ca-certificates.crt PIP_DISABLE_PIP_VERSION_CHECK=1 \
        QEMU_CPU="${QEMU_CPU:-max}" ANSER_REQUIRE_KERNELS=1 "$@"
}

# --- a Debian for ARM, whose programs the kernel gives to qemu ---------------------------------------
mountpoint -q "$register" || mount -t binfmt_misc none "$register"
[ -e "$register/qemu-aarch64" ] || printf '%s' ':qemu-aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:/usr/bin/qemu-aarch64-static:F' >"$register/register"
if [ ! -e "$root/usr/bin/python3" ]; then
    debootstrap --arch=arm64 --variant=minbase \
        --include=ca-certificates,python3-venv,python3-dev,cmake,ninja-build,curl,libgomp1 bookworm "$root"
fi
cp /etc/resolv.conf "$root/etc/"
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
mount_at "$root/proc" -t proc proc
mount_at "$root/sys" --bind /sys
mount_at "$root/dev" --bind /dev
mount_at "$root/source" --bind "$source"

# --- Anser in it, compiled by a compiler that is not emulated ----------------------------------------
for place in /usr/lib/gcc-cross /usr/aarch64-linux-gnu /usr/lib/x86_64-linux-gnu /usr/lib64; do
    mount_at "$root$place" --bind "$place"
done
[ -e "$root/lib64" ] || ln -s usr/lib64 "$root/lib64"
cp -L /usr/bin/aarch64-linux-gnu-* "$root/usr/bin/"
[ -e "$root/venv" ] || inside python3 -m venv /venv
# The newest releases of PyTorch for ARM at PyPI are those for CUDA.
inside pip install --no-compile 'torch==2.10.0' pytest hypothesis gguf
inside env CXX=aarch64-linux-gnu-g++ pip install --no-compile /source
inside python -c 'import _rwkv_kernels as k; assert k.supported_isas() == ["dotprod", "neon", "portable"]'

# --- the tests, and the bits -------------------------------------------------------------------------
[ $# -gt 0 ] || set -- tests/core/test_kernels_{matmul,operations,forward}.py
inside env -C /source python -m pytest -p no:cacheprovider "$@"
inside env -C /source PYTHONPATH=/source python -m tests.tools.kernel_digest | tee "$root/arm.jsonl"
python -m tests.tools.kernel_digest | tee "$root/x86.jsonl"
python - "$root" <<'PYTHON'
import json, sys
from pathlib import Path

def lines(name):
    return [json.loads(line) for line in (Path(sys.argv[1]) / name).read_text().splitlines()]

expected = next(line for line in lines("x86.jsonl") if line["isa"] != "portable")
for line in lines("arm.jsonl"):
    assert {**line, "isa": ""} == {**expected, "isa": ""}, line["isa"]
PYTHON

# --- a chat ------------------------------------------------------------------------------------------
inside env OLLAMA_HOST=127.0.0.1:11499 HOME=/tmp anser serve &
server=$!
question='{"model": "rwkv7-demo", "stream": false, "options": {"temperature": 0}, "messages": [{"role": "user", "content": "Hello, who are you?"}]}'
curl --retry 60 --retry-delay 5 --retry-connrefused -sS http://127.0.0.1:11499/api/version
curl -sS http://127.0.0.1:11499/api/chat -d "$question" | tee /dev/stderr | grep -q '"done":true'
