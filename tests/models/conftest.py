"""A model directory for every test that loads one."""

import shutil

import pytest
import tiny_models


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_models.save_tiny("llama", tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture
def copy(llama, tmp_path):
    """A model directory that a test may spoil."""
    return shutil.copytree(llama, tmp_path / "llama")


@pytest.fixture(scope="module")
def lora(llama, tmp_path_factory):
    return tiny_models.save_adapter(llama, tmp_path_factory.mktemp("adapter") / "lora")
