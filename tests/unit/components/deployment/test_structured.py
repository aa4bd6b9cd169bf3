from vthink.components.deployment.structured import StructuredAnswer

TEXT = "<time>00:01-00:02</time><caption>a square</caption><think>it moves</think>So right. <answer>B</answer>"


def test_structured_view_has_segments_reasoning_and_answer() -> None:
    view = StructuredAnswer.parse(TEXT).model_dump(mode="json")
    assert view["segments"] == [{"start_s": 1.0, "end_s": 2.0, "caption": "a square", "thought": "it moves"}]
    assert "So right." in view["reasoning"]
    assert view["answer"] == "B"
    assert StructuredAnswer.model_validate(view) == StructuredAnswer.parse(TEXT)
