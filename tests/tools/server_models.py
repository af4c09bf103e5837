"""Small models in a store, for tests of the server: real GGUF files made by the real converter."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

from rwkv_core.checkpoint import open_checkpoint
from rwkv_core.checkpoint.convert import convert_to_gguf
from rwkv_core.tokenizer import WorldTokenizer
from server.store.names import ModelName
from server.store.store import Store
from server.store.stored_model import ModelParts, write_model
from tests.tools.random_checkpoint import TINY, random_tensors, write_pth

# Every byte is a token, id 0 ends a text.
BYTES = WorldTokenizer([None, *(bytes([value]) for value in range(256))])
SMALL = replace(TINY, vocab_size=257)


def write_endless_gguf(path: Path, *, name: str = "RWKV7 World endless", seed: int = 0) -> None:
    """A random model that never ends a reply by itself, so that a test decides when it ends."""
    tensors = random_tensors(SMALL, seed)
    # Together they put the logit of token 0, the end of text, 64 below the others.
    tensors["ln_out.bias"].fill_(1.0)
    tensors["head.weight"][0].fill_(-1.0)
    source = path.with_suffix(".pth")
    write_pth(source, tensors)
    with closing(open_checkpoint(source)) as checkpoint:
        convert_to_gguf(checkpoint, BYTES, path, name=name)
    source.unlink()


def add_endless_model(
    store: Store, name: str, folder: Path, parts: ModelParts | None = None
) -> None:
    """Registers an endless model under `name`, which decides its prompt format."""
    file = folder / "endless.gguf"
    write_endless_gguf(file)
    blob = store.add_blob(file)
    write_model(store, ModelName.parse(name), blob, parts or ModelParts())
