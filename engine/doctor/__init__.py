"""`amsa doctor`: what works on this machine, what is missing, and how to mend it.

A check is a small function: it returns what it found, or raises. Checks run in child processes, one for each group, which answer
with a JSON line per check: a library that ends its process or hangs is a finding, too, and the next child goes on behind it.
"""

from .checks import abilities, summary
from .children import examine_machine
from .findings import ABSENT, BROKEN, OK, Finding

__all__ = ["ABSENT", "BROKEN", "OK", "Finding", "abilities", "examine_machine", "summary"]
