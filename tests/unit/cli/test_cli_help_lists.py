"""Lists of commands in ``--help``: sentences are told whole, aliases not at all."""

from __future__ import annotations

import pytest

from leasehold.cli import frame


@pytest.mark.parametrize("group", ["lease", "provider", "node", "images", "volume"])
def test_no_sentence_is_cut(group: str, capsys: pytest.CaptureFixture[str]):
    frame.run([group, "--help"])
    listed = capsys.readouterr().out.partition("Commands:")[2]
    assert listed
    assert "..." not in listed
    assert "\n  exec " not in listed
