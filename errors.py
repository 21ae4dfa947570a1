"""The one exception every room raises for something the user can mend."""


class AmsaError(Exception):
    """Wrong input, file or request. The message is one line: what is wrong and how to mend it.

    The command line prints it after ``error:`` and exits with code 2. Anything else that escapes is our fault (code 1).
    """
