"""The TensorRT runtime: CUDA, device memory, engines, and the backend that the `Upscaler` runs them through."""
