"""Reads a `config.pbtxt` by Triton's own schema."""

from __future__ import annotations

from typing import Any

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2


def parsed(text: str) -> Any:
    """A config.pbtxt, as Triton's own schema reads it."""
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def as_triton_says(text: str) -> dict[str, Any]:
    """What Triton gives to a model as `model_config`; protobuf's JSON has long integers as text, Triton's has not."""
    message = json_format.MessageToDict(parsed(text), preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    for tensor in (*message["input"], *message["output"]):
        tensor["dims"] = [int(dim) for dim in tensor["dims"]]
    return message
