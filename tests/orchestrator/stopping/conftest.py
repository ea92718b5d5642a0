from tests.orchestrator.fixtures import store  # noqa: F401
