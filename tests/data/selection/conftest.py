"""Preparing rows made by hand, in a directory of the test."""

from pathlib import Path

import pytest
from prepared_data import Prepare, prepare_in

from data.tokens.chat import Chat


@pytest.fixture
def prepare(tmp_path: Path, chat: Chat) -> Prepare:
    return prepare_in(tmp_path, chat)
