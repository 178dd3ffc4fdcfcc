"""How fast a model is, and how good: what the kernel imports of it knows neither numpy nor llama_cpp."""
