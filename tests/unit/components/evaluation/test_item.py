import pytest
from vthink.components.common.errors import UserError
from vthink.components.common.storage.names import join
from vthink.components.common.storage.s3 import Storage
from vthink.components.evaluation.item import FileLog, Journal, StoreLog

from .small_world import World, items_of


@pytest.fixture
def items(world: World):
    return items_of(world, ["<answer>A</answer>"] * len(world))


@pytest.fixture(params=["file", "store"])
def open_log(request, tmp_path, storage: Storage):
    """Opens the same log again, in a file or in the store."""
    if request.param == "file":
        return lambda: FileLog(tmp_path / "items.jsonl")
    return lambda: StoreLog(storage, join(storage.config.root_uri, "answers/"))


def test_what_was_kept_is_there_again_and_counts_as_asked(open_log, items):
    with Journal(open_log()) as journal:
        assert not journal.items
        journal.append(items[:3])
        journal.append(items[3:5])
        journal.append([])
    with Journal(open_log()) as journal:
        assert list(journal.items.values()) == items[:5]
        assert ("ordered", items[4].id) in journal
        assert ("shuffled", items[4].id) not in journal
        assert ("ordered", items[5].id) not in journal


def test_items_that_failed_can_be_asked_again_and_the_new_answer_counts(open_log, items):
    failed = items[0].model_copy(update={"error": "OSError: gone"})
    with Journal(open_log()) as journal:
        journal.append([failed, items[1]])
    with Journal(open_log()) as journal:
        assert journal.items["ordered", failed.id].error == "OSError: gone"
        journal.forget_failed()
        assert list(journal.items) == [("ordered", items[1].id)]
        journal.append([items[0]])
    with Journal(open_log()) as journal:
        assert journal.items["ordered", failed.id] == items[0]


def test_a_batch_in_the_store_is_one_object_that_stays_as_it_is(storage: Storage, items):
    prefix = join(storage.config.root_uri, "answers/")
    for batch in (items[:2], items[2:4]):
        with Journal(StoreLog(storage, prefix)) as journal:
            journal.append(batch)
    pieces = [piece.uri for piece in storage.list(prefix)]
    assert [storage.read_bytes(uri).count(b"\n") for uri in sorted(pieces)] == [2, 2]


def test_a_line_that_was_cut_off_is_dropped(tmp_path, items):
    path = tmp_path / "items.jsonl"
    path.write_bytes(items[0].to_line() + items[1].to_line()[:-9])
    with Journal(FileLog(path)) as journal:
        assert list(journal.items.values()) == items[:1]
        journal.append(items[1:2])
    assert path.read_bytes() == items[0].to_line() + items[1].to_line()


def test_two_processes_do_not_write_one_journal(tmp_path):
    with Journal(FileLog(tmp_path / "items.jsonl")):
        with pytest.raises(UserError, match="another evaluation is writing it"):
            FileLog(tmp_path / "items.jsonl")
    FileLog(tmp_path / "items.jsonl").close()


def test_a_file_that_is_no_journal_is_left_alone(tmp_path, items):
    path = tmp_path / "items.jsonl"
    path.write_bytes(items[0].to_line() + b"my notes\n" + items[1].to_line())
    with pytest.raises(UserError, match="line 2: Invalid JSON"):
        Journal(FileLog(path))
    assert b"my notes" in path.read_bytes()
    FileLog(path).close()  # it is not held any more
