"""The WKV recurrence of RWKV-7: one token, and a sequence in chunked matrix form.

Per head the state S is [N key rows, N value columns], float32; r, w, k, v, a and b of a token are
row vectors [N], and one token does

    S_t = diag(w_t) S_{t-1} + b_t^T (a_t S_{t-1}) + k_t^T v_t          y_t = r_t S_t

with a = -kk and b = kk * iclr (the removal key and its in-context learning rate). The authors write
the transpose. With a key in every row, what a token reads and writes are sums of whole rows, which
vector units add without shuffling. Both functions below take the decay as log w, always in float32:
w is a product over many tokens and loses meaning in bfloat16.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Tokens of one chunk. Inside a chunk keys are divided by the decay since its start, at most
# exp(exp(-0.5) * 32) = 2.7e8: far inside float32's range, so each product stays exact to rounding.
CHUNK = 32


def wkv_step(
    state: Tensor, r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    """One token: `state` [B, H, N, N], the rest [B, H, N], all float32 -> y [B, H, N], state."""
    removed = a.unsqueeze(-2) @ state  # [B, H, 1, N]: what the removal key reads before the decay
    state = torch.addcmul(b.unsqueeze(-1) * removed, log_w.exp().unsqueeze(-1), state)
    state = torch.addcmul(state, k.unsqueeze(-1), v.unsqueeze(-2))
    return (r.unsqueeze(-2) @ state).squeeze(-2), state


def wkv_sequence(
    state: Tensor, r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    """A sequence: `state` [B, H, N, N], the rest [B, T, H, N], float32 -> y [B, T, H, N], state.

    With W_t the product of the decays since the chunk's start, u_t = a_t S_{t-1}, and
    a~ = W_{t-1} a_t, r~ = W_t r_t, b~ = b_t / W_t, k~ = k_t / W_t (rows of C x N matrices):

        U = (I - tril(a~ b~^T, -1))^-1 (a~ S_0 + tril(a~ k~^T, -1) V)
        Y = r~ S_0 + tril(r~ b~^T) U + tril(r~ k~^T) V
        S_C = diag(W_C) (S_0 + b~^T U + k~^T V)

    which is affine in S_0. So everything but S_C = M S_0 + Z is one batched product over all
    chunks, and only that line runs chunk after chunk.
    """
    batch, length, heads, size = r.shape
    chunk = min(CHUNK, 1 << (length - 1).bit_length())
    chunks = -(-length // chunk)

    # [B, T, H, N] -> [B, H, chunks, C, N]; a padding token (all zeros, log w too) changes nothing
    def split(x: Tensor) -> Tensor:
        x = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, chunks * chunk - length))
        return x.view(batch, chunks, chunk, heads, size).permute(0, 3, 1, 2, 4)

    r, log_w, k, v, a, b = (split(x) for x in (r, log_w, k, v, a, b))
    log_decay = log_w.cumsum(-2)  # log W_t
    decay_inv = (-log_decay).exp()
    a_in = a * (log_decay - log_w).exp()
    r_in = r * log_decay.exp()
    b_out, k_out = b * decay_inv, k * decay_inv
    decay_end = log_decay[..., -1:, :].exp()  # [B, H, chunks, 1, N]

    out_t = torch.cat((b_out, k_out), -2).transpose(-1, -2)  # [B, H, chunks, N, 2C]
    a_b, a_k = _halves(a_in @ out_t, -1)
    r_b, r_k = _halves(r_in @ out_t, 0)
    solve = _unit_lower_inverse(a_b)
    u_state, u_value = solve @ a_in, solve @ (a_k @ v)  # U = u_state S_0 + u_value
    y_state, y_value = r_in + r_b @ u_state, r_b @ u_value + r_k @ v

    b_end, k_end = ((x * decay_end).transpose(-1, -2) for x in (b_out, k_out))
    transition = b_end @ u_state + torch.diag_embed(decay_end.squeeze(-2))
    written = b_end @ u_value + k_end @ v

    starts = []
    for move, write in zip(transition.unbind(2), written.unbind(2), strict=True):
        starts.append(state)
        state = move @ state + write
    y = y_state @ torch.stack(starts, 2) + y_value
    return y.permute(0, 2, 3, 1, 4).reshape(batch, chunks * chunk, heads, size)[:, :length], state


def _halves(products: Tensor, diagonal: int) -> tuple[Tensor, Tensor]:
    """The [C, C] halves of [C, 2C], each cut to the pairs (t, i) where token i comes before (or at)
    t.
    """
    left, right = products.chunk(2, -1)
    return left.tril(diagonal), right.tril(diagonal)


def _unit_lower_inverse(strict_lower: Tensor) -> Tensor:
    """(I - A)^-1 for strictly lower triangular A [..., C, C], C a power of two.

    Doubles the size of the inverted diagonal blocks: the corner of two neighbours is X_22 A_21
    X_11. Forward substitution in log2(C) batched steps; the shorter product (I + A)(I + A^2)(I +
    A^4)… would cancel badly where a token repeats (powers of A grow like binomials).
    """
    size = strict_lower.shape[-1]
    index = torch.arange(size, device=strict_lower.device)
    inverse = torch.eye(size, dtype=strict_lower.dtype, device=strict_lower.device)
    block = 1
    while block < size:
        pair = index // (2 * block)
        lower = (index // block) % 2 == 1
        corner = (pair[:, None] == pair[None, :]) & lower[:, None] & ~lower[None, :]
        inverse = inverse + inverse @ (strict_lower * corner) @ inverse
        block *= 2
    return inverse
