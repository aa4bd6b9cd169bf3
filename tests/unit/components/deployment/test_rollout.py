"""What a server that knows nothing of ours is told: the chat template puts a question as training did."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from vthink.components.common.chat import ChatEncoder
from vthink.components.common.config import ModelConfig, VideoConfig
from vthink.components.common.models import build_tiny, fetch_model, load_model
from vthink.components.common.prompts import TEMPLATES
from vthink.components.common.samples import PROBLEM_TYPES
from vthink.components.deployment.client import ask
from vthink.components.deployment.rollout import TrainedModel, serving_template
