"""A child of `examine_machine`: runs the checks that it is given by name, and answers with a JSON line for each."""

import json
import os
import sys
from dataclasses import asdict

from .checks import examine


def main() -> None:
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what libraries print is no answer
        for name in sys.argv[1:]:
            answers.write(json.dumps(asdict(examine(name))) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
