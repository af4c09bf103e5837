"""What stands on the wire: requests, answers and errors, as Go and Ollama write them."""
