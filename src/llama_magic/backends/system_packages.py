"""What the pieces that a build needs are called on this system, and the command that installs them."""

from __future__ import annotations

import os
import shutil
import sys

__all__ = ["PACKAGES", "install_command", "package_manager"]

#: Package managers in the order they are looked for, and how they install.
_MANAGERS = {
    "apt": ("apt-get", "apt install"),
    "dnf": ("dnf", "dnf install"),
    "pacman": ("pacman", "pacman -S"),
    "zypper": ("zypper", "zypper install"),
    "apk": ("apk", "apk add"),
    "brew": ("brew", "brew install"),
    "winget": ("winget", "winget install"),
}

#: Names of packages, or a whole command where no package has it (it then holds a space), by piece and manager.
PACKAGES: dict[str, dict[str, str]] = {
    "compiler": {
        "apt": "g++", "dnf": "gcc-c++", "pacman": "gcc", "zypper": "gcc-c++", "apk": "g++",
        "brew": "xcode-select --install", "winget": "Microsoft.VisualStudio.2022.BuildTools",
    },
    "cmake": {
        "apt": "cmake", "dnf": "cmake", "pacman": "cmake", "zypper": "cmake", "apk": "cmake", "brew": "cmake",
        "winget": "Kitware.CMake",
    },
    "generator": {
        "apt": "ninja-build", "dnf": "ninja-build", "pacman": "ninja", "zypper": "ninja", "apk": "samurai",
        "brew": "ninja", "winget": "Ninja-build.Ninja",
    },
    "pkg-config": {
        "apt": "pkg-config", "dnf": "pkgconf-pkg-config", "pacman": "pkgconf", "zypper": "pkg-config",
        "apk": "pkgconf", "brew": "pkgconf", "winget": "bloodrock.pkg-config-lite",
    },
    "openblas": {
        "apt": "libopenblas-dev", "dnf": "openblas-devel", "pacman": "openblas", "zypper": "openblas-devel",
        "apk": "openblas-dev", "brew": "openblas", "winget": "",
    },
    "vulkan-headers": {
        "apt": "libvulkan-dev", "dnf": "vulkan-headers", "pacman": "vulkan-headers", "zypper": "vulkan-headers",
        "apk": "vulkan-headers", "brew": "vulkan-headers", "winget": "KhronosGroup.VulkanSDK",
    },
    "vulkan-loader": {
        "apt": "libvulkan-dev", "dnf": "vulkan-loader-devel", "pacman": "vulkan-icd-loader", "zypper": "vulkan-devel",
        "apk": "vulkan-loader-dev", "brew": "vulkan-loader molten-vk", "winget": "KhronosGroup.VulkanSDK",
    },
    "glslc": {
        "apt": "glslc", "dnf": "glslc", "pacman": "shaderc", "zypper": "shaderc", "apk": "shaderc", "brew": "shaderc",
        "winget": "KhronosGroup.VulkanSDK",
    },
    "spirv-headers": {
        "apt": "spirv-headers", "dnf": "spirv-headers-devel", "pacman": "spirv-headers", "zypper": "spirv-headers",
        "apk": "spirv-headers", "brew": "spirv-headers", "winget": "KhronosGroup.VulkanSDK",
    },
    "nvcc": {
        "apt": "nvidia-cuda-toolkit", "dnf": "cuda-toolkit", "pacman": "cuda", "zypper": "cuda-toolkit",
        "winget": "Nvidia.CUDA",
    },
    "rocm": {"apt": "hipcc libhipblas-dev librocblas-dev", "dnf": "rocm-hip-devel hipblas-devel rocblas-devel",
             "pacman": "rocm-hip-sdk", "winget": "AMD.HIPSDK"},
    "opencl": {
        "apt": "opencl-headers ocl-icd-opencl-dev", "dnf": "opencl-headers ocl-icd-devel",
        "pacman": "opencl-headers ocl-icd", "zypper": "opencl-headers ocl-icd-devel",
        "apk": "opencl-headers opencl-icd-loader-dev", "brew": "opencl-headers opencl-icd-loader",
    },
    "oneapi": {"apt": "intel-oneapi-dpcpp-cpp", "dnf": "intel-oneapi-dpcpp-cpp", "pacman": "intel-oneapi-basekit",
               "winget": "Intel.OneAPI.BaseToolkit"},
    "xcode": {"brew": "xcode-select --install"},
}  # fmt: skip


def package_manager() -> str:
    """Return the manager of this system's packages: a key of the names in `PACKAGES`, empty where none is known."""
    if sys.platform == "win32":
        return "winget"
    if sys.platform == "darwin":
        return "brew"
    return next((name for name, (program, _) in _MANAGERS.items() if shutil.which(program)), "")


def install_command(*pieces: str, manager: str | None = None) -> str:
    """Return the command that installs pieces (keys of `PACKAGES`) on this system, empty where none is known."""
    manager = package_manager() if manager is None else manager
    names = [name for piece in pieces if (name := PACKAGES.get(piece, {}).get(manager, ""))]
    commands = [name for name in names if name.startswith("xcode-select")]
    packages = list(dict.fromkeys(word for name in names if name not in commands for word in name.split()))
    if packages:
        root = "" if manager in ("brew", "winget") or _is_root() else "sudo "
        commands.append(f"{root}{_MANAGERS[manager][1]} {' '.join(packages)}")
    return " && ".join(dict.fromkeys(commands))


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0
