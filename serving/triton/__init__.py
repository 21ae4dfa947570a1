"""`amsa deploy triton`: a model repository for NVIDIA Triton Inference Server, and the model that it runs."""
