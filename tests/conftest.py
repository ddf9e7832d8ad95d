"""What all tests share: the asyncio backend, and what a run requires of its machine."""

import pytest


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
