"""Linear algebra, by the operation counts of the textbook algorithms that LAPACK runs.

Golub & Van Loan, Matrix Computations, 4th edition (GvL; section or figure beside each formula) and LAPACK
Working Note 41 (LAWN 41, table "operation counts"). Elimination is counted exactly, pivot search apart;
iterations (eigenvalues, SVD) by the usual leading terms. A complex operation counts four real ones.
"""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor

from pytest_flops.formulas.registry import register_flop_formula


def batch(A: Tensor) -> int:
    """Return how many matrices `A` holds, times four if they are complex."""
    return prod(A.shape[:-2]) * (4 if A.is_complex() else 1)


def lu(m: int, n: int) -> int:
    """Return the FLOPs of an LU factorisation (GvL 3.2.9): step k divides m−k and updates (m−k)·(n−k)."""
    r = min(m, n)
    first, squares = r * (r + 1) // 2, r * (r + 1) * (2 * r + 1) // 6
    divisions = r * m - first
    updates = r * m * n - (m + n) * first + squares
    return divisions + 2 * updates


def cholesky_factor(n: int) -> int:
    """Return the FLOPs of a Cholesky factorisation (GvL 4.2.5): 1² + 2² + … + n²."""
    return n * (n + 1) * (2 * n + 1) // 6


def triangular(n: int, k: int) -> int:
    """Return the FLOPs of a triangular solve with k right-hand sides (GvL 3.1.2)."""
    return n * n * k


def reflectors(m: int, n: int, k: int) -> int:
    """Return the FLOPs of k Householder reflections of an m×n matrix, or of the Q they make (LAWN 41, ORGQR).

    For k = n ≤ m it is 2mn² − 2n³/3, as for the factorisation (GvL 5.2.1).
    """
    return (12 * m * n * k - 6 * (m + n) * k * k + 4 * k * k * k) // 3


@register_flop_formula(["aten::linalg_lu_factor_ex", "aten::linalg_lu"])
def lu_factor(A: Tensor, *_: Any, **__: Any) -> int:
    """Count the elimination."""
    return lu(*A.shape[-2:]) * batch(A)


@register_flop_formula(["aten::_linalg_det", "aten::_linalg_slogdet"])
def det(A: Tensor, *_: Any, **__: Any) -> int:
    """Count the elimination and the product of the diagonal (or the sum of its logarithms)."""
    n = A.shape[-1]
    return (lu(n, n) + n) * batch(A)


@register_flop_formula("aten::linalg_inv_ex")
def inv(A: Tensor, *_: Any, **__: Any) -> int:
    """Count 2n³: the elimination, and a solve for the n columns of the identity (GvL 3.4)."""
    n = A.shape[-1]
    return 2 * n * n * n * batch(A)


@register_flop_formula("aten::_linalg_solve_ex")
def solve(A: Tensor, B: Tensor, *_: Any, out: Any, **__: Any) -> int:
    """Count the elimination, and two triangular solves."""
    n = A.shape[-1]
    solution: Tensor = out[0]
    return lu(n, n) * batch(A) + 2 * n * solution.numel() * _complex(A)


@register_flop_formula(["aten::linalg_lu_solve", "aten::linalg_ldl_solve"])
def lu_solve(A: Tensor, pivots: Tensor, B: Tensor, *_: Any, out: Tensor, **__: Any) -> int:
    """Count two triangular solves."""
    return 2 * A.shape[-1] * out.numel() * _complex(A)


@register_flop_formula("aten::linalg_solve_triangular")
def solve_triangular(A: Tensor, B: Tensor, *_: Any, out: Tensor, **__: Any) -> int:
    """Count n² per right-hand side."""
    return A.shape[-1] * out.numel() * _complex(A)


@register_flop_formula("aten::triangular_solve")
def triangular_solve(B: Tensor, A: Tensor, *_: Any, out: Any, **__: Any) -> int:
    """Count as `solve_triangular`."""
    return solve_triangular(A, B, out=out[0])


@register_flop_formula("aten::linalg_cholesky_ex")
def cholesky(A: Tensor, *_: Any, **__: Any) -> int:
    """Count n(n+1)(2n+1)/6."""
    return cholesky_factor(A.shape[-1]) * batch(A)


@register_flop_formula("aten::cholesky_inverse")
def cholesky_inverse(L: Tensor, *_: Any, **__: Any) -> int:
    """Count 2n³/3: the inverse of the triangle and its product with itself (LAWN 41, POTRI)."""
    n = L.shape[-1]
    return 2 * n * n * n // 3 * batch(L)


@register_flop_formula(["aten::cholesky_solve", "aten::_cholesky_solve_helper"])
def cholesky_solve(B: Tensor, L: Tensor, *_: Any, out: Tensor, **__: Any) -> int:
    """Count two triangular solves."""
    return 2 * L.shape[-1] * out.numel() * _complex(L)


@register_flop_formula("aten::linalg_ldl_factor_ex")
def ldl(A: Tensor, *_: Any, **__: Any) -> int:
    """Count n³/3, as for Cholesky (GvL 4.4)."""
    return cholesky(A)


@register_flop_formula("aten::geqrf")
def geqrf(A: Tensor, *_: Any, **__: Any) -> int:
    """Count R and the reflectors."""
    m, n = A.shape[-2:]
    return reflectors(m, n, min(m, n)) * batch(A)


@register_flop_formula("aten::linalg_qr")
def qr(A: Tensor, mode: str = "reduced", *_: Any, out: Any, **__: Any) -> int:
    """Count R, and the columns of Q that are asked for."""
    m, n = A.shape[-2:]
    k = min(m, n)
    q = reflectors(m, out[0].shape[-1], k) if mode != "r" else 0
    return (reflectors(m, n, k) + q) * batch(A)


@register_flop_formula("aten::linalg_householder_product")
def householder_product(A: Tensor, tau: Tensor, *_: Any, **__: Any) -> int:
    """Count Q from its reflectors."""
    m, n = A.shape[-2:]
    return reflectors(m, n, tau.shape[-1]) * batch(A)


@register_flop_formula("aten::ormqr")
def ormqr(A: Tensor, tau: Tensor, C: Tensor, left: bool = True, *_: Any, **__: Any) -> int:
    """Count 2nk·(2m−k) to apply k reflectors of length m to n columns (LAWN 41, ORMQR)."""
    m, n = C.shape[-2:] if left else reversed(C.shape[-2:])
    k = tau.shape[-1]
    return 2 * n * k * (2 * m - k) * batch(C)


@register_flop_formula("aten::_linalg_svd")
def svd(A: Tensor, full_matrices: bool = False, compute_uv: bool = True, *_: Any, **__: Any) -> int:
    """Count the Golub-Reinsch SVD (GvL figure 8.6.1): Σ alone, with thin, or with whole U and V.

    `svdvals`, `eigvals` and `eigvalsh` ask for the vectors as well as soon as anything watches, a trace too.
    """
    m, n = max(A.shape[-2:]), min(A.shape[-2:])
    if not compute_uv:
        return (12 * m * n * n - 4 * n * n * n) // 3 * batch(A)
    if full_matrices:
        return (4 * m * m * n + 8 * m * n * n + 9 * n * n * n) * batch(A)
    return (14 * m * n * n + 8 * n * n * n) * batch(A)


@register_flop_formula("aten::_linalg_eigh")
def eigh(A: Tensor, UPLO: str = "L", compute_v: bool = True, *_: Any, **__: Any) -> int:
    """Count the symmetric QR algorithm (GvL 8.3.3): 9n³ with vectors, 4n³/3 without."""
    n = A.shape[-1]
    return (9 * n * n * n if compute_v else 4 * n * n * n // 3) * batch(A)


@register_flop_formula("aten::linalg_eig")
def eig(A: Tensor, *_: Any, **__: Any) -> int:
    """Count the QR algorithm with vectors, 25n³ (GvL 7.5.6)."""
    n = A.shape[-1]
    return 25 * n * n * n * batch(A)


@register_flop_formula("aten::_linalg_eigvals")
def eigvals(A: Tensor, *_: Any, **__: Any) -> int:
    """Count the QR algorithm without vectors, 10n³ (GvL 7.5.6)."""
    n = A.shape[-1]
    return 10 * n * n * n * batch(A)


@register_flop_formula("aten::linalg_pinv.atol_rtol_tensor")
def pinv(A: Tensor, *_: Any, hermitian: bool = False, **__: Any) -> int:
    """Count the decomposition, the reciprocals, the scaling of U and its product with V."""
    m, n = max(A.shape[-2:]), min(A.shape[-2:])
    decomposition = eigh(A) if hermitian else svd(A)
    return decomposition + (n + m * n + 2 * m * n * n) * batch(A)


@register_flop_formula("aten::linalg_lstsq")
def lstsq(A: Tensor, B: Tensor, *_: Any, driver: str | None = None, **__: Any) -> int:
    """Count QR and its use (GvL 5.3.2), or with `driver` gelsd or gelss the SVD; then k solutions."""
    m, n = A.shape[-2:]
    k = B.shape[-1] if B.ndim >= A.ndim else 1
    r = min(m, n)
    decomposition = svd(A) if driver in ("gelsd", "gelss") else geqrf(A)
    return decomposition + k * r * (4 * m - r) * batch(A)


@register_flop_formula("aten::linalg_matrix_exp")
def matrix_exp(A: Tensor, *_: Any, **__: Any) -> int:
    """Count the Taylor polynomial of degree 18, 5 products of matrices (Bader, Blanes & Casas 2019).

    A norm so small that a lower degree does, or so large that the result is squared, is data.
    """
    n = A.shape[-1]
    return 5 * (2 * n - 1) * n * n * batch(A)


@register_flop_formula(["aten::linalg_matrix_sqrth", "aten::linalg_polar"])
def spectral_function(A: Tensor, *_: Any, **__: Any) -> int:
    """Count a singular (or spectral) decomposition and two products with its vectors."""
    m, n = max(A.shape[-2:]), min(A.shape[-2:])
    return svd(A) + 4 * m * n * n * batch(A)


@register_flop_formula("aten::linalg_cross")
def cross(a: Tensor, b: Tensor, *_: Any, out: Tensor, **__: Any) -> int:
    """Count two products and a difference per element."""
    return 3 * out.numel() * (4 if out.is_complex() else 1)


def _complex(A: Tensor) -> int:
    return 4 if A.is_complex() else 1
