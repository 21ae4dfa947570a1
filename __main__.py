"""`python -m amsa`."""

from .cli import main

main()
