"""The names written on runs and model versions. They are for people: nothing in this package trusts a tag."""

from __future__ import annotations

VERDICT = "lipschitz.verdict"
RUN_ID = "lipschitz.run_id"
POLICY = "lipschitz.policy"
ATTESTATION = "lipschitz.attestation"
PROMOTION = "lipschitz.promotion"
RECEIVER = "lipschitz.receiver"

ARTIFACT_FOLDER = "lipschitz"
ATTESTATION_FILE = "attestation.json"
POLICY_FILE = "policy.yaml"
PROMOTIONS_FOLDER = "lipschitz-promotions"
