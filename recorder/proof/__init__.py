"""That nothing was changed, cut or taken away unseen: a signed manifest for each day, and what checks it.

keys        Ed25519: the recorder's own key, the public keys to check with
signed      documents of two lines, the second of which signs the first (pure)
documents   the signed forms: manifests of days, entries, removals of before there were acts (pure); days: what a day is
chain       all manifests of a store, in order, checked
acts        the chain of what was done: holds, releases, removals, reversals
actlog      who reads that chain, and adds to it
parts       what is stored of a recording, hashed; whether its chunks hang together
registers   what the registers say of what has come in; found is what they find in the store
register    writes one: waiting (what waits for its signature), entries, anchoring (what the witnesses remember)
sealer      the task that seals the days that are over
removal     a removal, written down before the bytes go
standing    whether one recording is signed, and since when
verify      the answer to "is everything there, as it was?"; report is its form

docs/recorder-proof.md says all of it in so many words that somebody else could check a store without this program.
"""

from recorder.proof.keys import KeyFault, PublicKeys, Signer
from recorder.proof.sealer import Sealer

__all__ = ["KeyFault", "PublicKeys", "Sealer", "Signer"]
