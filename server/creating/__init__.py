"""Making models: from a Modelfile, from a request, and the work behind both."""
