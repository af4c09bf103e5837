"""How fast a model runs, how much memory it takes, and how true its packed weights are.

`speed` and `quality` measure inside a process of their own, which `worker` is and `process` starts;
`runs` puts a measurement together, `peer` runs llama.cpp's beside it, `tables` writes them down.
What runs in the calling process imports no PyTorch.
"""
