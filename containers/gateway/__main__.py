"""`python -m containers.gateway`: what a container runs. `--help` lists what can be set, ASSAY_* does the same."""

import signal
import sys
from collections.abc import Callable, Sequence

if __name__ == "__main__":
    # The first process of a container ignores every signal that it has no handler for: while the rest is imported, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

from pydantic import ValidationError

from containers.gateway import settings
from containers.gateway.evidence import Evidence
from containers.gateway.server import serve
from containers.gateway.settings import Settings
from pipeline.errors import AssayError


def main(arguments: Sequence[str], start: Callable[[Settings, Evidence], None] = serve) -> int:
    """Serve by `start`; what is wrong with the settings or the artifact is a line on stderr."""
    try:
        wanted = settings.read(arguments)
        start(wanted, Evidence.of_folder(wanted.artifact, wanted.evidence))
    except ValidationError as error:
        print("\n".join(settings.problems(error)), file=sys.stderr)
        return 2
    except (AssayError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
