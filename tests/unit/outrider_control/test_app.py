"""The control plane's program says what it is not, and fails."""

from __future__ import annotations

import pytest

from outrider_control import app


def test_says_that_there_is_none_and_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main() == 2
    assert "this version has no control plane" in capsys.readouterr().err
