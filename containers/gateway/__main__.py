"""`python -m containers.gateway`: what a container runs. `--help` lists what can be set, ASSAY_* does the same."""

import sys

from pydantic import ValidationError

from containers.gateway import settings
from containers.gateway.evidence import Evidence
from containers.gateway.server import serve
from pipeline.errors import AssayError


def main() -> int:
    """Serve; what is wrong with the settings or the artifact is a line on stderr."""
    try:
        wanted = settings.read(sys.argv[1:])
        serve(wanted, Evidence.of_folder(wanted.artifact, wanted.evidence))
    except ValidationError as error:
        print("\n".join(settings.problems(error)), file=sys.stderr)
        return 2
    except (AssayError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
