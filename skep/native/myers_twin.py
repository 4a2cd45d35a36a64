"""The middle of a shortest edit script: Myers' O(ND) search from both ends, in linear space.

The same lines are the kernel: myers.py has numba compile them, so that there is no second text to keep equal.
Source: E. W. Myers, An O(ND) Difference Algorithm and Its Variations, Algorithmica 1 (1986), 4b."""

from __future__ import annotations

from typing import Any


def middle(
    a: Any, b: Any, alo: int, ahi: int, blo: int, bhi: int, vf: Any, vb: Any, d_max: int
) -> tuple[int, int, bool]:
    """Where a shortest edit script of a[alo:ahi] into b[blo:bhi] may be cut in two: a place in each, and
    whether that was found within ``d_max`` edits from either end. If not, the place is the furthest that
    either search came to.

    a: int64[*], b: int64[*]; vf, vb: int64[2 * d_max + 3], scratch. Neither slice is empty, their first items
    are not equal, nor are their last."""
    n, m = ahi - alo, bhi - blo
    delta = n - m
    odd = delta % 2 != 0
    # On diagonal k = x - y the furthest x from the begin is vf[off + k]; vb is the same from the end, both
    # counted backwards. Out of the grid they go on, and meet nobody there.
    off = d_max + 1
    vf[off + 1] = 0
    vb[off + 1] = 0
    for d in range(d_max + 1):
        # A diagonal that has left the grid is not looked at again.
        for k in range(-d + 2 * max(0, d - m), d - 2 * max(0, d - n) + 1, 2):
            if k == -d or (k != d and vf[off + k - 1] < vf[off + k + 1]):
                x = vf[off + k + 1]
            else:
                x = vf[off + k - 1] + 1
            y = x - k
            while x < n and y < m and a[alo + x] == b[blo + y]:
                x += 1
                y += 1
            vf[off + k] = x
            c = delta - k
            if odd and -d < c < d and x <= n and y <= m and x + vb[off + c] >= n:
                u = n - vb[off + c]
                if u >= 0 and u - k >= 0:
                    return alo + x, blo + y, True
        for c in range(-d + 2 * max(0, d - m), d - 2 * max(0, d - n) + 1, 2):
            if c == -d or (c != d and vb[off + c - 1] < vb[off + c + 1]):
                x = vb[off + c + 1]
            else:
                x = vb[off + c - 1] + 1
            y = x - c
            while x < n and y < m and a[ahi - 1 - x] == b[bhi - 1 - y]:
                x += 1
                y += 1
            vb[off + c] = x
            k = delta - c
            if not odd and -d <= k <= d and x <= n and y <= m and x + vf[off + k] >= n:
                u = vf[off + k]
                if u <= n and u - k <= m:
                    return ahi - x, bhi - y, True
    x, y, best = 0, 0, -1
    for k in range(-d_max + 2 * max(0, d_max - m), d_max - 2 * max(0, d_max - n) + 1, 2):
        u = vf[off + k]
        if u <= n and u - k <= m and 2 * u - k > best:
            x, y, best = alo + u, blo + u - k, 2 * u - k
        u = vb[off + k]
        if u <= n and u - k <= m and 2 * u - k > best:
            x, y, best = ahi - u, bhi - u + k, 2 * u - k
    return x, y, False
