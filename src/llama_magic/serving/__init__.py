"""The OpenAI-compatible server over a loaded model, and the client of a server elsewhere."""
