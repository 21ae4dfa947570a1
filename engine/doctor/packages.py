"""Python packages: whether they are there, in versions that amsa asks for."""

from __future__ import annotations

import importlib
import importlib.metadata
from importlib.util import find_spec

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from .findings import ABSENT, BROKEN, Problem


def version(package: str) -> str | None:
    """The version that pip knows; None: the package is not installed, by this name."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def is_installed(module: str) -> bool:
    """Whether there is a module of this name, whatever brought it. It is not imported."""
    return find_spec(module) is not None


def asked_for(package: str, extra: str) -> SpecifierSet:
    """The versions of a package that amsa asks for, by itself ("") or for an extra; all where it is not installed."""
    try:
        lines = importlib.metadata.requires("amsa") or []
    except importlib.metadata.PackageNotFoundError:
        lines = []
    for requirement in map(Requirement, lines):
        marker = requirement.marker
        # Without an extra a marker on extras is false; so what every installation needs is asked for by none.
        if canonicalize_name(requirement.name) == package and (marker.evaluate({"extra": extra}) if marker else not extra):
            return requirement.specifier
    return SpecifierSet()


def in_range(package: str, extra: str, found: str) -> str:
    """The version found, with the range that it lies in. Broken where it lies outside."""
    asked = asked_for(package, extra)
    if not asked.contains(found, prereleases=True):
        raise Problem(BROKEN, f"{found}, and amsa needs {asked}", f"pip install '{package}{asked}'")
    return f"{found} ({asked})" if str(asked) else found


def check_package(package: str, module: str, extra: str = "") -> str:
    """A package that an extra asks for, or amsa itself: it is there, its version fits, it can be imported."""
    if not is_installed(module):
        mend = f"pip install 'amsa[{extra}]'" if extra else f"pip install '{package}{asked_for(package, '')}'"
        raise Problem(ABSENT if extra else BROKEN, "not installed", mend)
    found = version(package)
    text = in_range(package, extra, found) if found else ""
    imported = importlib.import_module(module)
    return text or in_range(package, extra, str(imported.__version__))  # another package brought the module


def check_wheel(package: str) -> str:
    """A package of the extra `cuda` that has no module to import."""
    found = version(package)
    if found is None:
        raise Problem(ABSENT, "not installed", "pip install 'amsa[cuda]'")
    return in_range(package, "cuda", found)
