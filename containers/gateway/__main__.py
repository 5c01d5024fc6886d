"""`python -m containers.gateway`: what a container runs. `--help` lists what can be set, ASSAY_* does the same."""

import os
import sys

from pydantic import ValidationError
from pydantic_settings import CliApp

from containers import engines
from containers.engines.contract import EngineError
from containers.gateway.evidence import Evidence
from containers.gateway.server import serve
from containers.gateway.settings import Settings, vertex
from pipeline.errors import AssayError


def main() -> int:
    """Serve; what is wrong with the settings or the artifact is one line on stderr."""
    if port := vertex().get("HTTP_PORT"):
        os.environ["ASSAY_PORT"] = port
    try:
        settings = CliApp.run(Settings)
        evidence = Evidence(settings.artifact, settings.evidence)
        engine = engines.engine(
            settings.artifact,
            threads=settings.threads or len(os.sched_getaffinity(0)),
            slots=settings.slots,
            context_tokens=settings.context_tokens,
        )
        serve(settings, engine, evidence)
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, one['loc'])) or 'settings'}: {one['msg']}" for one in error.errors())
        print("\n".join(problems), file=sys.stderr)
        return 2
    except (AssayError, EngineError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
