"""Builds the native kernels where that is possible; what cannot be built is left out, and the library says so.

The library is written against torch's stable ABI, so one build serves torch 2.10 and later. It needs torch's
headers at build time: install torch first and build with `pip install --no-build-isolation`.
"""

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = Path("src/phased_lstm/csrc")
# Vectors never cross a call, so their ABI does not matter; gcc takes its own AVX-512 headers for uninitialised.
QUIET = ["-Wno-psabi", "-Wno-maybe-uninitialized"]
# Python's own flags ask for debugging symbols, which are nine tenths of the library's size and cost time.
COMMON = ["-std=c++20", "-O3", "-g0", "-ffp-contract=fast", "-fvisibility=hidden", "-Wall", "-Wextra", *QUIET]
FLAGS = {
    "kernels_baseline": [],
    "kernels_avx2": ["-mavx2", "-mfma"],
    "kernels_avx512": ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mavx2", "-mfma",
                       "-mprefer-vector-width=512"],
}  # fmt: skip
# The operators' own arithmetic is to round as torch's does, on every machine.
EVERYWHERE = {"ops": ["-ffp-contract=off"]}
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"


class BuildKernels(build_ext):
    """Compiles each source with the flags of its instruction set, and carries on without on failure."""

    def build_extension(self, extension: Extension) -> None:
        compile_one = self.compiler._compile

        def compile_with_flags(obj, source, suffix, args, *rest):  # type: ignore[no-untyped-def]
            name = Path(source).stem
            extra = FLAGS.get(name, []) if platform.machine() in ("x86_64", "AMD64") else []
            return compile_one(obj, source, suffix, [*args, *extra, *EVERYWHERE.get(name, [])], *rest)

        compile_all = self.compiler.compile

        def compile_side_by_side(sources, *args, **options):  # type: ignore[no-untyped-def]
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                parts = pool.map(lambda source: compile_all([source], *args, **options), sources)
                return [made for part in parts for made in part]

        self.compiler._compile = compile_with_flags
        self.compiler.compile = compile_side_by_side
        try:
            super().build_extension(extension)
        finally:
            del self.compiler._compile, self.compiler.compile

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:  # any failure of the toolchain: the reference path still works
            skipped(str(error))
            self.extensions = []


def skipped(reason: str) -> None:
    print(
        f"\nphased-lstm: the native kernels were not built ({reason}).\n"
        f"The library works without them, on the reference backend. To build them: a C++20 compiler (gcc or clang), "
        f"torch installed, and pip install --no-build-isolation\n",
        file=sys.stderr,
    )


def extensions() -> list[Extension]:
    try:
        import torch
    except ImportError:
        skipped("torch is not importable in the build environment")
        return []
    root = Path(torch.__file__).parent
    if sys.platform == "win32":
        skipped("the kernels need gcc or clang")
        return []
    return [
        Extension(
            "phased_lstm._native",
            sources=sorted(str(path) for path in SOURCES.glob("*.cpp")),
            depends=[str(path) for pattern in ("*.h", "*.inl") for path in SOURCES.glob(pattern)],
            library_dirs=[str(root / "lib")],
            libraries=["torch", "torch_cpu", "c10"],
            # Not for warnings about torch's own headers.
            extra_compile_args=[*COMMON, STABLE_ABI, "-isystem", str(root / "include")],
            language="c++",
        )
    ]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildKernels})
