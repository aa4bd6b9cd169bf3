"""KServe's Python server (0.21.0), which is made to be the program of its process; here it is a part of ours.

- ``kserve.model_server`` parses the arguments of whatever process imports it, and ends that process when it does not
  like them (kserve/kserve ``python/kserve/kserve/model_server.py``, ``args, _ = parser.parse_known_args()``).
- Its FastAPI application is one for the process: the server takes no application, so routes and middleware are added
  to the global one, and a process can serve once.
- It listens on every address (``host="0.0.0.0"`` in ``protocol/rest/server.py``), whatever is configured around it.
- It logs two lines of timing per request, through handlers of its own.
"""

import logging
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from starlette.middleware import Middleware
from starlette.routing import BaseRoute


def import_kserve() -> ModuleType:
    """KServe's package, with its server, whatever the arguments of this process are."""
    arguments, sys.argv = sys.argv, sys.argv[:1]
    try:
        import kserve
        import kserve.model_server
    finally:
        sys.argv = arguments
    return kserve


def serve_routes(
    model_name: str,
    routes: Sequence[BaseRoute],
    middleware: Sequence[Middleware],
    *,
    host: str,
    port: int,
    grace_period_s: int,
    predict_hint: str,
) -> None:
    """Serve routes before KServe's own (health, metadata, metrics) until the process is told to stop, and then for
    ``grace_period_s`` those that run. Must be called in the main thread, once per process.

    ``model_name`` is for KServe's health and metadata routes; ``middleware`` goes around all routes; ``predict_hint``
    is what KServe's own prediction routes answer, as the model takes none of their inputs."""
    kserve: Any = import_kserve()

    class RegisteredModel(kserve.Model):
        def __init__(self) -> None:
            super().__init__(model_name)
            self.ready = True

        async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
            raise kserve.errors.InvalidInput(predict_hint)

    class Server(kserve.ModelServer):
        async def _serve(self) -> None:
            self._rest_server.config.host = host  # made by `start`, not yet listening
            await super()._serve()

    application = kserve.model_server.app
    application.router.routes.extend(routes)
    for layer in middleware:
        application.add_middleware(layer.cls, *layer.args, **layer.kwargs)
    server = Server(http_port=port, enable_grpc=False, workers=1, grace_period=grace_period_s, event_loop="asyncio")
    server.start([RegisteredModel()])


def log_like_kserve(package: str) -> None:
    """Send a package's log lines where KServe's go, and leave out KServe's timing of each request."""
    kserve: Any = import_kserve()
    if not logging.getLogger("kserve").handlers:
        kserve.logging.configure_logging()
    logging.getLogger("kserve.trace").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message="ORJSONResponse is deprecated")  # KServe's own use of it
    logger = logging.getLogger(package)
    if not logger.handlers:
        logger.handlers = list(logging.getLogger("kserve").handlers)
        logger.setLevel(logging.INFO)
        logger.propagate = False
