from tests.orchestrator.fixtures import (  # noqa: F401
    bare_environment,
    classes,
    either,
    lm,
    one_thread,
    store,
)
