"""Compiles the CPU kernels while installing; everything else is declared in setup.cfg.

Without a compiler the installation still succeeds: amsa then runs the ops' function bodies, and says so when it is used.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

_PLUGINS = Path(__file__).parent / "plugins"


class BuildKernels(build_py):
    """`build_py`, then the kernels' library into `plugins/`: the build's, or the checkout's where that is installed itself."""

    def run(self) -> None:
        super().run()
        # By its path: amsa cannot be imported before it is installed, and this module needs nothing of it.
        spec = importlib.util.spec_from_file_location("cpu_library", _PLUGINS / "cpu_library.py")
        assert spec is not None
        assert spec.loader is not None
        library = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(library)
        into = _PLUGINS if self.editable_mode else Path(self.build_lib) / "amsa" / "plugins"
        try:
            built = library.build(into)
        except (OSError, subprocess.CalledProcessError) as e:
            reason = e.stderr.strip().splitlines()[0] if isinstance(e, subprocess.CalledProcessError) and e.stderr else e
            print(f"amsa: the CPU kernels are not built ({reason})", file=sys.stderr)
            return
        for outdated in into.glob("cpu-*.so"):
            if outdated != built:
                outdated.unlink()


class BinaryDistribution(Distribution):
    """A wheel with the library in it is for one kind of machine."""

    def has_ext_modules(self) -> bool:
        return True


setup(cmdclass={"build_py": BuildKernels}, distclass=BinaryDistribution)
