"""A window of Chromium, for the tests of pages."""

import os
from collections.abc import Iterator

import pytest
from browser import CHROMIUM, Browser


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("no chromium: apt-get install chromium")
        pytest.skip("needs Chromium: run `make browser`")
    with Browser() as browser:
        yield browser
