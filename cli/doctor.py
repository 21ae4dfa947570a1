"""`amsa doctor`."""

from __future__ import annotations

from dataclasses import asdict

import typer

from ..errors import AmsaError
from .options import AsJson
from .terminal import out, print_json


def doctor(as_json: AsJson = False) -> None:
    """Check what works on this machine, and say how to mend what does not. Exit code 1: something is broken."""
    try:
        from ..engine import doctor as checks
    except ImportError as e:
        raise AmsaError(f"{e}; amsa is not installed as a whole, so install it again: pip install --force-reinstall amsa") from e

    findings: list[checks.Finding] = []
    for found in checks.examine_machine():
        if not as_json:
            if not findings or found.section != findings[-1].section:
                out.print(found.section)
            mend = f"; mend: {found.mend}" if found.mend else ""
            out.print(f"  {found.state:<7} {found.name:<28} {found.text}{mend}")
        findings.append(found)
    if as_json:
        print_json({"findings": [asdict(found) for found in findings], "abilities": checks.abilities(findings)})
    else:
        out.print(checks.summary(findings))
    if any(found.state == checks.BROKEN for found in findings):
        raise typer.Exit(1)
