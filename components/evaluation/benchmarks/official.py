"""Published rules of benchmarks, quirks included, in our own words: what ``--grader official`` grades with.

Each takes the whole response, as the programs do, and gives the metrics that it decides. Where a benchmark's program
asks a language model, only its rules are here."""

import re

from ...common.rows.sample import Sample


def vsi_bench(sample: Sample, response: str) -> dict[str, float]:
    """lmms-eval ``tasks/vsibench/utils.py`` (0ae0b9f): the first word without its full stops, equal to the letter but
    for case, or as a `float`. Quirks: "B) left" and "4.2m" are wrong, "4 or 5" is 4."""
    word = response.split(" ")[0].rstrip(".").strip()
    if sample.problem_type == "multiple_choice":
        return {"accuracy": float(word.lower() == sample.answer.lower())}
    try:
        predicted, truth = float(word), float(sample.answer)
        error = abs(predicted - truth) / truth
    except (ValueError, ZeroDivisionError):
        return {"accuracy": 0.0, "mra": 0.0, "mra_inclusive": 0.0}
    # As there, in floating point: 1 − linspace(0.5, 0.95, 10).
    limits = [1 - (0.5 + step * ((0.95 - 0.5) / 9)) for step in range(9)] + [1 - 0.95]
    inclusive = sum(error <= limit for limit in limits) / 10
    strict = sum(error < limit for limit in limits) / 10
    return {"accuracy": float(error <= limits[-1]), "mra": strict, "mra_inclusive": inclusive}


_LEAD_INS = (
    *("The best answer is", "The correct answer is", "The answer is", "The answer"),
    *("The best option isThe correct option is", "Best answer:Best option:"),  # a comma is missing there, twice
)


def videomme(sample: Sample, response: str) -> dict[str, float]:
    """lmms-eval ``tasks/videomme/utils.py`` (0696573): some lead-ins are cut out, then the first of the capitals A to D
    counts, wherever it stands. Quirks: "Both look alike" is B, "b" is nothing, "<answer>" holds no capital."""
    text = response.strip()
    for lead_in in _LEAD_INS:
        text = text.replace(lead_in, "")
    match = re.search("[ABCD]", text)
    return {"accuracy": float(match is not None and match[0] == sample.answer)}


_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'


def mvbench(sample: Sample, response: str) -> dict[str, float]:
    """lmms-eval ``tasks/mvbench/utils.py`` (1ab9504): "B. text" is B; else the first letter from A to E that stands
    alone in the text without punctuation. Quirks: in "a man walks" that is A; letters behind E are unknown."""
    marked = re.match(r"([A-E])\.\s*.+$", response.strip(), re.IGNORECASE)
    if marked and "\n" not in response.strip():
        return {"accuracy": float(marked[1].upper() == sample.answer)}
    text = plain = response.replace("\n", " ").replace("\t", " ").strip()
    in_number = re.search(r"\d,\d", plain) is not None
    for mark in _PUNCTUATION:
        gone = f"{mark} " in plain or f" {mark}" in plain or in_number
        text = text.replace(mark, "" if gone else " ")
    # There the flag stands where the number of replacements belongs: re.UNICODE is 32.
    text = re.sub(r"(?!<=\d)(\.)(?!\d)", "", text, count=32)
    alone = re.search(r"\b([A-E])\b", text.strip("'").strip('"').strip(")").strip("(").strip().lower(), re.IGNORECASE)
    return {"accuracy": float(alone is not None and alone[1].upper() == sample.answer)}


def tempcompass(sample: Sample, response: str) -> dict[str, float]:
    """TempCompass ``eval_yes_no.py`` (75361fd), without its language model: the response begins with yes, else with no.
    Quirks: "nothing" begins with no, " yes" with neither. Its other tasks stay strict."""
    if sample.metadata.get("rule") != "yes_no":
        return {}
    text = response.replace("</s>", "").lower()
    begins = "yes" if text.startswith("yes") else "no" if text.startswith("no") else None
    return {"accuracy": float(begins == sample.answer)}
