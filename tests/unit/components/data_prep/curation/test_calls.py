"""The journal of a curation survives a kill."""

from __future__ import annotations

import dataclasses

import pytest
from vthink.components.common.errors import UserError
from vthink.components.data_prep.curation.calls import CallJournal, CallRecord, Decision

CALL = CallRecord(
    key="aa" * 32,
    id="a",
    role="judge",
    model="m",
    step="judge",
    attempt=0,
    text="one\ntwo \ud800",
    finished=True,
    tokens=(3, 4),
    usd=0.5,
)
DROPPED = Decision(key="cc" * 32, id="a", dropped="judge_wrong", detail="4 traces")
KEPT = Decision(key="dd" * 32, id="b", rows=("{}",))


def test_a_journal_loses_a_torn_last_line_and_nothing_else(tmp_path):
    path = tmp_path / "j.jsonl"
    with CallJournal(path) as journal:
        journal.add(CALL)
        journal.add(dataclasses.replace(CALL, key="bb" * 32, usd=0.25))
    whole = path.read_bytes()
    for torn in (b'{"key": "cc', b"{", b"\x00" * 30, b'{"key": 5}\n'):
        path.write_bytes(whole + torn)
        with CallJournal(path) as journal:
            assert journal.spent_usd == 0.75
            assert journal.call(CALL.key) == CALL
            assert journal.call("cc" * 32) is None
            assert "cc" * 32 not in journal
            journal.add(DROPPED)
            journal.add(KEPT)
        assert path.read_bytes().startswith(whole)
        with CallJournal(path) as journal:
            assert (journal.decision(DROPPED.key), journal.decision(KEPT.key)) == (DROPPED, KEPT)
    path.write_bytes(b"{}\n" + whole)
    with pytest.raises(UserError, match=":1: damaged"):
        CallJournal(path)


def test_a_decision_of_an_earlier_version_says_only_what_there_was_to_say(tmp_path):
    (tmp_path / "j.jsonl").write_text('{"key": "%s", "id": "b", "rows": ["{}"]}\n' % KEPT.key)  # noqa: UP031
    with CallJournal(tmp_path / "j.jsonl") as journal:
        assert journal.decision(KEPT.key) == KEPT


def test_a_journal_is_written_by_one_at_a_time(tmp_path):
    with CallJournal(tmp_path / "j.jsonl"), pytest.raises(UserError, match="another vthink data curate"):
        CallJournal(tmp_path / "j.jsonl")
