"""`engineroom bench`: how fast a running server is, measured from outside with vLLM's load generator."""
