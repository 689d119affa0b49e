"""What a signature is worth: strict reading, trusted keys, rotation, revocation; and not one bit may change."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlflow_lipschitz.errors import AuditError
from mlflow_lipschitz.registry.attestation import Attestation
from mlflow_lipschitz.registry.dsse import ENVELOPE_LIMIT, PAYLOAD_TYPE, Envelope, Signature
from mlflow_lipschitz.registry.keys import SigningKey
from mlflow_lipschitz.registry.revocation import Revocations
from mlflow_lipschitz.registry.strict_json import canonical_json
from mlflow_lipschitz.registry.trust import Trust
from tests.registry.keyring import key

EXAMPLE = (Path(__file__).parent / "vectors" / "attestation.json").read_bytes()
PAYLOAD = Attestation.from_json(EXAMPLE).payload
TRUST = Trust((key(1).public,))


def signed(*keys: SigningKey, payload: bytes = PAYLOAD) -> Attestation:
    return Attestation(payload, tuple(k.sign(payload) for k in keys))


def counts(content: bytes, trust: Trust = TRUST) -> bool:
    """Whether the file is well-formed and signed by somebody trusted."""
    try:
        status = trust.status(Attestation.from_json(content))
    except AuditError:
        return False
    assert bool(status.verified_by) != bool(status.problems)
    return bool(status.verified_by)


def test_the_example_is_made_by_this_package() -> None:
    assert signed(key(1)).to_json().encode() == EXAMPLE
    assert counts(EXAMPLE)


def test_no_bit_can_be_flipped() -> None:
    survivors = []
    for position in range(len(EXAMPLE)):
        for bit in range(8):
            content = bytearray(EXAMPLE)
            content[position] ^= 1 << bit
            if counts(bytes(content)):
                survivors.append((position, bit))
    assert survivors == []


def test_no_byte_can_be_cut_or_added() -> None:
    assert not any(counts(EXAMPLE[:end]) for end in range(len(EXAMPLE)))
    assert not counts(EXAMPLE + b"}")
    assert not counts(EXAMPLE + b"\0")


def test_the_payload_inside_cannot_change_by_one_bit() -> None:
    envelope = json.loads(EXAMPLE)
    for position in range(0, len(PAYLOAD), 7):
        changed = bytearray(PAYLOAD)
        changed[position] ^= 1
        envelope["payload"] = base64.b64encode(changed).decode()
        assert not counts(json.dumps(envelope).encode())


def _envelope(**changes: Any) -> bytes:
    return json.dumps({**json.loads(EXAMPLE), **changes}).encode()


_GOOD = json.loads(EXAMPLE)["signatures"][0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"x" * (ENVELOPE_LIMIT + 1), "more than the"),
        (b"\xff\xfe", "decode"),
        (b"[" * 100_000, "deep"),
        (b"[]", "not a JSON object"),
        (EXAMPLE.replace(b"{", b'{"payload":"",', 1), "given twice"),
        (_envelope(payloadType="application/json"), "payloadType"),
        (_envelope(payloadType=None), "payloadType"),
        (_envelope(extra=1), "exactly the keys"),
        (_envelope(signatures=[]), "1 to 16"),
        (_envelope(signatures={}), "1 to 16"),
        (_envelope(signatures=[_GOOD] * 2), "two signatures"),
        (_envelope(signatures=[{**_GOOD, "keyid": f"sha256:{i:064x}"} for i in range(17)]), "1 to 16"),
        (_envelope(signatures=[{**_GOOD, "cert": ""}]), "exactly the keys"),
        (_envelope(signatures=[{**_GOOD, "keyid": _GOOD["keyid"].upper()}]), "no key id"),
        (_envelope(signatures=[{**_GOOD, "keyid": None}]), "no key id"),
        (_envelope(signatures=[{**_GOOD, "keyid": _GOOD["keyid"] + "\n"}]), "no key id"),
        (_envelope(signatures=[{**_GOOD, "sig": _GOOD["sig"] + "\n"}]), "not base64"),
        (_envelope(signatures=[{**_GOOD, "sig": _GOOD["sig"].rstrip("=")}]), "not base64"),
        (
            _envelope(signatures=[{**_GOOD, "sig": _GOOD["sig"].replace("==", "").rstrip("=")[:-1] + "x=="}]),
            "base64|bytes",
        ),
        (_envelope(signatures=[{**_GOOD, "sig": ""}]), "64"),
        (_envelope(signatures=[{**_GOOD, "sig": 7}]), "not base64"),
        (_envelope(payload=7), "not base64"),
        (_envelope(payload="é"), "not base64"),
    ],
    ids=lambda value: value[-40:] if isinstance(value, str) else "",
)
def test_malformed_envelopes_are_refused_before_any_signature(content: bytes, reason: str) -> None:
    with pytest.raises(AuditError, match=reason):
        Attestation.from_json(content)


def _edited(edit: Callable[[dict[str, Any]], Any]) -> bytes:
    statement = json.loads(PAYLOAD)
    edit(statement)
    return canonical_json(statement)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (json.dumps(json.loads(PAYLOAD)).encode(), "canonical"),
        (PAYLOAD + b"\n", "canonical"),
        (PAYLOAD.replace(b"500.0", b"500.00"), "canonical"),
        (PAYLOAD.replace(b"500.0", b"1e999"), "JSON|range"),
        (PAYLOAD.replace(b"500.0", b"NaN"), "not a JSON number"),
        (PAYLOAD.replace(b'"rows":null', b'"rows":"\\ud800"'), "surrogate|decode|canonical"),
        (_edited(lambda s: s.update(extra=1)), "exactly the keys"),
        (_edited(lambda s: s.update(_type="x")), "of type"),
        (_edited(lambda s: s.update(subject=[])), "names no file"),
        (_edited(lambda s: s["subject"].reverse()), "not sorted"),
        (_edited(lambda s: s["subject"].append(s["subject"][-1])), "twice"),
        (_edited(lambda s: s["subject"][0]["digest"].update(sha256="0")), "SHA-256"),
        (_edited(lambda s: s["subject"][0]["digest"].update(md5="0")), "exactly the keys"),
        (_edited(lambda s: s.update(predicate=[])), "not an object"),
        (_edited(lambda s: s["predicate"].pop("verdict")), "no verdict"),
        (_edited(lambda s: s["predicate"]["verdict"].update(status=["passed"])), r"verdict\.status"),
        (_edited(lambda s: s["predicate"]["model"].pop("model_id")), r"model\.model_id"),
        (_edited(lambda s: s["predicate"]["model"].update(version=7)), r"model\.version"),
        (_edited(lambda s: s["predicate"].pop("expires")), "expires"),
        (_edited(lambda s: s["predicate"].update(artifacts={"../x": "0" * 64})), "plain files"),
        (_edited(lambda s: s["predicate"].update(artifacts={"x": "0"})), "SHA-256"),
        (_edited(lambda s: s["predicate"].update(signature="none")), "signature was"),
    ],
)
def test_a_signature_does_not_excuse_a_malformed_statement(payload: bytes, reason: str) -> None:
    with pytest.raises(AuditError, match=reason):
        Attestation.from_json(signed(key(1), payload=payload).to_json())


def test_further_fields_of_the_predicate_are_read_over() -> None:
    payload = _edited(lambda s: s["predicate"].update(checker={"version": 1}))
    assert counts(signed(key(1), payload=payload).to_json().encode())


def test_a_signature_taken_off_or_put_on_shows() -> None:
    with pytest.raises(AuditError, match="removed"):
        Attestation.from_json(PAYLOAD)
    bare = _edited(lambda s: s["predicate"].update(signature="none"))
    assert Attestation.from_json(bare).signature == "UNSIGNED"
    with pytest.raises(AuditError, match="added"):
        Attestation.from_json(signed(key(1), payload=bare).to_json())


def test_another_kind_of_document_by_the_same_key_is_none() -> None:
    """What a DSSE signature covers begins with the type: bytes signed as anything else do not verify."""
    private = key(1)._key
    for head in (
        b"",
        b"DSSEv1 16 application/json %d " % len(PAYLOAD),
        b"DSSEv1 %d %s 0 " % (28, PAYLOAD_TYPE.encode()),
    ):
        raw = Signature(key(1).public.keyid, private.sign(head + PAYLOAD))
        assert not counts(Envelope(PAYLOAD, (raw,)).to_json().encode())


def test_unsigned_counts_only_where_nobody_is_trusted() -> None:
    bare = Attestation(_edited(lambda s: s["predicate"].update(signature="none")))
    free = Trust().status(bare)
    assert (free.label, free.problems, free.verified_by) == ("UNSIGNED", (), ())
    strict = TRUST.status(bare)
    assert strict.label == "UNSIGNED"
    assert "UNSIGNED" in strict.problems[0]


def test_a_signature_nobody_can_check_is_said_to_be_unverified() -> None:
    status = Trust().status(signed(key(1)))
    assert status.label == f"UNVERIFIED signature of {key(1).public.keyid}"
    assert (status.problems, status.verified_by) == ((), ())


@pytest.mark.parametrize("claimed", [1, 2])
def test_an_untrusted_key_does_not_count_whatever_it_calls_itself(claimed: int) -> None:
    forged = Attestation(PAYLOAD, (Signature(key(claimed).public.keyid, key(2).sign(PAYLOAD).sig),))
    status = TRUST.status(forged)
    assert not status.verified_by
    assert re.search("not a trusted key|not the one of", status.problems[0])
    assert "REFUSED" in status.label


def test_rotation_needs_one_trusted_key_of_several() -> None:
    both = Trust((key(1).public, key(2).public))
    assert both.status(signed(key(1))).verified_by == (key(1).public.keyid,)
    assert both.status(signed(key(2))).verified_by == (key(2).public.keyid,)
    after = Trust((key(2).public,))
    assert after.status(signed(key(1))).problems
    assert after.status(signed(key(1), key(2))).verified_by == (key(2).public.keyid,)


def test_a_broken_signature_of_a_trusted_key_spoils_a_good_one_beside_it() -> None:
    both = Trust((key(1).public, key(2).public))
    broken = Attestation(PAYLOAD, (key(1).sign(PAYLOAD), Signature(key(2).public.keyid, bytes(64))))
    assert not both.status(broken).verified_by
    assert "not the one of" in both.status(broken).problems[0]


def test_a_revoked_key_counts_no_more_and_the_reason_is_shown() -> None:
    lost = Revocations(keys={key(1).public.keyid: "laptop lost"})
    status = Trust((key(1).public,), lost).status(signed(key(1)))
    assert not status.verified_by
    assert "revoked: laptop lost" in status.problems[0]
    # Signed again by another trusted key, the same statement counts.
    again = Trust((key(1).public, key(2).public), lost).status(signed(key(1), key(2)))
    assert again.verified_by == (key(2).public.keyid,)


@pytest.mark.parametrize("keys", [(), (key(1).public,)], ids=["trying out", "trusted"])
def test_a_revoked_attestation_counts_for_nobody(keys: tuple) -> None:
    attestation = signed(key(1))
    status = Trust(keys, Revocations(attestations={attestation.digest: "wrong rows"})).status(attestation)
    assert not status.verified_by
    assert "revoked: wrong rows" in status.problems[0]


def test_a_revoked_key_is_refused_even_where_nobody_is_trusted() -> None:
    lost = Revocations(keys={key(1).public.keyid: "laptop lost"})
    assert "laptop lost" in Trust((), lost).status(signed(key(1))).problems[0]
