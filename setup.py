"""The build: every skep/native/*_build.py is one cffi module, optional, so that an install without a
compiler still works on the Python twins."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

BUILDERS = sorted(Path("skep/native").glob("*_build.py"))


class OptionalBuild(build_ext):
    """Build each cffi module; one that cannot be built is left out, loudly."""

    def finalize_options(self) -> None:
        super().finalize_options()
        for ext in self.extensions:
            ext.optional = True


setup(cffi_modules=[f"{path.as_posix()}:ffi" for path in BUILDERS], cmdclass={"build_ext": OptionalBuild})
