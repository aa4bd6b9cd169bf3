"""Teach a multimodal LLM to reason over video, and serve it, as one Kubeflow pipeline."""

__version__ = "0.1.0"
