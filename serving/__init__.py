"""`amsa serve`: a page and an HTTP API around one `Upscaler`."""
