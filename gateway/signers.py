"""Who has signed a call: a signature names nobody, so the secrets of all who could have signed are tried."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from gateway.secrets import PAUSE_SECONDS
from policies.concealed import Concealed
from policies.model import Proof
from policies.refusals import IdentityUnavailable, SecretUnavailable, WebhookNotVerified

if TYPE_CHECKING:
    from gateway.means import Means
    from policies.model import Call, Caller, PolicySet

#: A proof, where its secret lies, and whether that has signed the call. The last may raise ValueError for a text that
#: is no secret of its scheme; what it says goes on record.
Candidate = tuple[Proof, str, Callable[[Concealed[str]], bool]]

_UNNAMED: Final = (
    "A signed webhook must name its connection in the address: /stripe/invoices/?name=NAME&connection_name="
    "CONNECTION_NAME, or /NAME/CONNECTION_NAME/v1/..."
)


def possible(policy_set: PolicySet, call: Call, kind: str) -> Iterable[Proof]:
    """Return the proofs of a kind that could have signed ``call``. Raises :class:`WebhookNotVerified`."""
    if not call.name:
        raise WebhookNotVerified(_UNNAMED)
    proofs = policy_set.signers.get((call.name, call.connection_name), ())
    return [proof for proof in proofs if proof.kind == kind]


def signer(means: Means, policy_set: PolicySet, candidates: Iterable[Candidate], deadline: float) -> Caller | None:
    """Return whose secret has signed, None if no secret has.

    Raises :class:`IdentityUnavailable` if none of the secrets that could be read has signed, but not all could.
    """
    unread: IdentityUnavailable | None = None
    for proof, name, signed in candidates:
        try:
            if signed(means.secrets.signing(name, deadline)):
                return policy_set.callers[proof]
        except SecretUnavailable as refusal:
            problem = refusal.note
        except ValueError as error:
            problem = str(error)
        else:
            continue
        unread = IdentityUnavailable(note=f"{name}: {problem}", retry_after=int(PAUSE_SECONDS))
    if unread is not None:
        raise unread
    return None
