"""`python -m containers.gateway.health`: the image's HEALTHCHECK. Exits 0 when the server is alive.

Liveness, not readiness: a container whose engine is loading 100 GB must not be killed for it.
"""

import http.client
import os
import ssl
import sys


def main() -> int:
    """Ask the server in this container."""
    port = int(os.environ.get("AIP_HTTP_PORT") or os.environ.get("ASSAY_PORT") or 8080)
    connection: http.client.HTTPConnection
    if os.environ.get("ASSAY_TLS_CERTIFICATE"):
        # Of ourselves, over loopback: the certificate's name is another one.
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=ssl._create_unverified_context())
    else:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health/live")
        return int(connection.getresponse().status != 200)
    except OSError:
        return 1


if __name__ == "__main__":
    sys.exit(main())
