"""Calibration: which layers of an exported model can be int8, with which ranges, and which must stay float32 in float16."""
