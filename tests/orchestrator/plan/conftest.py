from tests.orchestrator.fixtures import (  # noqa: F401
    bare_environment,
    classes,
    either,
    lm,
    on_one_core,
    scores,
    store,
)
