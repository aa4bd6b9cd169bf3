"""``vthink gate`` on folders as ``vthink evaluate --benchmark`` leaves them."""

import pytest

from .test_compare import vthink, written


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    (folder / "rules.yaml").write_text(
        "- {metric: accuracy, at_least: 0.8}\n- {metric: accuracy, benchmark: video-holmes, above: champion}\n"
    )
    (folder / "damaged.yaml").write_text("- {metric: accuracy\n")
    written(folder / "old", 10)
    written(folder / "new", 50)
    return folder


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (
            ["{metric: accuracy, benchmark: video-holmes, not_worse_than: champion, by: 0.01}"],
            0,
            "gate passed: 1 of 1 rules hold",
        ),
        (["--rules", "{folder}/rules.yaml"], 0, "gate passed: 2 of 2 rules hold"),
        (
            ["{metric: accuracy, at_least: 0.9}", "--rules", "{folder}/rules.yaml"],
            3,
            "FAIL  accuracy at least 0.9: 0.8333 over 60 questions",
        ),
        (["{metric: acuracy, at_least: 0.9}"], 1, "unknown metric 'acuracy'; did you mean 'accuracy'?"),
        (["{metric: accuracy, benchmark: mmvu, at_least: 0.9}"], 1, "was not measured; there are: video-holmes"),
        (
            ["video_holmes.accuracy > 0.9"],
            1,
            "write {metric: accuracy, above: base} or {metric: accuracy, at_least: 0.5}",
        ),
        (["{metric: accuracy"], 1, "not YAML"),
        (["--rules", "{folder}/damaged.yaml"], 1, "damaged.yaml: not YAML"),
        (["--rules", "{folder}/nothing.yaml"], 1, "nothing.yaml: No such file or directory"),
        ([], 1, "there are no rules: give one, such as '{metric: accuracy, at_least: 0.4}'"),
        # Without the results of a model that a rule compares with, nothing is judged and nothing passes.
        (
            ["{metric: accuracy, above: base}"],
            1,
            "rule 'accuracy above base' needs the results of base: give --base DIR",
        ),
        (["{metric: accuracy, above: sft}"], 1, "there is no model 'sft' in this evaluation; it has: candidate, cham"),
    ],
)
def test_a_gate_says_line_by_line_what_holds_and_exits_by_it(folders, arguments, code, line):
    arguments = [argument.replace("{folder}", str(folders)) for argument in arguments]
    done = vthink("gate", *arguments, "--candidate", folders / "new", "--champion", folders / "old")
    assert done.returncode == code, done.stderr
    assert line in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == (code == 1)


def test_a_rule_about_the_champion_needs_its_results(folders):
    done = vthink("gate", "{metric: accuracy, not_worse_than: champion, by: 0.01}", "--candidate", folders / "new")
    assert done.returncode == 1
    assert done.stderr == (
        "vthink: rule 'accuracy not worse than champion by 0.01' needs the results of champion: give --champion DIR\n"
    )
