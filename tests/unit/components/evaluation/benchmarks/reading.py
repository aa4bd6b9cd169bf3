"""Reading benchmarks whose videos are only names."""

from pathlib import Path

from vthink.components.common.rows.sample import Sample
from vthink.components.evaluation.ask import Answer
from vthink.components.evaluation.benchmarks.benchmark import Benchmark, QuestionSet
from vthink.components.evaluation.benchmarks.folder import DataFolder, load_questions
from vthink.components.evaluation.benchmarks.registry import BENCHMARKS
from vthink.components.evaluation.item import Item
from vthink.components.evaluation.measure import grade_answer
from vthink.components.evaluation.statistics import Resampling

from ..published import Published

RESAMPLING = Resampling(resamples=200)


def read(name: str, published: Published, folder: Path) -> QuestionSet:
    """Read a benchmark whose videos are only names."""
    published.write(folder)
    names = [*published.files, *list(published.videos.values())[:-1]]
    return load_questions(BENCHMARKS.get(name), DataFolder("data", names), lambda file: folder / file)


def graded(benchmark: Benchmark, samples: list[Sample], responses: list[str]) -> list[Item]:
    return [
        grade_answer(sample, Answer(sample.id, text), "model", "ordered", "video_thinker", benchmark)
        for sample, text in zip(samples, responses, strict=True)
    ]
