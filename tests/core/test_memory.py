"""The memory there is, read from made-up systems, and the error for models that need more."""

from __future__ import annotations

from pathlib import Path

import pytest

from rwkv_core.checkpoint.recipes import RECIPES
from rwkv_core.errors import CheckpointError, ModelTooLargeError
from rwkv_core.memory import (
    BITS_PER_PARAMETER,
    GroupLimit,
    available_bytes,
    require_memory,
    tightest_limit,
)

GIB = 1 << 30
UNLIMITED_V1 = "9223372036854771712\n"

V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTS = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
    "35 31 0:32 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)


def make_system(root: Path, *, mounts: str = "", groups: str = "", available: int = 8) -> None:
    """A `proc` with `available` GiB of memory, and the control groups of this process."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(
        f"MemTotal:       16384000 kB\nMemAvailable:   {available << 20} kB\n"
    )
    (root / "proc/self/mountinfo").write_text("22 1 8:1 / / rw,relatime - ext4 /dev/vda1 rw\n")
    if mounts:
        (root / "proc/self/mountinfo").write_text(mounts)
        (root / "proc/self/cgroup").write_text(groups)


def make_group(
    folder: Path, limit: str, usage: int, *, cache: int = 0, is_v1: bool = False
) -> None:
    """A group of version 2 or 1 with `usage` bytes in use, twice `cache` of them file cache."""
    folder.mkdir(parents=True, exist_ok=True)
    limit_name, usage_name = "memory.max", "memory.current"
    prefix = "total_" if is_v1 else ""
    if is_v1:
        limit_name, usage_name = "memory.limit_in_bytes", "memory.usage_in_bytes"
    (folder / limit_name).write_text(limit)
    (folder / usage_name).write_text(f"{usage}\n")
    (folder / "memory.stat").write_text(
        f"anon 4096\ninactive_file 7\n{prefix}inactive_file {cache}\n{prefix}active_file {cache}\n"
        if is_v1
        else f"anon 4096\ninactive_file {cache}\nactive_file {cache}\n"
    )


def test_memory_of_this_machine() -> None:
    available = available_bytes()
    assert available is None or available > 0


def test_system_without_proc(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) is None


def test_system_without_control_groups(tmp_path: Path) -> None:
    make_system(tmp_path)
    assert available_bytes(tmp_path) == 8 * GIB


def test_limit_of_version_2_counts_file_cache_as_free(tmp_path: Path) -> None:
    make_system(tmp_path, mounts=V2_MOUNT, groups="0::/user.slice/anser.service\n")
    groups = tmp_path / "sys/fs/cgroup"
    make_group(groups / "user.slice/anser.service", f"{4 * GIB}\n", 3 * GIB, cache=GIB // 2)
    assert available_bytes(tmp_path) == 2 * GIB


def test_limit_of_a_group_above(tmp_path: Path) -> None:
    make_system(tmp_path, mounts=V2_MOUNT, groups="0::/user.slice/anser.service\n")
    groups = tmp_path / "sys/fs/cgroup"
    make_group(groups / "user.slice", f"{4 * GIB}\n", 3 * GIB)
    make_group(groups / "user.slice/anser.service", "max\n", GIB)
    assert available_bytes(tmp_path) == GIB


def test_limit_of_the_container_itself(tmp_path: Path) -> None:
    make_system(tmp_path, mounts=V2_MOUNT, groups="0::/\n")
    make_group(tmp_path / "sys/fs/cgroup", f"{2 * GIB}\n", GIB)
    assert available_bytes(tmp_path) == GIB


@pytest.mark.parametrize("group", ["/../elsewhere", "/gone"])
def test_group_that_cannot_be_seen_from_the_container(tmp_path: Path, group: str) -> None:
    make_system(tmp_path, mounts=V2_MOUNT, groups=f"0::{group}\n")
    make_group(tmp_path / "sys/fs/cgroup", f"{2 * GIB}\n", GIB)
    assert available_bytes(tmp_path) == GIB


def test_limit_above_what_the_system_has(tmp_path: Path) -> None:
    make_system(tmp_path, mounts=V2_MOUNT, groups="0::/\n", available=3)
    make_group(tmp_path / "sys/fs/cgroup", f"{64 * GIB}\n", GIB)
    assert available_bytes(tmp_path) == 3 * GIB


def test_group_over_its_limit(tmp_path: Path) -> None:
    make_system(tmp_path, mounts=V2_MOUNT, groups="0::/\n")
    make_group(tmp_path / "sys/fs/cgroup", f"{GIB}\n", GIB + 4096)
    assert available_bytes(tmp_path) == 0


def test_limit_of_version_1(tmp_path: Path) -> None:
    groups = "9:name=systemd:/\n4:cpu,memory:/docker/7f\n1:cpuset:/other\n0::/\n"
    make_system(tmp_path, mounts=V1_MOUNTS.format(root="/"), groups=groups)
    folder = tmp_path / "sys/fs/cgroup/memory"
    make_group(folder, UNLIMITED_V1, 9 * GIB, is_v1=True)
    make_group(folder / "docker/7f", f"{4 * GIB}\n", 3 * GIB, cache=GIB, is_v1=True)
    assert available_bytes(tmp_path) == 3 * GIB


def test_version_1_with_the_containers_group_mounted(tmp_path: Path) -> None:
    make_system(
        tmp_path, mounts=V1_MOUNTS.format(root="/docker/7f"), groups="4:memory:/docker/7f/child\n"
    )
    folder = tmp_path / "sys/fs/cgroup/memory"
    make_group(folder, f"{4 * GIB}\n", 3 * GIB, is_v1=True)
    make_group(folder / "child", UNLIMITED_V1, GIB, is_v1=True)
    assert available_bytes(tmp_path) == GIB


def test_damaged_files_say_nothing(tmp_path: Path) -> None:
    make_system(tmp_path, mounts=V2_MOUNT + "\nnonsense\n", groups="0::/\n")
    make_group(tmp_path / "sys/fs/cgroup", "\n", GIB)
    (tmp_path / "proc/self/cgroup").write_text("0::/\nnonsense\n")
    assert available_bytes(tmp_path) == 8 * GIB


def test_the_tightest_limit_is_named(tmp_path: Path) -> None:
    make_system(tmp_path, mounts=V2_MOUNT, groups="0::/anser.slice/anser.service\n")
    groups = tmp_path / "sys/fs/cgroup"
    make_group(groups / "anser.slice", f"{3 * GIB}\n", 2 * GIB)
    make_group(groups / "anser.slice/anser.service", f"{4 * GIB}\n", 2 * GIB)
    limit = tightest_limit(tmp_path)
    assert limit == GroupLimit(3 * GIB, GIB)
    assert refusal(limit.available, group_limit=limit) == (
        "g1.gguf: needs 6.3 GB of memory in F16, but only 1.0 GB are free of the 3.2 GB that this "
        "container or service may take; raise that limit (docker run --memory, mem_limit, "
        "MemoryMax) or use a smaller model"
    )
    make_group(groups / "anser.slice", f"{30 * GIB}\n", 2 * GIB)
    make_group(groups / "anser.slice/anser.service", "max\n", 2 * GIB)
    assert tightest_limit(tmp_path) is None  # the system leaves less


def refusal(
    available: int,
    *,
    weight_bytes: int = 5_896_000_000,
    group_limit: GroupLimit | None = None,
    stays_packed: bool = True,
) -> str:
    with pytest.raises(ModelTooLargeError) as caught:
        require_memory(
            "g1.gguf",
            type_name="F16",
            weight_bytes=weight_bytes,
            other_bytes=400_000_000,
            num_parameters=2_948_000_000,
            available=available,
            group_limit=group_limit,
            stays_packed=stays_packed,
        )
    assert isinstance(caught.value, CheckpointError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("available", [None, 6_296_000_000, 1 << 50])
def test_model_that_fits(available: int | None) -> None:
    require_memory(
        "g1.gguf",
        type_name="F16",
        weight_bytes=5_896_000_000,
        other_bytes=400_000_000,
        num_parameters=2_948_000_000,
        available=available,
    )


def test_best_quantization_that_fits_is_named() -> None:
    assert refusal(2_600_000_000) == (
        "g1.gguf: needs 6.3 GB of memory in F16, but only 2.6 GB are free; quantized to q4_k_m it "
        "needs 2.5 GB: anser create NAME --from FILE --quantize q4_k_m"
    )
    assert "--quantize q8_0" in refusal(6_295_999_999)
    assert "--quantize q4_0" in refusal(2_310_000_000)


def test_no_quantization_fits() -> None:
    assert refusal(900_000_000) == (
        "g1.gguf: needs 6.3 GB of memory in F16, but only 900 MB are free; close other programs or "
        "use a smaller model"
    )


def test_quantizing_does_not_help_where_weights_are_expanded() -> None:
    assert "--quantize" not in refusal(6_000_000_000, stays_packed=False)


def test_what_is_needed_never_looks_like_what_is_free() -> None:
    assert "needs 6.4 GB of memory in F16, but only 6.3 GB" in refusal(
        6_310_000_000, weight_bytes=5_910_000_001
    )


def test_every_recipe_has_its_size() -> None:
    assert list(BITS_PER_PARAMETER) == list(RECIPES)
