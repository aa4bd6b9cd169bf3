import pytest
from vthink.components.common.errors import UserError
from vthink.components.evaluation.benchmarks.benchmark import Entry


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"A": "one", "B": "two"}, {"A": "one", "B": "two"}),
        ({"a": "one", "B.": "two"}, {"A": "one", "B": "two"}),
        ({"A": "one", "B": None, "C": "three", "D": ""}, {"A": "one", "C": "three"}),
        (["A. one", "B. two", "three"], {"A": "one", "B": "two", "C": "three"}),
        (["(A) one", "(B) two"], {"A": "one", "B": "two"}),
        (["A. Smith", "Jones"], {"A": "A. Smith", "B": "Jones"}),
        (["one", None, "three"], {"A": "one", "C": "three"}),
        (["White", "White"], {"A": "White", "B": "White "}),
        ([1, 2.5], {"A": "1", "B": "2.5"}),
        ("['one', 'two']", {"A": "one", "B": "two"}),
        ('["one", "two"]', {"A": "one", "B": "two"}),
        ("A. one\nB. two\n", {"A": "one", "B": "two"}),
        (None, {}),
        ("", {}),
    ],
)
def test_options_are_read_as_published(options, expected):
    assert Entry("file.json", 1, {"options": options}).options("options") == expected


@pytest.mark.parametrize("options", [{"AB": "one"}, {"A": "x", "a": "y"}, 5, ["x"] * 27])
def test_what_is_no_set_of_options_is_refused_with_its_place(options):
    with pytest.raises(UserError, match=r"^file.json, row 7, field 'options': "):
        Entry("file.json", 7, {"options": options}).options("options")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", "B"),
        ("b", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("B. a dog", "B"),
        ("B: as seen", "B"),
        ("B - a dog", "B"),
        ("B because of it", "B"),
        ("A dog", "B"),
        ("a  dog.", "B"),
    ],
)
def test_true_letters_are_read_with_text_behind_them(answer, expected):
    options = {"A": "a cat", "B": "a dog"}
    assert Entry("f", 1, {"answer": answer}).letter("answer", options) == expected


@pytest.mark.parametrize("answer", ["C", "a bird", "", None, 3, ["A"], "AB"])
def test_an_answer_that_is_no_option_is_refused(answer):
    with pytest.raises(UserError, match="f, row 1, field 'answer'"):
        Entry("f", 1, {"answer": answer}).letter("answer", {"A": "a cat", "B": "a dog"})


def test_the_text_of_an_option_wins_over_a_letter_where_answers_are_texts():
    options = {"A": "B", "B": "A"}
    entry = Entry("f", 1, {"answer": "A"})
    assert entry.letter("answer", options) == "A"
    assert entry.letter("answer", options, by_text=True) == "B"
