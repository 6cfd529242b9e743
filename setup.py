"""Builds the C parts: the ring's kernel, the journal's syncer, the lane's answer, what a bulk does
for each line. All else is in pyproject.toml."""

import os
import sys
import sysconfig

from setuptools import Extension, setup

if sys.platform != "linux" or sys.maxsize < 2**32:
    sys.exit(
        f"rasher needs 64-bit Linux (robust locks, futexes, pidfds); this is {sys.platform}, "
        f"{'64' if sys.maxsize > 2**32 else '32'}-bit. Nothing was installed."
    )

# Free-threaded builds have no stable ABI: there the kernel is built for that one version.
ABI3 = not sysconfig.get_config_var("Py_GIL_DISABLED")
# RASHER_SANITIZE=address,undefined builds a kernel for a run under the sanitizers.
SANITIZE = os.environ.get("RASHER_SANITIZE", "")

compile_args = ["-std=c11", "-O2", "-g", "-Wall", "-Wextra", "-fvisibility=hidden"]
link_args = ["-pthread"]
if SANITIZE:
    compile_args += [f"-fsanitize={SANITIZE}", "-fno-omit-frame-pointer"]
    link_args += [f"-fsanitize={SANITIZE}"]


def extension(name: str, source: str, *headers: str) -> Extension:
    return Extension(
        name,
        sources=[source],
        depends=list(headers),
        define_macros=[("Py_LIMITED_API", "0x030B0000")] if ABI3 else [],
        py_limited_api=ABI3,
        extra_compile_args=compile_args,
        extra_link_args=link_args,
    )


setup(
    ext_modules=[
        extension("ringbuf._kernel", "ringbuf/_kernel.c", "ringbuf/kernel.h"),
        extension("ringbuf._journal", "ringbuf/_journal.c"),
        extension("ingest._lane", "ingest/_lane.c"),
        extension("ingest._bulk", "ingest/_bulk.c"),
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if ABI3 else {},
)
