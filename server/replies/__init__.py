"""From a request to the pieces of its reply: options, prompt, rules, generation."""
